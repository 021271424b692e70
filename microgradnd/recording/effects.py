"""What a step reads anew each time, and where it leaves what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..backends import as_array
from ..tensor import Tensor, replace
from .active import CaptureError
from .arrays import RecordedArray, RecordedNumber
from .instructions import Variable
from .places import Place
from .program import Program
from .results import rebuilt
from .session import Session

NUMBERS = (bool, int, float, complex, *(np.dtype(x).type for x in "?bBhHiIlLqQefdFD"))  # that text can give back


class Effects:
    """What one recorded call read and left, for its replays.

    Attributes:
        results: what it returned.
        loaded: places of arrays that are others each time: a replay takes what lies there like an argument.
        numbers: places of numbers that are read anew; equal ones are one, as long as they are equal.
        assigned: places that get another array.
        arrays: these arrays; several places may get the same one.
        written: places that get a number that the step computes.
        fixed: places of numbers that get one which is always the same.
        sets: places that get a plain value, always the same.
        leaves: the places of all gradients.
        cleared: of these, the ones that are None afterwards.
        kept: those whose gradient is a buffer of the program.
        given: those that get a new array in each replay.
    """

    def __init__(self, session: Session) -> None:
        self.structure, self.sets = session.structure, session.sets
        self.results = session.outputs
        self.assigned: list[tuple[Place, Variable]] = []
        self.numbers: dict[Variable, list[Place]] = {}
        self.written: list[tuple[Place, Variable]] = []
        self.fixed: list[tuple[Place, Any]] = []
        self.loaded: list[tuple[Place, Variable]] = []
        for place, handle in session.replaced:
            final = session.finals[id(place)]
            if place.role == "array":
                if type(final) is RecordedArray and final.variable is not handle.variable:
                    self.assigned.append((place, final.variable))
                    handle.variable.kind = "argument"
                    self.loaded.append((place, handle.variable))
            elif place.role == "gradient":
                handle.variable.kind = "argument"
                self.loaded.append((place, handle.variable))
            elif place.role == "number":
                self.numbers.setdefault(handle.variable, []).append(place)
                if type(final) is RecordedNumber:
                    if final.variable is not handle.variable:
                        self.written.append((place, final.variable))
                elif type(final) in NUMBERS:
                    self.fixed.append((place, final))
                else:
                    raise CaptureError(f"capture: {place.path} was a number, and is a {type(final).__name__} now")
        self.arrays = list(dict.fromkeys(v for _, v in self.assigned))
        self.leaves = list(session.reach.of_role("gradient"))
        before = {id(place): handle.variable for place, handle in session.replaced if place.role == "gradient"}
        self.kept: list[tuple[Place, Variable]] = []
        self.given: list[tuple[Place, Variable]] = []
        self.cleared: list[Place] = []
        for place in self.leaves:
            data = session.finals[id(place)]
            if data is None:
                self.cleared.append(place)
            elif type(data) is RecordedArray and data.variable is not before.get(id(place)):
                self.given.append((place, data.variable))
            elif type(data) is not RecordedArray:
                raise CaptureError(f"capture: the step gives {place.path} a gradient that was computed outside of it")

    @property
    def gradients(self) -> list[tuple[Place, Variable]]:
        """All that the step computes."""
        return [*self.kept, *self.given]

    def alone(self, instructions: Iterable[Any]) -> set[Variable]:
        """The gradients that may lie in buffers, which replays write into: what nobody else gets.

        None of those before which one is read: should a branch go elsewhere, it has to be there still.
        """
        read = {v for x in instructions for v in x.reads()}
        accumulated = {id(place.owner) for place, v in self.loaded if place.role == "gradient" and v in read}
        once = [v for place, v in self.given if id(place.owner) not in accumulated]
        counts = Counter([v for _, v in (*self.given, *self.assigned)])  # results are copies of what lies in buffers
        return {v for v in once if v.root is v and counts[v] == 1}

    def settle(self, program: Program, alone: set[Variable]) -> None:
        """Leave out what the program does not read; gradients that are alone and have buffers are kept there."""
        first = {variable: place for place, variable in reversed(self.loaded)}  # several places may hold one array
        self.loaded = [(place, variable) for variable, place in first.items() if variable in program.used]
        kept = alone & program.planned.keys()
        self.kept = [(place, v) for place, v in self.given if v in kept]
        self.given = [(place, v) for place, v in self.given if v not in kept]

    def returned(self) -> list[Variable]:
        """What a replay computes for :meth:`leave`."""
        return [*self.results, *self.arrays, *(v for _, v in self.given)]

    def leave(self, values: tuple[Any, ...]) -> Any:
        """Put what a replay has computed where the step puts it; what the step returns."""
        for place, value in self.sets:
            place.set(value)
        for place in self.cleared:
            place.owner.grad = None
        rest: Iterator[Any] = iter(values[len(self.results) :])
        if self.assigned:
            arrays = {v: as_array(next(rest)) for v in self.arrays}
            for place, v in self.assigned:
                if place.owner.__class__ is Tensor:
                    replace(place.owner, arrays[v])
                else:
                    place.set(arrays[v])
        for place, _ in self.given:
            place.owner.grad = as_array(next(rest))
        return rebuilt(self.structure, iter(values))
