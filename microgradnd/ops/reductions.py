"""Reductions along axes. ``axis`` is None (all axes), an integer or a tuple; ``keepdims`` as in NumPy."""

from __future__ import annotations

from math import inf, nan, prod
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autocast import in_float32
from ..fused import fused
from ..grad_mode import no_grad
from ..kernels import array_norms
from ..kernels.array_kernels import narrow, wide
from ..primitive import primitive
from ..tensor import Tensor
from .elementwise import exp, log

if TYPE_CHECKING:
    from ..tensor import Axis, Operand


def _restored(xp, reduced, shape, axis, keepdims):
    """``reduced`` with the axes that the reduction of an array of ``shape`` removed put back as length 1."""
    if keepdims or axis is None or not shape:
        return reduced
    axes = {index(a) % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))}
    return xp.reshape(reduced, tuple(1 if i in axes else n for i, n in enumerate(shape)))


def _count(shape, axis):
    """How many elements are reduced to one."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return prod(shape[a] for a in axes)


def _share(shape, axis, ddof=0):
    """1 / (n - ddof), as a factor: n itself is infinite in float16 from 65,520 up. NaN where n <= ddof."""
    n = _count(shape, axis) - ddof
    return 1.0 / n if n > 0 else nan


def _spread(xp, g, shape, axis, keepdims):
    return xp.broadcast_to(_restored(xp, g, shape, axis, keepdims), shape)


@primitive(in_float32, x=lambda g, xp, x_shape, axis, keepdims: _spread(xp, g, x_shape, axis, keepdims))
def sum(xp: Any, x: Operand, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over ``axis``: an integer, a tuple of them, or None for all axes.

    With ``keepdims`` the axes stay, with length 1. Raises AxisError (a ValueError) for axes that x does not have,
    TypeError for what is no integer. So do all reductions.
    """
    return xp.sum(x, axis=axis, keepdims=keepdims)


@primitive(
    in_float32,
    x=lambda g, xp, x_shape, axis, keepdims: _spread(xp, g * _share(x_shape, axis), x_shape, axis, keepdims),
)
def mean(xp: Any, x: Operand, axis: Axis = None, keepdims: bool = False) -> Any:
    """The arithmetic mean over ``axis``; of no elements NaN, with NumPy's warning. Arguments as for :func:`sum`."""
    return xp.mean(x, axis=axis, keepdims=keepdims)


def _var(g, xp, x, x_shape, axis, ddof, keepdims):
    deviation = x - xp.mean(x, axis=axis, keepdims=True)
    return _restored(xp, g, x_shape, axis, keepdims) * (2.0 * _share(x_shape, axis, ddof)) * deviation


