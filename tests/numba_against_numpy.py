"""Compiled kernels, and NumPy in float64, which they are compared with."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd.kernels import SMALL as THRESHOLDS

if importlib.util.find_spec("numba") is None:
    pytest.skip("Numba is not installed", allow_module_level=True)
# Imports Numba, and makes settings if nobody else has done so before.
from microgradnd.kernels import numba_compiler  # noqa: F401

SMALL, LARGE = THRESHOLDS["numba"], THRESHOLDS["auto"]
operations: dict[str, Callable[..., mg.Tensor]] = {
    **{name: getattr(mg, name) for name in ["gelu", "silu", "softmax", "log_softmax", "layer_norm", "rms_norm"]},
    "gelu_tanh": lambda x: mg.gelu(x, "tanh"),
}
SHAPES = [(1, SMALL + 1), (SMALL + 1, 1), (SMALL // 2 + 1, 2), (33, 9)]
SHAPES += [(1, LARGE + 1), (LARGE + 1, 1), (LARGE // 2 + 1, 2), (97, 131), (3, 5, 7, 103), (11, 1024)]


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def normal_cdf(x: Any) -> Any:
    """The normal distribution function, in float64."""
    return np.vectorize(math.erfc)(-np.asarray(x, float) / math.sqrt(2)) / 2


def both(f: Callable[..., mg.Tensor], *arrays: Any) -> tuple[list[Any], list[Any]]:
    """Result and gradients by kernels in float32, and by NumPy in float64."""
    found = []
    for kernels, dtype in (("numba", np.float32), ("numpy", np.float64)):
        with mg.kernels(kernels):
            xs = [mg.tensor(x if x.dtype == dtype else x.astype(dtype), requires_grad=True) for x in arrays]
            out = f(*xs)
            weights = np.random.default_rng(1).uniform(0.5, 1.5, out.shape).astype(dtype)
            (out * weights).sum().backward()
            assert out.dtype == dtype
            found.append([out.data, *(x.grad.data for x in xs)])  # type: ignore[union-attr]
    return found[0], found[1]


def close(ours: list[Any], reference: list[Any], tolerance: float = 2e-6) -> None:
    """Within ``tolerance`` of the largest element."""
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
