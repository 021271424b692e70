"""Numbers among the arguments of a function or layer: errors name it, the argument, and what came instead."""

from __future__ import annotations

import operator
from typing import Any


def integer(function: str, argument: str, value: Any) -> int:
    """``value`` as an integer of Python's. Raises TypeError for others, also for floats without a fraction."""
    try:
        return operator.index(value)
    except (TypeError, ValueError):  # of tensors of several elements
        raise TypeError(f"{function}: {argument} must be an integer, got {value!r}") from None


def number(function: str, argument: str, value: Any) -> float:
    """``value`` as a float of Python's; a number that is being recorded stays what it is.

    Raises TypeError for strings, None, arrays with axes, and tensors that require a gradient, which would be lost.
    ``function`` is empty within an operation, whose errors get its name anyway.
    """
    if not hasattr(value, "__float__") or getattr(value, "ndim", False) or getattr(value, "requires_grad", False):
        raise TypeError(f"{function}: {argument} must be a number, got {value!r}".removeprefix(": "))
    return value if hasattr(value, "variable") else float(value)
