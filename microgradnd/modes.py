"""Settings that hold within a ``with`` block: of the current thread (modes), of the whole process (choices)."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class Setting(threading.local):
    """A setting of each thread, and what it was outside of the blocks that the thread is in."""

    def __init__(self, first: Any) -> None:
        self.current = first
        self.outer: list[Any] = []


class Mode:
    """The base of context managers that are decorators too: within, ``setting`` is ``value``."""

    setting: Setting
    value: Any

    def __enter__(self) -> None:
        self.setting.outer.append(self.setting.current)
        self.setting.current = self.value

    def __exit__(self, *exception: object) -> None:
        self.setting.current = self.setting.outer.pop()

    def __call__(self, function: F) -> F:
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        if flags & (0x20 | 0x80 | 0x200):  # generator, coroutine, asynchronous generator
            name = type(self).__name__
            raise TypeError(
                f"{name}: {function.__name__} is a generator or coroutine function, whose body runs "
                f"after the decorated call returned; write `with mg.{name}(...):` inside it"
            )

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]


class Choice:
    """The base of settings of the process: they hold from when they are made on, or within each ``with`` block."""

    current: Any

    def __init__(self, choice: Any) -> None:
        self._choice = choice
        self._before = [self.current]  # what blocks go back to: the first one to what held before this object was made
        self._blocks = 0
        self.choose(choice)

    @classmethod
    def choose(cls, choice: Any) -> None:
        cls.current = choice

    def __enter__(self) -> None:
        if self._blocks == len(self._before):
            self._before.append(self.current)
        self.choose(self._choice)
        self._blocks += 1

    def __exit__(self, *exception: object) -> None:
        self._blocks -= 1
        self.choose(self._before.pop())
