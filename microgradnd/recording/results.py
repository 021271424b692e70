"""What a step returns, and how it is put together again from a replay's arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from ..tensor import Tensor, constant


class Output:
    """What stands in the place of an array that a step returns."""

    __slots__ = ("is_tensor",)

    def __init__(self, is_tensor: bool) -> None:
        self.is_tensor = is_tensor


def data_of(x: Any) -> Any:
    """The array of a tensor; other values as they are."""
    return x._data if type(x) is Tensor else x


def like(container: Any, parts: list[Any]) -> Any:
    """A tuple, list or dict of the same kind with other parts; its class does not fill it in its own way."""
    if isinstance(container, dict):
        new_one: Any = copy.copy(container)
        for key, part in zip(container, parts, strict=True):
            dict.__setitem__(new_one, key, part)
        return new_one
    if isinstance(container, list):
        new_one = list.__new__(type(container))
        list.extend(new_one, parts)
        if hasattr(container, "__dict__"):
            new_one.__dict__.update(container.__dict__)
        return new_one
    return type(container)(*parts) if hasattr(container, "_fields") else type(container)(parts)


def mapped(x: Any, function: Callable[[Any], Any]) -> Any:
    """Nested tuples, lists and dicts of what ``function`` gives for everything else in them."""
    if isinstance(x, tuple | list | dict):
        parts = x.values() if isinstance(x, dict) else x
        return like(x, [mapped(part, function) for part in parts])
    return function(x)


def rebuilt(structure: Any, values: Iterator[Any]) -> Any:
    """What a step returned, with these arrays in it."""

    def value(x: Any) -> Any:
        if type(x) is not Output:
            return x
        return constant(next(values)) if x.is_tensor else next(values)

    return mapped(structure, value)


def detached(value: Any) -> Any:
    """Results of a step as a replay returns them: constants."""
    return mapped(value, lambda x: x.detach() if isinstance(x, Tensor) else x)
