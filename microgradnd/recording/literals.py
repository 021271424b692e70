"""Constants as Python text."""

from __future__ import annotations

import enum
import math
from typing import Any

import numpy as np

from ..dtypes import BFLOAT16
from .active import CaptureError


def literal(value: Any, term: Any = None) -> str:
    """A constant as Python text."""
    term = term or literal
    if isinstance(value, enum.Enum):  # that is an integer or a string too
        return literal(value.value, term)
    if isinstance(value, float) and not isinstance(value, np.generic):
        return repr(value) if math.isfinite(value) else f"np.{value}" if not value < 0 else "-np.inf"
    if value is ...:
        return "..."
    if isinstance(value, slice):
        return f"slice({', '.join(term(x) for x in (value.start, value.stop, value.step))})"
    if isinstance(value, np.dtype):
        if value.char == BFLOAT16:
            return "np.dtype('bfloat16')"
        return f"np.{value.name}" if value.isnative else repr(value.str)
    if isinstance(value, type):
        return f"np.{value.__name__}" if issubclass(value, np.generic) else value.__name__
    if isinstance(value, np.generic):
        if isinstance(value.item(), np.generic):
            raise CaptureError(f"capture: a number of {value.dtype}, which is not recorded")
        inner = literal(value.item())
        return f"np.{type(value).__name__}({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(term, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(term, value))}{',' * (len(value) == 1)})"
    if value is np:
        return "np"
    return repr(value)


def slice_text(part: slice, term: Any) -> str:
    """A slice as it stands between brackets."""
    start, stop = ("" if x is None else term(x) for x in (part.start, part.stop))
    return f"{start}:{stop}" + ("" if part.step is None else f":{term(part.step)}")
