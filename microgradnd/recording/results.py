"""What a step returns, and how it is put together again from a replay's arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..backends import as_array
from ..tensor import Tensor, new
from .instructions import Variable


class Output:
    """A variable in the place of an array that a step returns."""

    __slots__ = ("is_tensor", "variable")

    def __init__(self, variable: Variable, is_tensor: bool) -> None:
        self.variable, self.is_tensor = variable, is_tensor

    def rebuilt(self, value: Any) -> Any:
        if not self.is_tensor:
            return value
        tensor = new(Tensor)
        tensor._data = value if value.__class__ is np.ndarray else as_array(value)
        tensor._node = None
        return tensor


def outputs(structure: Any) -> Iterator[Output]:
    """The outputs in what a step returns, in order."""
    if structure.__class__ is Output:
        yield structure
    elif structure.__class__ in (tuple, list):
        for part in structure:
            yield from outputs(part)
    elif structure.__class__ is dict:
        yield from outputs(list(structure.values()))


def rebuilt(structure: Any, values: Iterator[Any]) -> Any:
    kind = structure.__class__
    if kind is Output:
        return structure.rebuilt(next(values))
    if kind in (tuple, list):
        return kind([rebuilt(part, values) for part in structure])
    if kind is dict:
        return {name: rebuilt(part, values) for name, part in structure.items()}
    return structure


def detached(value: Any) -> Any:
    """Results of a step as a replay returns them: constants."""
    if isinstance(value, Tensor):
        return value.detach()
    if value.__class__ in (tuple, list):
        return value.__class__([detached(part) for part in value])
    if value.__class__ is dict:
        return {key: detached(part) for key, part in value.items()}
    return value
