"""CuPy's namespace, and the few names that operations need and CuPy lacks. Importing this imports CuPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
from cupyx.scipy.special import erf, ndtr

from ..dtypes import BFLOAT16, is_narrow
from ..kernels import kernels_for
from ..kernels.cupy_random import kept
from . import numpy_backend, tf32
from .narrow import computing_in_float32, promoting

array_type = cupy.ndarray
if tf32.allow_tf32.current is not None:
    tf32.apply()

# Each of these is one launch: a chain of CuPy's functions takes one for every step of it.
_masked = cupy.ElementwiseKernel("T x, bool mask", "T out", "out = mask ? x : T(0)", "masked")
_scaled = {
    double: cupy.ElementwiseKernel(
        f"T x, bool mask, {kind} scale", "T out", "out = mask ? T(x * scale) : T(0)", f"scaled_{kind}"
    )
    for double, kind in ((False, "float32"), (True, "float64"))
}
_rotate_halves = cupy.ElementwiseKernel(
    "T a, T b, A cos, A sin", "T c, T d", "c = T(a * cos - b * sin); d = T(b * cos + a * sin)", "rotate_halves"
)
# n is how many rows there are, size the elements of each.
_take_rows = cupy.ElementwiseKernel(
    "raw T x, raw I index, int64 n, int64 size",
    "T out",
    """
    const long long row = index[i / size];
    out = row >= 0 && row < n ? x[row * size + i % size] : T(nan(""));
    """,
    "take_rows",
)


def relu(x: Any, out: Any = None) -> Any:
    """max(x, 0)."""
    return cupy.maximum(x, 0, out=out)


def relu_gradient(g: Any, out: Any) -> Any:
    """g where ``out``, the rectifier's result, is positive, and 0 elsewhere."""
    fast = kernels_for(g, out) if g.size and g.shape == out.shape else None
    return masked(g, out > 0) if fast is None else fast.relu_gradient(g, out)


def masked(x: Any, mask: Any, scale: float | None = None) -> Any:
    """x, times ``scale``, where ``mask`` holds, and 0 elsewhere."""
    if not hasattr(mask, "dtype") or mask.dtype.kind != "b" or (scale is not None and x.dtype.kind in "biuc"):
        return x * mask if scale is None else x * mask * scale
    if scale is None:
        return _masked(x, mask)
    return _scaled[x.dtype.char == "d"](x, mask, scale)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)); of integers in float64."""
    x = x.astype(np.float64) if x.dtype.kind in "biu" else x
    if x.size and (fast := kernels_for(x)) is not None:
        return fast.sigmoid(x)
    wide = x.astype(np.float32) if is_narrow(x.dtype) else x
    return (1 / (1 + cupy.exp(-wide))).astype(x.dtype, copy=False)


def rotate_halves(x: Any, cos: Any, sin: Any) -> Any:
    """Each pair of elements i and i + n / 2 of the last axis, of length n, turned by its angle."""
    half, dtype = x.shape[-1] // 2, np.result_type(x.dtype, cos.dtype, sin.dtype)
    shape = np.broadcast_shapes(x.shape[:-1], cos.shape[:-1], sin.shape[:-1]) + x.shape[-1:]
    out = cupy.empty(shape, dtype)
    x, cos, sin = (part.astype(dtype, copy=False) for part in (x, cos, sin))
    _rotate_halves(x[..., :half], x[..., half:], cos, sin, out[..., :half], out[..., half:])
    return out


def scatter_add(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """As that of NumPy's namespace; rows at integers, always added in the same order."""
    is_rows = hasattr(index, "dtype") and index.dtype.kind in "iu" and x.size and x.shape == index.shape + shape[1:]
    if not is_rows or (fast := kernels_for(x)) is None:
        return numpy_backend.scatter_add(cupy, x, index, shape)
    out = cupy.zeros(shape, x.dtype)
    fast.add_rows(out, cupy.asarray(index), x)
    return out


def take_rows(x: Any, index: Any) -> Any:
    """``x[index]`` along the first axis, with NaN for rows that are not there: a device is not asked about them."""
    out = cupy.empty(index.shape + x.shape[1:], x.dtype)
    if out.size:
        _take_rows(cupy.ascontiguousarray(x), cupy.ascontiguousarray(index), len(x), x.size // len(x), out)
    return out


def matmul(x: Any, y: Any) -> Any:
    """cupy.matmul."""
    return (_batched_matmul if x.ndim > 2 or y.ndim > 2 else cupy.matmul)(x, y)


# What CuPy 14.2 refuses bfloat16 for, or gives another dtype; its erf gives float64 for float16.
_batched_matmul, std, var = (computing_in_float32(f, (BFLOAT16,)) for f in (cupy.matmul, cupy.std, cupy.var))
erf = computing_in_float32(erf)
einsum = computing_in_float32(cupy.einsum, (BFLOAT16,), first=1)
where = promoting(cupy.where)
_functions = (kept, masked, matmul, relu, relu_gradient, rotate_halves, scatter_add, sigmoid, take_rows)
_ours: dict[str, Any] = {f.__name__: f for f in _functions}
_ours |= {"einsum": einsum, "erf": erf, "normal_cdf": ndtr, "std": std, "var": var, "where": where}
_ours["SMALL"] = 0  # kernels for all arrays that have elements: one launch instead of several
namespace = SimpleNamespace(**{**vars(cupy), **_ours})
