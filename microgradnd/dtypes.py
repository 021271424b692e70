"""Kinds of dtypes. bfloat16 is the package ml_dtypes': NumPy computes with it, but knows no kind for it.

It is told by its character, as dtypes of NumPy are: ``is_floating(array.dtype)`` costs no more than a comparison.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NARROW = ("e", "E")  # float16 and bfloat16
BFLOAT16 = "E"
FOREIGN = 256  # from here on dtypes are other libraries', such as floats of 8 bits


def is_floating(dtype: Any) -> bool:
    """Whether a gradient can have this dtype."""
    return bool(dtype.kind == "f" or dtype.char == BFLOAT16)


def is_numeric(dtype: Any) -> bool:
    """Whether a tensor can have this dtype: booleans, integers, floats and complex numbers of NumPy, bfloat16."""
    return bool(dtype.kind in "biufc" and dtype.num < FOREIGN) or bool(dtype.char == BFLOAT16)


def is_narrow(dtype: Any) -> bool:
    """Whether it is float16 or bfloat16, in which sums are not to be taken."""
    return dtype.char in NARROW


def as_dtype(dtype: Any) -> Any:
    """``np.dtype(dtype)``, with bfloat16 too. ImportError, saying what to install, where that is asked for in vain."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        try:
            import ml_dtypes  # noqa: F401  # gives NumPy the name
        except ImportError as error:
            raise ImportError(
                "bfloat16 needs the package ml_dtypes: pip install 'microgradnd[bfloat16]'", name="ml_dtypes"
            ) from error
    return np.dtype(dtype)


def eps(dtype: Any) -> float:
    """The distance from 1 to the next larger number of a floating-point dtype."""
    return 2.0**-7 if dtype.char == BFLOAT16 else float(np.finfo(dtype).eps)


def cast(x: Any, dtype: Any) -> Any:
    """``x.astype(dtype)``; what is beyond the range of float16 becomes infinite without a warning, which is part of
    scaling losses."""
    if dtype.char not in NARROW:
        return x.astype(dtype)
    with np.errstate(over="ignore"):
        return x.astype(dtype)
