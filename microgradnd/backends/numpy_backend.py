"""NumPy's namespace, and the few names that operations need and NumPy lacks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np


def scatter_add(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of ``shape`` to which ``x`` is added at ``index``: where an index repeats, values add up."""
    out = np.zeros(shape, x.dtype)
    if is_basic(index):
        out[index] = x
    else:
        np.add.at(out, index, x)
    return out


def is_basic(index: Any) -> bool:
    """Whether ``index`` holds only integers, slices, None and Ellipsis, and so names no element twice."""
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, bool) or not (part is None or part is ... or isinstance(part, (int, slice, np.integer))):
            return False
    return True


namespace = SimpleNamespace(**{**vars(np), "scatter_add": scatter_add})
