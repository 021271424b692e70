"""What a recording consists of: instructions, and the variables that they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .recorder import Recorder


class Variable:
    """A value that a step computes or gets: what is known of it before it is computed."""

    __slots__ = ("array", "dtype", "kind", "name", "root", "shape", "strides")

    def __init__(self, value: Any, kind: str, name: str, root: Variable | None = None) -> None:
        is_array = isinstance(value, np.ndarray)
        self.kind = (
            kind  # "input", "argument", "constant", "made", or without an array's attributes "number" or "generator"
        )
        self.name = name
        self.root = self if root is None else root  # the variable whose memory this is a view of
        self.shape: Any = value.shape if is_array else None
        self.strides: Any = value.strides if is_array else None
        self.dtype: Any = value.dtype if is_array else None
        self.array: Any = None  # of inputs and constants, the array itself


class Instruction:
    """One call: ``function(*args, **kwargs)``, with variables for arrays."""

    __slots__ = ("args", "function", "is_tuple", "kind", "kwargs", "name", "note", "results", "writes")

    def __init__(self, kind: str, name: str, function: Any, args: Any, kwargs: Any, note: str) -> None:
        # How it is written down: "operator", "in place", "ufunc", "reduce", "function", "method", "attribute",
        # "getitem", "setitem", "create", "draw", "branch", "whole" (a function of ours) or "kernel" (a compiled one).
        self.kind = kind
        self.name = name
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.note = note  # what it belongs to: an operation, its gradient, an optimiser
        self.results: list[Variable] = []  # new ones, in the order of the result's parts
        self.is_tuple = False  # whether there are several, to be unpacked
        self.writes: list[Variable] = []  # whose memory is changed

    def reads(self) -> Iterator[Variable]:
        return variables((self.args, self.kwargs))


def variables(value: Any) -> Iterator[Variable]:
    """All variables in nested tuples, lists and dicts."""
    if type(value) is Variable:
        yield value
    elif type(value) in (tuple, list):
        for part in value:
            yield from variables(part)
    elif type(value) is dict:
        yield from variables(list(value.values()))


class CaptureError(RuntimeError):
    """A step can't be recorded, or its recording does not repeat what the step does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if is_recording() and active.recorder is not None and active.recorder.trouble is None:
            active.recorder.trouble = self  # also where the step catches it


class _Active:
    recorder: Recorder | None = None


active = _Active()


def recorder() -> Recorder:
    """The active recorder."""
    if active.recorder is None:
        raise CaptureError(
            "capture: this array belongs to a step that was recorded before; a captured step hands out what it returns"
        )
    return active.recorder


def is_recording() -> bool:
    """Whether a step is being recorded by this thread."""
    return active.recorder is not None and active.recorder.is_this_thread()
