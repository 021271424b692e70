"""Array types and their namespaces: which module an operation's ``xp`` stands for.

``NAMESPACES[array.__class__]`` is the one place that knows what an array is. NumPy is always there; CuPy joins
when the first CuPy array is handed over, so that ``import microgradnd`` never imports it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import as_dtype, is_numeric
from . import memory, numpy_backend

memory.keep_freed_memory()

NAMESPACES: dict[type, Any] = {np.ndarray: numpy_backend.namespace}


def as_array(x: Any, dtype: Any = None, like: Any = None) -> Any:
    """``x`` as an array of a known type: the only place where NumPy scalars become 0-d arrays.

    CuPy arrays stay CuPy arrays; everything else becomes an array of the library that made ``like``
    (NumPy where it is None). Nothing is copied that need not be. Raises TypeError for values that are no
    numbers.
    """
    if x.__class__ not in NAMESPACES:
        if isinstance(x, np.number) and dtype is None and like is None:  # what NumPy's reductions return
            return NAMESPACES[np.ndarray].asarray(x)
        if type(x).__module__.partition(".")[0] == "cupy":
            register_cupy()
        elif isinstance(x, np.ma.MaskedArray):
            raise TypeError("got a masked array, whose mask would be lost; fill it first: x.filled(value)")
    own = None if x.__class__ is np.ndarray and like is not None else NAMESPACES.get(x.__class__)
    xp = own or NAMESPACES.get(like.__class__) or NAMESPACES[np.ndarray]
    array = xp.asarray(x, as_dtype(dtype) if dtype.__class__ is str else dtype)
    if not is_numeric(array.dtype):
        raise TypeError(f"got {_described(x)}; expected numbers")
    return array


def _described(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return f"an array of dtype {x.dtype}"
    if isinstance(x, list | tuple):
        odd: Any = [x]
        while odd and isinstance(odd[0], list | tuple):
            odd = [part for part in odd[0] if np.asarray(part).dtype.kind not in "biufc"]
        return f"a {type(x).__name__} with {_described(odd[0])} in it" if odd else f"a {type(x).__name__} of objects"
    if isinstance(x, str) or x is None:
        return f"{x!r} ({type(x).__name__})"
    if isinstance(x, int):
        return "an integer that no dtype of NumPy's holds"
    return f"{'an' if type(x).__name__[0] in 'aeiou' else 'a'} {type(x).__name__}"


def register_cupy() -> None:
    """Let CuPy's arrays be known: imports CuPy."""
    from . import cupy_backend

    NAMESPACES.setdefault(cupy_backend.array_type, cupy_backend.namespace)
