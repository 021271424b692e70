"""What the program's functions get for ``type`` while a step is recorded: of a handle, the type of what it holds."""

from __future__ import annotations

import builtins
from types import CodeType
from typing import Any

from .arrays import HANDLES


class _Type(type):
    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if len(args) == 1 and builtins.type(args[0]) in HANDLES:
            return builtins.type(args[0].value)
        found = builtins.type(*args, **keywords)
        return cls if found is builtins.type or found is _Type else found

    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, builtins.type)

    def __subclasscheck__(cls, x: Any) -> bool:
        return issubclass(x, builtins.type)

    def __getitem__(cls, index: Any) -> Any:
        return builtins.type[index]

    def __eq__(cls, other: Any) -> bool:
        return other is cls or other is builtins.type

    def __hash__(cls) -> int:
        return hash(builtins.type)

    def __repr__(cls) -> str:
        return repr(builtins.type)


class HeldType(type, metaclass=_Type):
    """``type``, as a global variable of the program: neither profilers nor handles see that Python's own is called."""


HeldType.__name__ = HeldType.__qualname__ = "type"


class HeldTypes:
    """Global variables of functions in which ``type`` is :class:`HeldType` for a while."""

    def __init__(self) -> None:
        self._scopes: list[dict[str, Any]] = []

    def put(self, code: CodeType, scope: dict[str, Any]) -> None:
        """Where a function names ``type``, and that is Python's own."""
        if "type" in code.co_names and "type" not in scope:
            scope["type"] = HeldType
            self._scopes.append(scope)

    def take_away(self) -> None:
        for scope in self._scopes:
            if scope.get("type") is HeldType:
                del scope["type"]
        self._scopes.clear()
