"""CuPy's results against NumPy's in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import microgradnd as mg

TOLERANCES = {"float16": 1e-3, "float32": 2e-6, "float64": 1e-14}  # of the largest element


def normal(*shape: int, dtype: Any = "float32", seed: int = 0, scale: float = 2.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def both(f: Callable[..., mg.Tensor], *arrays: Any) -> tuple[list[Any], list[Any]]:
    """Result and gradients by CuPy's kernels in the arrays' dtype, and by NumPy in float64."""
    import cupy

    found = []
    for convert in (cupy.asarray, lambda x: x.astype(np.float64)):
        with mg.kernels("auto" if convert is cupy.asarray else "numpy"):
            xs = [mg.tensor(convert(x), requires_grad=True) for x in arrays]
            out = f(*xs)
            weights = np.random.default_rng(1).uniform(0.5, 1.5, out.shape).astype(arrays[0].dtype)
            out.backward(convert(weights))
            found.append([out.data, *(x.grad.data for x in xs)])  # type: ignore[union-attr]
    assert all(x.dtype == arrays[0].dtype for x in found[0])
    return [x.get() for x in found[0]], found[1]


def close(ours: list[Any], reference: list[Any], factor: float = 1.0) -> None:
    """Within the dtype's tolerance, times ``factor``, of the largest element."""
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape
        atol = factor * TOLERANCES[a.dtype.name] * max(1e-2, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=atol)
