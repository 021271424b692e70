"""Sums and products of float16 and bfloat16, which are taken in float32 and rounded once.

The first question is whether an element takes two bytes: that costs others least.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..dtypes import BFLOAT16, NARROW, cast


def computing_in_float32(
    function: Callable[..., Any], chars: tuple[str, ...] = NARROW, first: int = 0
) -> Callable[..., Any]:
    """A function of arrays, the ``first`` argument and later ones: where these have one dtype of ``chars`` it computes
    in float32, and gives their dtype.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if len(args) <= first or getattr(args[first], "itemsize", 0) != 2:
            return function(*args, **kwargs)
        dtypes = [x.dtype for x in args if hasattr(x, "dtype")]
        if dtypes[0].char not in chars or any(dtype != dtypes[0] for dtype in dtypes):
            return function(*args, **kwargs)
        wide = [x.astype(np.float32) if hasattr(x, "dtype") else x for x in args]
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is part of scaling losses
            return cast(function(*wide, **kwargs), dtypes[0])

    return wrapper


def promoting(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The function ``where`` with bfloat16 promoted as by operators: alone it stays, and beside Python's numbers.

    (Beside Python's floats it does since version 0.7 of ml_dtypes, which made float32 of them before.)
    """

    def where(condition: Any, x: Any, y: Any) -> Any:
        if getattr(x, "itemsize", 0) != 2 and getattr(y, "itemsize", 0) != 2:
            return plain(condition, x, y)
        kinds = [getattr(part, "dtype", int if part.__class__ is int else float) for part in (x, y)]
        if BFLOAT16 not in [getattr(kind, "char", None) for kind in kinds]:
            return plain(condition, x, y)
        dtype = np.multiply.resolve_dtypes((*kinds, None))[-1]
        x, y = (part.astype(dtype, copy=False) if hasattr(part, "astype") else part for part in (x, y))
        return plain(condition, x, y).astype(dtype, copy=False)  # CuPy makes float32 of bfloat16

    return where
