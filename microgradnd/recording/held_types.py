"""What the program's functions get for ``type`` while a step is recorded: of a handle, the type of what it holds."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .arrays import HANDLES


class _Type(type):
    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if len(args) == 1 and builtins.type(args[0]) in HANDLES:
            return builtins.type(args[0].value)
        found = builtins.type(*args, **keywords)
        return cls if found is builtins.type else found

    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, builtins.type)

    def __subclasscheck__(cls, x: Any) -> bool:
        return issubclass(x, builtins.type)

    def __eq__(cls, other: Any) -> bool:
        return other is cls or other is builtins.type

    def __hash__(cls) -> int:
        return hash(builtins.type)


class HeldType(type, metaclass=_Type):
    """In place of ``type``."""


@contextmanager
def held_types(scopes: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Within the block ``type`` is :class:`HeldType` in these global variables, where it is Python's own."""
    changed = [scope for scope in scopes if "type" not in scope]
    for scope in changed:
        scope["type"] = HeldType
    try:
        yield
    finally:
        for scope in changed:
            if scope.get("type") is HeldType:
                del scope["type"]
