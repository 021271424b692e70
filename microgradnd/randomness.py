"""Generators of random numbers, and the memory of where they stood, so that a computation can be repeated."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:  # NumPy imports numpy.random when it is first used: a fifth of the time of its own import
    Rng: TypeAlias = np.random.Generator | int | None


class Draws:
    """Which generators a computation used, and the state in which each was when it was first used."""

    def __init__(self) -> None:
        self.states: dict[np.random.BitGenerator, Any] = {}  # which several generators may share
        self.unseeded: list[np.random.Generator] = []  # made for calls without a generator, in their order


class _Wrapping:
    wrap: Any = None  # while a step is recorded: what gives generators that note what they draw


wrapping = _Wrapping()


def is_noting() -> bool:
    """Whether draws are noted, to be repeated: within mg.checkpoint."""
    return _recording.draws is not None or _recording.repeating is not None


class _Recording(threading.local):
    draws: Draws | None = None
    repeating: Iterator[np.random.Generator] | None = None


_recording = _Recording()


def generator(rng: Rng) -> np.random.Generator:
    """``rng`` itself, or a generator of its own for a seed or None. Operations that draw numbers get theirs here."""
    if rng is None and _recording.repeating is not None:
        found = next(_recording.repeating, None)
        if found is None:
            raise RuntimeError("a function that is repeated draws more random numbers than the first time")
    elif wrapping.wrap is not None and (rng.__class__ is np.random.Generator or hasattr(rng, "variable")):
        return wrapping.wrap(rng)  # type: ignore[no-any-return]
    else:
        found = np.random.default_rng(rng)
    draws = _recording.draws
    if draws is not None:
        draws.states.setdefault(found.bit_generator, found.bit_generator.state)
        if rng is None:
            draws.unseeded.append(found)
    return found


@contextlib.contextmanager
def recorded() -> Iterator[Draws]:
    """Note what is drawn in the block."""
    outer = _recording.draws
    _recording.draws = draws = Draws()
    try:
        yield draws
    finally:
        _recording.draws = outer
        if outer is not None:
            outer.states = draws.states | outer.states
            outer.unseeded += draws.unseeded


@contextlib.contextmanager
def repeated(draws: Draws) -> Iterator[None]:
    """Let the block draw the same numbers again; afterwards the generators stand where they stood before."""
    outer, now = _recording.repeating, {bits: bits.state for bits in draws.states}
    for bits, state in draws.states.items():
        bits.state = state
    _recording.repeating = iter(draws.unseeded)
    try:
        yield
    finally:
        _recording.repeating = outer
        for bits, state in now.items():
            bits.state = state
