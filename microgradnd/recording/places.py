"""Places: where a value is kept, and what is in values that have no places of their own."""

from __future__ import annotations

import functools
import gc
import itertools
import random
from array import array
from contextvars import ContextVar
from operator import is_, length_hint
from typing import Any

import numpy as np

FIRST = 16  # results of a cache that are looked at
GONE = object()  # what lies in a place that is there no more
PRESENT = object()  # stands for a value that would stay in memory
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.dtype, np.generic)


class Place:
    """Where a value is kept: an item of a list or dict, or an attribute (``cell_contents`` of a closure's cell)."""

    __slots__ = ("is_guarded", "is_item", "is_typed", "key", "owner", "path", "role", "value")

    def __init__(self, owner: Any, key: Any, is_item: bool, path: str, role: str, value: Any) -> None:
        self.is_guarded = True  # whether each replay looks at it
        self.is_typed = False  # of a number, whether replays find one of the same type
        self.owner, self.key, self.is_item = owner, key, is_item
        self.path = path
        self.role = role  # "plain", "array", "tuple" with arrays, "node", "gradient", "generator", "number"
        self.value = value

    def get(self) -> Any:
        return self.owner[self.key] if self.is_item else getattr(self.owner, self.key)

    def look(self) -> Any:
        """What lies there, or GONE."""
        try:
            return self.get()
        except (AttributeError, IndexError, KeyError, ValueError):
            return GONE

    def expression(self, owner: str, key: str = "") -> str:
        """What :meth:`get` does, as text."""
        return f"{owner}[{key or repr(self.key)}]" if self.is_item else f"{owner}.{self.key}"

    def set(self, value: Any) -> None:
        if self.is_item:
            self.owner[self.key] = value
            return
        try:
            setattr(self.owner, self.key, value)
        except AttributeError:  # of a frozen dataclass
            object.__setattr__(self.owner, self.key, value)


def is_plain(x: Any) -> bool:
    """Whether x is a plain value, or a tuple of them."""
    return isinstance(x, PLAIN) or (type(x) is tuple and all(map(is_plain, x)))


def is_equal(x: Any, y: Any) -> bool:
    """Whether plain values are equal to the last bit: 0.0 is not -0.0."""
    if type(x) is tuple and type(y) is tuple:
        return len(x) == len(y) and all(map(is_equal, x, y))
    return isinstance(x, PLAIN) and type(x) is type(y) and bool(x == y) and repr(x) == repr(y)


def snapshot(owner: Any) -> Any:
    """What is in a set, a queue of plain values, a context variable, an array of Python's or one of strange values.

    Of an iterator how far it is.
    """
    if isinstance(owner, ContextVar):
        return owner.get(None)
    if hasattr(type(owner), "__length_hint__"):
        return length_hint(owner)
    if isinstance(owner, bytearray):
        return bytes(owner)
    return owner.tobytes() if isinstance(owner, np.ndarray | array) else tuple(owner)


def is_unchanged(owner: Any, content: Any) -> bool:
    """Whether it still holds what :func:`snapshot` gave."""
    if isinstance(owner, ContextVar):
        return owner.get(None) is content
    if hasattr(type(owner), "__length_hint__"):
        return bool(length_hint(owner) == content)
    if isinstance(owner, memoryview):
        try:
            return bool(bytes(owner) == content)
        except ValueError:  # it has been released
            return False
    if isinstance(owner, np.ndarray | array | bytearray):
        return bool(snapshot(owner) == content)
    return len(owner) == len(content) and all(x is y or is_equal(x, y) for x, y in zip(owner, content, strict=True))


def are_keys(owner: Any, keys: list[Any]) -> bool:
    """Whether a dict has these keys in this order; of tensors, whose == is no answer, the same ones."""
    return len(owner) == len(keys) and all(
        x is y or (type(x) is type(y) and hash(x) == hash(y) and bool(x == y)) for x, y in zip(owner, keys, strict=True)
    )


class Look:
    """A way to see whether an object is as it was: a condition on it and on what is expected, as text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._condition = eval(f"lambda x, expected: {text.format('x', 'expected')}")

    def holds(self, x: Any, expected: Any) -> bool:
        try:
            return bool(self._condition(x, expected))
        except LookupError:  # it has no such key any more
            return False


LENGTH = Look("len({}) == {}")
KEYS = Look("[*{}] == {}")  # and their order
SAME = Look("are_keys({}, {})")  # keys that are objects, and their order
WITHOUT = Look("{}.keys().isdisjoint({})")
WITHOUT_KEY = Look("{1} not in {0}")
WITHOUT_ATTRIBUTE = Look("not hasattr({}, {})")
WHOLE = Look("is_unchanged({}, {})")


def beginning_of(cache: Any) -> Any:
    """What shows whether a function's cache has been cleared: its first results; of a limited one all, and its count.

    One that grows, or drops what it has no room for, goes on.
    """
    kept = dict_of(cache)
    if kept is not None:
        return [*itertools.islice(kept.values(), FIRST)]
    return cache.cache_info().misses, cached_values(cache)


def is_uncleared(cache: Any, beginning: Any) -> bool:
    """Whether a function's cache still begins as :func:`beginning_of` says; one that was empty has to be."""
    kept = dict_of(cache)
    if kept is not None:
        same = len(kept) >= len(beginning) and all(map(is_, beginning, kept.values()))
        return same and bool(kept) == bool(beginning)
    misses, values = beginning
    now = cache.cache_info()
    if now.misses < misses or bool(now.misses) != bool(misses):
        return False
    return now.currsize == now.maxsize or {*map(id, values)} <= {*map(id, cached_values(cache))}


CACHE = Look("is_uncleared({}, {})")


@functools.cache
def kind_of(key: Any) -> Look:
    """The type of what a dict or list has there."""
    return Look(f"{{}}[{key!r}].__class__ is {{}}")


def cached_values(cache: Any) -> list[Any]:
    """What a function with functools.lru_cache has kept: in a dict, or in links that are found with their contents."""
    kept = dict_of(cache)
    if kept is not None:
        return list(kept.values())
    parts = [x for x in gc.get_referents(cache) if x is not vars(cache) and not isinstance(x, type)]
    links = [
        part
        for part in parts
        if isinstance(part, dict) and {type(x).__name__ for x in part.values()} <= {"_lru_list_elem"}
    ]
    return [x for x in parts if not any(x is part for part in links)]


def dict_of(cache: Any) -> dict[Any, Any] | None:
    """The dict of results of a function with functools.cache; None for a cache of limited size."""
    if cache.cache_info().maxsize is not None:
        return None
    return next(x for x in gc.get_referents(cache) if isinstance(x, dict) and x is not vars(cache))


def random_state(generator: Any) -> Any:
    """Where a random generator of Python or NumPy stands."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return repr(generator.get_state(legacy=False))
    return repr(generator.bit_generator.state)