@primitive(in_float32, x=_var)
def var(xp: Any, x: Operand, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """The variance over ``axis``: the sum of (x - mean)^2 divided by n - ddof. Arguments as for :func:`sum`."""
    return xp.var(x, axis=axis, ddof=ddof, keepdims=keepdims)


def _std(g, xp, x, x_shape, out, axis, ddof, keepdims):
    deviation = x - xp.mean(x, axis=axis, keepdims=True)
    # This quotient is at most the root of n: float16's range ends before 1 / out does.
    deviation = deviation / _restored(xp, xp.where(out == 0, xp.ones_like(out), out), x_shape, axis, keepdims)
    return _restored(xp, g, x_shape, axis, keepdims) * _share(x_shape, axis, ddof) * deviation


@primitive(in_float32, x=_std)
def std(xp: Any, x: Operand, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """The standard deviation over ``axis``, the root of :func:`var`; where it is 0 the gradient is 0 too."""
    return xp.std(x, axis=axis, ddof=ddof, keepdims=keepdims)


def _extremum(g, xp, x, x_shape, out, axis, keepdims):
    chosen = x == _restored(xp, out, x_shape, axis, keepdims)
    ties = xp.sum(chosen, axis=axis, keepdims=True).astype(np.result_type(g.dtype, np.float32))  # float16 ends early
    return chosen * (_restored(xp, g, x_shape, axis, keepdims) / ties)


@primitive(x=_extremum)
def max(xp: Any, x: Operand, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest element over ``axis``; where several are equal they share the gradient evenly.

    Arguments as for :func:`sum`; raises ValueError where there are no elements.
    """
    return xp.max(x, axis=axis, keepdims=keepdims)


@primitive(x=_extremum)
def min(xp: Any, x: Operand, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest element over ``axis``; where several are equal they share the gradient evenly.

    Arguments as for :func:`sum`; raises ValueError where there are no elements.
    """
    return xp.min(x, axis=axis, keepdims=keepdims)


@primitive(x=None)
def argmax(xp: Any, x: Operand, axis: int | None = None, keepdims: bool = False) -> Any:
    """The index of the largest element over ``axis`` (the first one; flat where ``axis`` is None). No gradient."""
    return xp.argmax(x, axis=axis, keepdims=keepdims)


@primitive(x=None)
def argmin(xp: Any, x: Operand, axis: int | None = None, keepdims: bool = False) -> Any:
    """The index of the smallest element over ``axis`` (the first one; flat where ``axis`` is None). No gradient."""
    return xp.argmin(x, axis=axis, keepdims=keepdims)


@primitive(x=None)
def all(xp: Any, x: Operand, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether all elements over ``axis`` are true, that is, not 0. No gradient."""
    return xp.all(x, axis=axis, keepdims=keepdims)


@primitive(x=None)
def any(xp: Any, x: Operand, axis: Axis = None, keepdims: bool = False) -> Any:
    """Whether any element over ``axis`` is true, that is, not 0. No gradient."""
    return xp.any(x, axis=axis, keepdims=keepdims)


def _finite(xp, x):
    return xp.where(xp.isfinite(x), x, xp.zeros_like(x))


def _logsumexp(g, xp, x, x_shape, out, axis, keepdims):
    # An all -inf slice has out = -inf: the weights exp(-inf - 0) are 0 there, not exp(-inf + inf).
    out = wide(_restored(xp, out, x_shape, axis, keepdims))
    out = xp.where(out == -inf, xp.zeros_like(out), out)
    return _restored(xp, g, x_shape, axis, keepdims) * xp.exp(wide(x) - out)


@primitive(in_float32, x=_logsumexp)
def logsumexp(xp: Any, x: Operand, axis: Axis = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) over ``axis``, shifted by the maximum so that exp cannot overflow."""
    given, x = x, wide(x)
    shift = _finite(xp, xp.max(x, axis=axis, keepdims=True))
    total = xp.sum(xp.exp(x - shift), axis=axis, keepdims=True)
    out = narrow(xp.log(total) + shift, given)
    return out if keepdims else xp.squeeze(out, axis=axis if axis is not None else tuple(range(x.ndim)))


@fused(array_norms.softmax, "x", conversion=in_float32)
def softmax(x: Operand, axis: Axis = -1) -> Tensor:
    """exp(x) / sum(exp(x)) over ``axis``, shifted by the maximum so that exp cannot overflow."""
    e: Any = exp(_shifted(x, axis))
    return e / sum(e, axis=axis, keepdims=True)


@fused(array_norms.log_softmax, "x", conversion=in_float32)
def log_softmax(x: Operand, axis: Axis = -1) -> Tensor:
    """x - logsumexp(x) over ``axis``, shifted by the maximum so that exp cannot overflow."""
    shifted = _shifted(x, axis)
    return shifted - log(sum(exp(shifted), axis=axis, keepdims=True))


def _shifted(x: Any, axis: Axis) -> Any:
    """x less its maximum, a constant: the gradient does not depend on it."""
    with no_grad():
        largest = max(x, axis=axis, keepdims=True)
    return x - largest
