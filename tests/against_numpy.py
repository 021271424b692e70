"""CuPy's results against NumPy's in float64, and what a call costs: for tests of kernels on host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests import cupy_on_cpu

needs_cupy = pytest.mark.skipif(cupy_on_cpu.unavailable() is not None, reason="CuPy on host memory is not available")
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


class Cost:
    """What happens on the device within a ``with`` block."""

    def __enter__(self) -> Cost:
        self._before = cupy_on_cpu.counters()
        return self

    def __exit__(self, *exception: object) -> None:
        now = cupy_on_cpu.counters()
        self.launches, self.library_calls, self.copies, self.synchronizations = (
            sum(now[name] - self._before[name] for name in names)
            for names in (
                ["launches"],
                ["library_calls"],
                ["host_to_device", "device_to_host"],
                ["synchronizations"],
            )
        )

    def is_quiet(self) -> bool:
        """Whether nothing was copied between host and device, or waited for."""
        return self.copies == self.synchronizations == 0
