"""What a step returns, and how it is put together again from a replay's arrays."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from ..tensor import Tensor, constant
from .instructions import Variable


class Output:
    """A variable in the place of an array that a step returns."""

    __slots__ = ("is_tensor", "variable")

    def __init__(self, variable: Variable, is_tensor: bool) -> None:
        self.variable, self.is_tensor = variable, is_tensor

    def rebuilt(self, value: Any) -> Any:
        return constant(value) if self.is_tensor else value


def data_of(x: Any) -> Any:
    """The array of a tensor; other values as they are."""
    return x._data if type(x) is Tensor else x


def like(container: Any, parts: list[Any]) -> Any:
    """A tuple, list or dict of the same kind with other parts."""
    if isinstance(container, dict):
        new_one = copy.copy(container)
        new_one.update(zip(container, parts, strict=True))
        return new_one
    return type(container)(*parts) if hasattr(container, "_fields") else type(container)(parts)


def outputs(structure: Any) -> Iterator[Output]:
    """The outputs in what a step returns, in order."""
    if type(structure) is Output:
        yield structure
    elif isinstance(structure, tuple | list):
        for part in structure:
            yield from outputs(part)
    elif isinstance(structure, dict):
        yield from outputs(list(structure.values()))


def rebuilt(structure: Any, values: Iterator[Any]) -> Any:
    kind = type(structure)
    if kind is Output:
        return structure.rebuilt(next(values))
    if isinstance(structure, tuple | list):
        return like(structure, [rebuilt(part, values) for part in structure])
    if isinstance(structure, dict):
        return like(structure, [rebuilt(part, values) for part in structure.values()])
    return structure


def detached(value: Any) -> Any:
    """Results of a step as a replay returns them: constants."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return like(value, [detached(part) for part in value])
    if isinstance(value, dict):
        return like(value, [detached(part) for part in value.values()])
    return value
