"""NumPy views of the memory that a device pointer, here a host pointer, points to."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def flat_view(pointer: int, count: int, dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """Return `count` elements at a pointer, as an array that shares their memory."""
    dtype = np.dtype(dtype)
    if count == 0:
        return np.empty(0, dtype)
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
    return np.frombuffer(memory, dtype)


def view(pointer: int, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """Return the C-ordered array of some shape at a pointer."""
    return flat_view(pointer, int(np.prod(shape)), dtype).reshape(shape)


def vector_view(pointer: int, count: int, increment: int, dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """Return `count` elements at a pointer, one in every `increment`."""
    return flat_view(pointer, (count - 1) * increment + 1 if count else 0, dtype)[::increment]


def column_major_view(pointer: int, rows: int, columns: int, leading: int, dtype: DTypeLike) -> np.ndarray[Any, Any]:
    """Return the matrix at a pointer whose columns lie `leading` elements apart."""
    if rows == 0 or columns == 0:
        return np.empty((rows, columns), dtype)
    elements = flat_view(pointer, leading * (columns - 1) + rows, dtype)
    strides = (elements.itemsize, leading * elements.itemsize)
    return np.lib.stride_tricks.as_strided(elements, (rows, columns), strides)
