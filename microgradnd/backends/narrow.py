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
    """The function ``where`` with bfloat16 promoted as by operators: alone it stays, beside Python's floats float32."""

    def where(condition: Any, x: Any, y: Any) -> Any:
        if getattr(x, "itemsize", 0) != 2 and getattr(y, "itemsize", 0) != 2:
            return plain(condition, x, y)
        chars = [getattr(getattr(part, "dtype", None), "char", None) for part in (x, y)]
        if BFLOAT16 not in chars:
            return plain(condition, x, y)
        x, y = (np.float32(part) if part.__class__ is float else part for part in (x, y))
        out = plain(condition, x, y)
        return out.astype(x.dtype) if chars == [BFLOAT16, BFLOAT16] else out

    return where
