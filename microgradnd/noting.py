"""The hook by which functions that are not made of array operations are noted while a step is recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

F = TypeVar("F", bound=Callable[..., Any])


class _Hook:
    # Called with a function's name, the function, its arguments, and those arrays among them that it changes.
    call: Callable[[str, Callable[..., Any], tuple[Any, ...], Sequence[Any]], Any] | None = None
    once: Callable[[], None] | None = None  # told that a step does something which the next call is not likely to do


hook = _Hook()


@contextmanager
def noting_once() -> Iterator[list[bool]]:
    """A list that gets an entry for each thing within that the next call is not likely to do."""
    found: list[bool] = []
    hook.once = lambda: found.append(True)
    try:
        yield found
    finally:
        hook.once = None


@overload
def noted(function: F) -> F: ...
@overload
def noted(*, writes: Callable[..., Sequence[Any]], bound: Callable[..., Any] | None = None) -> Callable[[F], F]: ...
def noted(function: Any = None, *, writes: Any = None, bound: Any = None) -> Any:
    """A function that a recording notes as one call, not by what it does.

    It takes arrays, numbers, and lists and tuples of them, by position, and returns arrays that it has made, in a tuple
    if they are several. What it does depends on nothing else. With ``writes`` it changes arrays among its arguments:
    those that ``writes`` picks out of the same arguments. If the first argument is the same in every replay,
    ``bound(first)`` is called once, and replays call its result with the other arguments.

    >>> @noted(writes=lambda x, bias: [x])
    ... def add_bias(x, bias): ...
    """

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            if hook.call is None:
                return function(*args)
            return hook.call(function.__name__, function, args, () if writes is None else writes(*args))

        function.bound = bound
        return wrapper

    return decorate if function is None else decorate(function)
