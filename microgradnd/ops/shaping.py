"""Operations that rearrange elements; like NumPy's, they share memory with their argument where they can."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import integer
from ..dtypes import as_dtype, cast, is_floating, is_numeric
from ..primitive import primitive
from ..tensor import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..tensor import Operand, Shape


@primitive(x=lambda g, xp, x_shape: xp.reshape(g, x_shape))
def reshape(xp: Any, x: Operand, shape: Shape) -> Any:
    """x with another shape of the same size; one length may be -1. Raises ValueError for other sizes."""
    return xp.reshape(x, shape)


@primitive(x=lambda g, xp, x_shape: xp.reshape(g, x_shape))
def ravel(xp: Any, x: Operand) -> Any:
    """x with one axis of all its elements, in C order; a tensor's method ``flatten`` is the same."""
    return xp.reshape(x, -1)


def _inverse(axes):
    return None if axes is None else tuple(int(i) for i in np.argsort([a % len(axes) for a in axes]))


@primitive(x=lambda g, xp, axes: xp.transpose(g, _inverse(axes)))
def _transpose(xp: Any, x: Operand, axes: tuple[int, ...] | None) -> Any:
    return xp.transpose(x, axes)


def transpose(x: Operand, axes: int | Sequence[int] | None = None) -> Tensor:
    """x with its axes in the order ``axes``; None reverses them. Raises ValueError for axes that are not those of x."""
    if axes is not None and axes.__class__ is not tuple:  # a list may be changed before backward
        given: Any = axes if np.ndim(axes) else (axes,)  # of tensors too
        axes = tuple(integer("transpose", "an axis", axis) for axis in given)
    return _transpose(x, axes)


@primitive(x=lambda g, xp, axis1, axis2: xp.swapaxes(g, axis1, axis2))
def swapaxes(xp: Any, x: Operand, axis1: int, axis2: int) -> Any:
    """x with two axes interchanged. Raises AxisError for axes that x does not have."""
    return xp.swapaxes(x, axis1, axis2)


@primitive(x=lambda g, xp, x_shape: xp.reshape(g, x_shape))
def expand_dims(xp: Any, x: Operand, axis: int | tuple[int, ...]) -> Any:
    """x with axes of length 1 inserted at ``axis`` of the result. Raises AxisError for axes that it does not have."""
    return xp.expand_dims(x, axis)


@primitive(x=lambda g, xp, x_shape: xp.reshape(g, x_shape))
def squeeze(xp: Any, x: Operand, axis: int | tuple[int, ...] | None = None) -> Any:
    """x without its axes of length 1, or without those in ``axis``. Raises ValueError for axes that are longer."""
    return xp.squeeze(x, axis)


@primitive(x=lambda g: g)
def broadcast_to(xp: Any, x: Operand, shape: Shape) -> Any:
    """x repeated to ``shape`` by NumPy's broadcasting rules, without copying: read-only.

    Raises ValueError for a shape that does not fit.
    """
    return xp.broadcast_to(x, shape)


@primitive(x=lambda g: g)
def _to_floating(xp: Any, x: Operand, dtype: Any) -> Any:
    return cast(x, dtype)


@primitive(x=None)
def _to_constant(xp: Any, x: Operand, dtype: Any) -> Any:
    return x.astype(dtype)


def astype(x: Operand, dtype: npt.DTypeLike) -> Tensor:
    """x converted to ``dtype``. To integers, booleans or complex numbers no gradient flows back.

    Raises TypeError for dtypes that are not numeric.
    """
    dtype = as_dtype(dtype)
    if not is_numeric(dtype):
        raise TypeError(f"astype: expected a numeric dtype, got {dtype}")
    return _to_floating(x, dtype) if is_floating(dtype) else _to_constant(x, dtype)


@primitive(x=lambda g: g)
def alias(xp: Any, x: Operand) -> Any:
    """x itself, as a node of its own in the graph, at which a gradient can be read off; gradients pass through it."""
    return x


_latest: list[tuple[Any, int, list[int]]] = [((), 0, [])]  # shapes, axis and ends that were asked for last


def _ends(shapes: Any, axis: int) -> list[int]:
    """Where each of these arrays ends along the axis; the gradients of all of them, which ask in turn, count once."""
    found = _latest[0]
    if found[0] is not shapes or found[1] != axis:
        found = _latest[0] = shapes, axis, list(itertools.accumulate(map(itemgetter(axis), shapes)))
    return found[2]


def _part(g, i, arrays_shape, axis):
    """The slice of g that came from array i."""
    ends = _ends(arrays_shape, axis)
    index: list[Any] = [slice(None)] * g.ndim
    index[axis] = slice(ends[i - 1] if i else 0, ends[i])
    return g[tuple(index)]


@primitive(arrays=_part)
def _concatenate(xp: Any, *arrays: Operand, axis: int) -> Any:
    return xp.concatenate(arrays, axis)


def concatenate(arrays: Sequence[Operand], axis: int | None = 0) -> Tensor:
    """The arrays joined along an existing axis; None joins them flattened. Raises ValueError for shapes that differ."""
    if axis is None:
        arrays, axis = [reshape(x, (-1,)) for x in arrays], 0
    return _concatenate(*arrays, axis=integer("concatenate", "axis", axis))


def stack(arrays: Sequence[Operand], axis: int = 0) -> Tensor:
    """The arrays joined along a new axis.

    Raises ValueError for no arrays, and for shapes that differ, AxisError for an axis that the result does not have.
    """
    arrays = list(arrays)
    if not arrays:
        raise ValueError("stack: expected arrays, got none")
    shapes = [x.shape if hasattr(x, "shape") else np.shape(x) for x in arrays]
    axis, ndim = integer("stack", "axis", axis), len(shapes[0]) + 1
    if not -ndim <= axis < ndim:
        raise np.exceptions.AxisError(f"stack: axis {axis} is out of bounds for a result of {ndim} axes")
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"stack: expected arrays of one shape, got {', '.join(map(str, shapes))}")
    return _concatenate(*[expand_dims(x, axis) for x in arrays], axis=axis)
