"""The hook by which functions that are not made of array operations are noted while a step is recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


class _Hook:
    call: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any] | None = None


hook = _Hook()


def noted(function: F) -> F:
    """A function that a recording notes as one call, not by what it does."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args) if hook.call is None else hook.call(function.__name__, function, args)

    return wrapper  # type: ignore[return-value]
