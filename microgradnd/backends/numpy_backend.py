"""NumPy's namespace, and the few names that operations need and NumPy lacks."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..dtypes import cast, is_narrow
from ..kernels import kernels_for, small
from ..kernels.array_kernels import LARGE_PRODUCT, product
from ..noting import noted
from .narrow import computing_in_float32, promoting
from .numpy_erf import erf, normal_cdf


def scatter_add(xp: Any, x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` to which ``x`` is added at ``index``: where an index repeats, values add up."""
    if is_narrow(x.dtype) and not is_basic(index):
        return scatter_add(xp, x.astype(np.float32), index, shape).astype(x.dtype)
    out = xp.zeros(shape, x.dtype)
    if is_basic(index):
        out[index] = x
    elif index.__class__ is np.ndarray and index.dtype.kind in "iu" and x.size and x.shape == index.shape + shape[1:]:
        _add_rows(out, index.reshape(-1), x)
    else:
        if xp is np and len(shape) == 1:  # whose add.at reads beyond the end of x if that has fewer axes than the index
            x = np.broadcast_to(x, np.broadcast_to(np.False_, shape)[index].shape)
        xp.add.at(out, index, x)
    return out


def _add_rows(out: Any, index: Any, x: Any) -> None:
    """Add each part of x to the row of ``out`` that ``index`` names: sorted by row, a tenth of the time of add.at."""
    index = index.astype(np.intp)  # the sum below may not fit into the index's own dtype
    if index.min() < -len(out) or index.max() >= len(out):
        raise IndexError(f"index {index.min()} to {index.max()} is out of bounds for an axis of length {len(out)}")
    index = np.where(index < 0, index + len(out), index)
    if x.size > small() and out.ndim == 2 and (fast := kernels_for(out, x)):
        return fast.add_rows(out, index, x)
    order = np.argsort(index, kind="stable")
    index = index[order]
    starts = np.flatnonzero(np.r_[True, index[1:] != index[:-1]])
    out[index[starts]] = np.add.reduceat(x.reshape(len(order), *out.shape[1:])[order], starts, axis=0)


# Untyped: NumPy's stubs know reduce's positional arguments only by keyword, which costs 0.3 us more.
_add: Any = np.add.reduce
_maximum: Any = np.maximum.reduce
_minimum: Any = np.minimum.reduce


dot: Any = np.dot

CACHED = 16384  # elements at most in the constants kept below: 8 MiB in all


@functools.lru_cache(maxsize=64)
def _ones(n: int, dtype: Any, are_two_left: int) -> Any:
    """A row of ones for sums by BLAS of n elements each; None where there is none.

    ``are_two_left`` is not 0 where of these sums, taken by four, two or three are left.
    """
    # OpenBLAS 0.3.31's product of four rows and two or three more, of five float32 each, computes with what is left on
    # the stack too (AVX-512). No result changes, but where that is a signalling NaN, NumPy warns of an invalid value.
    if n > CACHED or dtype.char not in "fd" or (are_two_left and n == 5 and dtype.char == "f"):
        return None
    ones = np.ones(n, dtype)
    ones.flags.writeable = False
    return ones


@functools.lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...], dtype: Any) -> Any:
    zeros = np.zeros(shape, dtype)
    zeros.flags.writeable = False
    return zeros


FEW = 1024  # up to so many elements BLAS, which adds up 64 at a time, rounds no more than NumPy, which takes 8


# np.sum, np.max and np.min spend 2 us in Python before they call these: more than the reduction of a small array.
def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """np.sum; of matrices and short vectors by BLAS, in 0.2 to 0.8 of the time and rounding no more."""
    ndim = 0 if keepdims else x.ndim
    if ndim == 1 and axis is None:
        ones = _ones(len(x), x.dtype, 0)
        if ones is not None and len(ones) <= FEW:
            return x.dot(ones)
    elif ndim == 2 and axis.__class__ is int:
        if axis == 0:
            ones = _ones(len(x), x.dtype, x.shape[1] & 2)
            if ones is not None:
                return dot(ones, x)
        elif axis == 1:
            ones = _ones(x.shape[1], x.dtype, len(x) & 2)
            if ones is not None and len(ones) <= FEW:
                return x.dot(ones)
    if x.itemsize == 2:
        return _narrow_sum(x, axis, keepdims)
    return _add(x, axis, None, None, keepdims)


