"""Reading elements by index, and its transpose, adding elements at an index."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import integer
from ..autograd import Part
from ..backends import NAMESPACES
from ..backends.numpy_backend import is_basic
from ..devices import beside
from ..primitive import primitive
from ..tensor import Tensor

if TYPE_CHECKING:
    from ..tensor import Operand


def _spread_out(g, xp, index, x_shape):
    if g.__class__ is Tensor or not is_basic(index):
        return xp.scatter_add(g, index, x_shape)
    return Part(g, index, functools.partial(xp.scatter_add, g, index, x_shape))


@primitive(x=_spread_out)
def _getitem(xp: Any, x: Operand, index: Any) -> Any:
    return x[index]


@primitive(x=lambda g, index: g[index])
def _scatter_add(xp: Any, x: Operand, index: Any, shape: tuple[int, ...]) -> Any:
    return xp.scatter_add(x, index, shape)


def scatter_add(x: Operand, index: Any, shape: int | tuple[int, ...]) -> Tensor:
    """Zeros of ``shape`` to which x is added at ``index``; where an index repeats, values add up.

    ``index`` as for :func:`getitem`; x has the shape of ``zeros(shape)[index]``, or broadcasts to it. Raises IndexError
    as :func:`getitem` does, and ValueError where x does not fit.
    """
    index = _plain("scatter_add", index)
    shape = tuple(shape) if isinstance(shape, list) else (shape,) if isinstance(shape, int | np.integer) else shape
    array = x._data if x.__class__ is Tensor else x
    if array.__class__ is not np.ndarray and array.__class__ in NAMESPACES:
        index = _checked_index("scatter_add", index, shape, array)
    return _scatter_add(x, index, shape)


@primitive(x=lambda g, xp, index, x_shape: xp.scatter_add(g, index, x_shape))
def take_rows(xp: Any, x: Operand, index: Any) -> Any:
    """``x[index]`` for an array of integers that has been checked; on a GPU it need not be: see ``xp.take_rows``."""
    return xp.take_rows(x, index)


def getitem(x: Operand, index: Any) -> Tensor:
    """``x[index]`` with all of NumPy's indexing: integers, slices, None, Ellipsis, integer and boolean arrays.

    Indices may be tensors of integers or booleans. Elements that are read twice get both gradients. Raises IndexError
    for elements that are not there; arrays of indices that lie on a GPU are waited for, to look at them.
    """
    index = _plain("getitem", index)
    array = x._data if x.__class__ is Tensor else x
    if array.__class__ is not np.ndarray and array.__class__ in NAMESPACES:
        index = _checked_index("getitem", index, array.shape, array)
    return _getitem(x, index)


def _checked_index(operation: str, index: Any, shape: tuple[int, ...], like: Any) -> Any:
    """The index for an array of ``shape``, with its arrays beside ``like``; CuPy itself lets them wrap around."""
    parts, axis, found = index if index.__class__ is tuple else (index,), 0, []
    after = sum(map(_axes, parts))
    for part in parts:
        if part is ...:
            axis += len(shape) - after
        elif part.__class__ in NAMESPACES:
            if part.dtype.kind in "iu" and part.size and axis < len(shape):
                low, high = int(part.min()), int(part.max())
                if low < -shape[axis] or high >= shape[axis]:
                    raise IndexError(
                        f"{operation}: index {low} to {high} is out of bounds for axis {axis} of length {shape[axis]}"
                    )
            axis += _axes(part)
            part = beside(part, like)
        else:
            axis += _axes(part)
        found.append(part)
    return tuple(found) if index.__class__ is tuple else found[0]


def _axes(part: Any) -> int:
    """How many axes a part of an index takes: a mask as many as it has, and so a boolean none."""
    if part is None or part is ... or isinstance(part, bool | np.bool_):
        return 0
    return int(part.ndim) if hasattr(part, "dtype") and part.dtype.kind == "b" else 1


def _plain(operation: str, index: Any) -> Any:
    """The index without tensors, its lists and arrays copied: a later change must not reach the graph."""
    if index.__class__ is tuple:
        return tuple(_plain(operation, part) for part in index)
    if index.__class__ is Tensor:
        return index._data.copy()
    if isinstance(index, slice):
        bounds = start, stop, step = index.start, index.stop, index.step
        if (start is None or start.__class__ is int) and (stop is None or stop.__class__ is int) and step is None:
            return index
        return slice(*(x if x is None else integer(operation, "a bound of a slice", x) for x in bounds))
    if isinstance(index, np.ma.MaskedArray):
        raise TypeError(
            f"{operation}: an index is a masked array, whose mask would be lost; fill it first: index.filled(value)"
        )
    if index.__class__ in NAMESPACES:
        return index.copy()
    if index is None or index is ... or isinstance(index, int | np.generic | str):
        return index
    if isinstance(index, tuple):  # a named one
        return tuple(_plain(operation, part) for part in index)
    is_sequence = isinstance(index, Sequence)
    if not is_sequence and not hasattr(index, "__array__"):
        return index
    try:
        return np.array(index, dtype=np.intp if is_sequence and not len(index) else None)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{operation}: {error}") from None
