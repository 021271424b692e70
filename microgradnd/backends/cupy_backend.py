"""CuPy's namespace, and the few names that operations need and CuPy lacks. Importing this imports CuPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cupy

from .numpy_backend import is_basic

array_type = cupy.ndarray


def scatter_add(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` to which ``x`` is added at ``index``: where an index repeats, values add up."""
    out = cupy.zeros(shape, x.dtype)
    if is_basic(index):
        out[index] = x
    else:
        cupy.add.at(out, index, x)
    return out


namespace = SimpleNamespace(**{**vars(cupy), "scatter_add": scatter_add})