def _plain_sum(x: Any, axis: Any, keepdims: bool) -> Any:
    return _add(x, axis, None, None, keepdims)


_narrow_sum = computing_in_float32(_plain_sum)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """np.max."""
    return _maximum(x, axis, None, None, keepdims)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """np.min."""
    return _minimum(x, axis, None, None, keepdims)


def relu(x: Any, out: Any = None) -> Any:
    """max(x, 0). Against an array of zeros NumPy uses vector instructions, against a number not: half the time."""
    zeros = _zeros(x.shape, x.dtype) if x.size <= CACHED else np.zeros(x.shape[-1:], x.dtype)
    return np.maximum(x, zeros, out=out)


_BITS = {"e": np.dtype(np.int16), "f": np.dtype(np.int32), "d": np.dtype(np.int64)}


def masked(x: Any, mask: Any, scale: float | None = None) -> Any:
    """x, times ``scale``, where ``mask`` holds and 0 elsewhere, even where x is infinite or NaN, as no product is.

    The bits of x, as integers, times 0 or 1: a quarter of the time of np.where.
    """
    if scale is not None:
        return masked(x, mask) * scale
    dtype = x.dtype
    bits = _BITS.get(dtype.char)
    if bits is None or x.ndim == 0 or getattr(mask, "shape", None) != x.shape or mask.itemsize != 1:
        return np.where(mask, x, np.zeros((), dtype))
    return np.multiply(x.view(bits), mask.view(np.int8)).view(dtype)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)); of integers in float64."""
    if x.dtype.kind in "biu":
        x = x.astype(np.float64)  # -x would wrap around
    elif is_narrow(x.dtype):
        return cast(sigmoid(x.astype(np.float32)), x.dtype)  # exp(-x) is infinite below -11 in float16
    with np.errstate(over="ignore"):  # exp(-x) is infinite far below 0, and its reciprocal 0 as it should be
        out = np.exp(-x)
        out += 1
        return 1 / out if out.ndim == 0 else np.divide(1, out, out=out)


def relu_gradient(g: Any, out: Any) -> Any:
    """g where ``out``, the rectifier's result, is positive, and 0 elsewhere."""
    return masked(g, np.greater(out, _zeros((), out.dtype)))


@noted
def kept(seed: int, number: int, shape: tuple[int, ...], p: float) -> Any:
    """Booleans, each False with probability p, that depend on ``seed`` and ``number`` alone."""
    return np.random.Generator(np.random.Philox(key=[int(seed), number])).random(shape, np.float32) >= p


def rotate_halves(x: Any, cos: Any, sin: Any) -> Any:
    """Each pair of elements i and i + n / 2 of the last axis, of length n, turned by its angle."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def take_rows(x: Any, index: Any) -> Any:
    """``x[index]`` along the first axis."""
    return x[index]


def matmul(x: Any, y: Any) -> Any:
    """np.matmul; of two matrices by a kernel, or by dot, whose calls cost 0.5 us less."""
    if x.itemsize == 2 or y.itemsize == 2:  # of bfloat16 beside integers dot makes objects
        return _narrow_matmul(x, y)
    if x.ndim != 2 or y.ndim != 2:
        return np.matmul(x, y)
    return x.dot(y) if x.size * y.shape[1] < LARGE_PRODUCT else product(np, x, y)


_narrow_matmul = computing_in_float32(np.matmul)


def is_basic(index: Any) -> bool:
    """Whether ``index`` holds only integers, slices, None and Ellipsis, and so names no element twice."""
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, bool) or not (part is None or part is ... or isinstance(part, (int, slice, np.integer))):
            return False
    return True


_functions = (
    erf,
    kept,
    masked,
    matmul,
    max,
    min,
    normal_cdf,
    relu,
    relu_gradient,
    rotate_halves,
    sigmoid,
    sum,
    take_rows,
)
_ours: dict[str, Any] = {f.__name__: f for f in _functions}
_ours |= {f.__name__: computing_in_float32(f) for f in (np.mean, np.std, np.var, np.vdot)}
_ours["einsum"] = computing_in_float32(np.einsum, first=1)
_ours["where"] = promoting(np.where)
_ours["scatter_add"] = functools.partial(scatter_add, np)


class _Namespace(SimpleNamespace):
    @property
    def SMALL(self) -> int:
        """As for kernels: it changes with mg.kernels."""
        return small()


namespace = _Namespace(**{**vars(np), **_ours})
