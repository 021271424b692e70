"""Reading elements by index, and its transpose, adding elements at an index."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import Part
from ..backends import NAMESPACES
from ..backends.numpy_backend import is_basic
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
def scatter_add(xp: Any, x: Operand, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` to which x is added at ``index``; where an index repeats, values add up."""
    return xp.scatter_add(x, index, shape)


def getitem(x: Operand, index: Any) -> Tensor:
    """``x[index]`` with all of NumPy's indexing: integers, slices, None, Ellipsis, integer and boolean arrays.

    Indices may be tensors of integers or booleans. Elements that are read twice get both gradients.
    """
    return _getitem(x, _plain(index))


def _plain(index: Any) -> Any:
    """The index without tensors, its lists and arrays copied: a later change must not reach the graph."""
    if index.__class__ is tuple:
        return tuple(_plain(part) for part in index)
    if index.__class__ is Tensor:
        return index._data.copy()
    if isinstance(index, slice):
        return slice(*(None if x is None else operator.index(x) for x in (index.start, index.stop, index.step)))
    if isinstance(index, list):
        return np.array(index, dtype=None if index else np.intp)
    return index.copy() if index.__class__ in NAMESPACES else index
