"""One recording of a step: how it is made, when it holds, and how it is replayed."""

from __future__ import annotations

import inspect
import itertools
import linecache
import re
import sys
import weakref
from collections import Counter
from sys import getrefcount
from typing import Any

import numpy as np

from ..backends import NAMESPACES
from ..inplace import next_change, record_of
from ..tensor import Tensor
from .active import CaptureError
from .arrays import RecordedArray
from .effects import Effects
from .graph import graphed, refuse
from .guard import (
    attempt_function,
    generators_in,
    layout,
    layout_of,
    leaves,
    missed,
    settings,
    which_generators,
)
from .instructions import Variable, current_device, current_stream, is_array
from .places import PRESENT, Place
from .program import Program
from .recorder import flat
from .results import Output, data_of
from .session import Session
from .text import Text
from .watch import Watch

_numbers = itertools.count()  # of recordings, by which tracebacks and errors find their text
ARGUMENTS = "the arguments"
PARTED = "one array in several places, such as a parameter and its optimiser,"
UNEQUAL = "numbers of the optimiser that were equal"


class Diverged(Exception):
    """A replay has come to a branch that goes another way than in the recording."""


class Recording:
    """What one call of a step did, as a program that does the same for other values.

    Attributes:
        source: the program as text.
        calls: how often it was replayed.
        diverged: how often a branch in it went another way.
        verified: whether a replay was compared with the step itself.
        once: whether it does something that the next call is not likely to do.
        arguments, keywords: kind and layout of each argument, those by keyword last; the names of these.
        in_order: whether the step sees the order of keywords.
        merged: places of numbers that were equal, and are read once as long as they are.
        watch: what has to stay as it is.
        kept_leaves, buffers: the leaves whose gradients lie in buffers of the program, and these.
        other_leaves: the other ones, and whether they had no gradient.
        records: of the arrays that a replay changes in place: see microgradnd/inplace.py.
        is_plain: whether a replay gives one tensor and leaves nothing else anywhere.
    """

    def __init__(self, session: Session, graph: bool = False) -> None:
        self.settings, self.layout = session.settings, session.layout
        self.arguments, self.keywords = session.layouts, session.keywords
        self.in_order = session.in_order
        self.calls = self.diverged = 0
        self._quiet: Any = dict.fromkeys(session.quiet, "ignore")  # for np.errstate
        self.verified, self.once = False, session.once
        self.reach, self.generators = session.reach, session.generators
        self.known_generators = [place.value for place in self.reach.of_role("generator")]
        self.which_generators = which_generators(session.given, self.known_generators)
        self.device = session.device  # the number of the GPU, where a program uses one
        self.graph = graph
        self._mappings: dict[int, str] = {}  # what numbers lie in, by name
        self._step: Any = None
        self.attempt: Any = missed  # replays for arguments of a step, if everything is as the last replay left it
        self._scope_of_step: dict[str, Any] = {}
        self._scope_of_attempt: dict[str, Any] = {}
        self.buffers: list[Any] = []
        self.stream = 0  # on which a device's buffers are used
        self._unheld: list[int] = []
        self.effects = Effects(session)
        self._plan(session)
        self._write(session)
        self._prepare(session)
        assigned = [place for place, _ in self.effects.assigned]
        self.watch = Watch(self.reach, set(map(id, assigned)))
        for place in (*self.effects.leaves, *assigned):  # of which each call has others: what lay there may go
            place.value = None if place.value is None else PRESENT
        for _, variable in self.effects.loaded:
            variable.array = None

    def __repr__(self) -> str:
        arrays = [(kind, layout) for kind, layout in self.arguments if kind is Tensor or kind in NAMESPACES]
        arguments = [f"{kind.__name__} {next(x for x in layout if type(x) is tuple)}" for kind, layout in arrays]
        state = "" if self.verified else ", not compared so far"
        return f"<recording for {', '.join(arguments) or 'no arrays'}: {self.calls} replays{state}>"

    # Making

    def _plan(self, session: Session) -> None:
        """The program, and which gradients it leaves in buffers."""
        effects = self.effects
        alone = effects.alone(session.instructions)
        self.program = Program(
            session.instructions, effects.returned(), alone, [number for _, number in effects.written]
        )
        effects.settle(self.program, alone)
        if self.graph:
            refuse(self.program, session.arguments, effects)

    def _write(self, session: Session) -> None:
        """The program's text, compiled, and what it names."""
        program, effects, mappings = self.program, self.effects, self._mappings
        extra = [variable for _, variable in effects.loaded]
        self._scope: dict[str, Any] = {"np": np, "Diverged": Diverged}
        if self.device is not None:
            self._scope["cp"] = sys.modules["cupy"]

        def text_of(place: Place) -> str:
            if id(place.owner) not in mappings:
                wish = re.sub(r"\W", "_", session.short(place.path.rpartition(".")[0]), flags=re.ASCII)
                wish = f"_{wish}" if wish[:1].isdigit() else wish or "numbers"
                while wish in self._scope:
                    wish += "_"
                mappings[id(place.owner)], self._scope[wish] = wish, place.owner
            return f"{mappings[id(place.owner)]}[{place.key!r}]"

        written_places = {id(place) for place, _ in effects.written}
        numbers = {}
        for variable, places in effects.numbers.items():
            if variable in program.used:
                # Step counts and what the step names are what they are; of other numbers the optimiser takes the float.
                exact = [place for place in places if place.is_typed or id(place) in written_places]
                numbers[variable] = text_of(exact[0]) if exact else f"float({text_of(places[0])})"
        written = {text_of(place): number for place, number in (*effects.written, *effects.fixed)}
        self.merged = [places for places in effects.numbers.values() if len(places) > 1]
        arrays = {place.path: handle.variable for place, handle in session.replaced if place.role == "array"}
        gradients = {v: arrays.get(place.path, session.short(place.path)) for place, v in effects.gradients}
        text = Text(
            program,
            [*session.arguments, *extra],
            numbers,
            written,
            effects.returned(),
            session.name,
            set(self._scope),
            gradients,
        )
        self.source, self._text = text.source, text
        self._arguments = session.arguments
        self._inputs = [(name, v) for v, name in text.names.items() if v.kind in ("input", "constant")]
        self.functions = text.functions
        self.parameters = [text.names[v] for v in session.arguments]
        self.array_parameters = {text.names[v]: (v.shape, v.dtype) for v in session.arguments if v.shape is not None}
        self._scope |= text.functions
        for variable, word in text.names.items():
            if variable.kind == "generator":
                self._scope[word] = variable.array
        self._filename = filename = f"<captured {session.name} {next(_numbers)}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        weakref.finalize(self, linecache.cache.pop, filename, None)
        self._code = compile(self.source, filename, "exec")

    def _prepare(self, session: Session) -> None:
        """What replays look at, before and after."""
        self._by_variable: dict[Variable, list[Place]] = {}  # the places that hold the same array
        for place, handle in session.replaced:
            if place.role == "array":
                self._by_variable.setdefault(handle.variable, []).append(place)
        # Places that held one array when the step was recorded, which a replay takes from one of them.
        self._loaded_as_one = [x for v, x in self._by_variable.items() if v.kind == "argument" and len(x) > 1]
        self.kept_leaves = [place.owner for place, _ in self.effects.kept]
        kept = set(map(id, self.kept_leaves))
        self.other_leaves = [(x.owner, x.value is None) for x in self.effects.leaves if id(x.owner) not in kept]
        self._find_changes(session)
        effects = self.effects
        changes = effects.sets or effects.assigned or effects.given or effects.cleared
        self._fills = any(place.value is None for place, _ in effects.kept)  # leaves that had no gradient
        is_tensor = isinstance(effects.structure, Output) and effects.structure.is_tensor
        self.is_plain = is_tensor and not (changes or self._fills or self.program.draws or self._quiet)

    def _find_changes(self, session: Session) -> None:
        """Whose memory a replay writes into: that of arrays in places, and of arguments.

        An input that is an argument has its root, since arguments come first; constants are never written into.
        """
        changed = {v.root for x in self.program.body for v in x.writes}
        self._written = [root for root in changed if root.array is not None and root.kind != "argument"]
        self._changes_arguments = any(v.root in changed for v in session.arguments)
        self._refuse_shared(session, changed)
        taken = [*session.arguments, *(v for _, v in self.effects.loaded)]  # the arrays that a replay is called with
        self._written_positions = [i for i, v in enumerate(taken) if v.kind == "argument" and v.root in changed]
        self._changing = [
            place
            for place, handle in session.replaced
            if any(type(x) is RecordedArray and x.variable.root in changed for x in flat([handle]))
        ]

    def _refuse_shared(self, session: Session, changed: set[Variable]) -> None:
        """Refuse arrays that the step leaves in one piece of memory and changes in place in the next call."""
        left = Counter(v.root for v in self.effects.arrays)
        final = {id(place): v for place, v in self.effects.assigned}
        for place, handle in session.replaced:
            if id(place) in final and left[final[id(place)].root] > 1 and handle.variable.root in changed:
                raise CaptureError(
                    f"capture: the step changes {place.path} in place and leaves another array there, which shares "
                    "memory with one that it leaves elsewhere; replays leave separate arrays. Leave a copy"
                )

    def bind(self) -> None:
        """Make the buffers and the function, for the arrays that are there now."""
        self.release()
        self.stream = 0 if self.device is None else current_stream()
        self._bind_arrays()
        scope = dict(self._scope)
        scope.update((name, variable.array) for name, variable in self._inputs)
        exec(self._code, scope)
        step = graphed(scope["step"], self._arguments) if self.graph else scope["step"]
        self._scope_of_step = scope
        self.buffers = [scope[self._text.names[variable]] for _, variable in self.effects.kept]
        self.records = [record_of(v.array) for v in self._written]
        self.attempt, self._scope_of_attempt, self._unheld = attempt_function(self, step)
        if self._written_positions or self._loaded_as_one:  # seen to by why_not and replay alone: rare
            self.attempt = missed
        self._step = step  # last: it says that all is there

    def _bind_arrays(self) -> None:
        for variable, places in self._by_variable.items():
            if variable.kind == "input":
                variable.array = places[0].get()

    # Holding

    def why_not(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why the recording does not hold, or None where it does; arrays in other memory are bound."""
        if layout(args, kwargs) != self.layout or (self.in_order and tuple(kwargs) != self.keywords):
            return ARGUMENTS
        if self.which_generators != which_generators(self._leaves_of(args, kwargs), self.known_generators):
            return "which random generators are one"
        if settings() != self.settings:
            return "mg.kernels, mg.no_grad, mg.autocast or mg.device"
        if self.device is not None and current_device() != self.device:
            return "the current device"
        # Two streams may compute at the same time, and need buffers of their own then.
        rebind = self.device is not None and self.stream != current_stream()
        for place, path in self.watch.differences():
            if place is None or place.role != "array":
                return path
            value = place.get()
            if type(value) not in NAMESPACES or layout_of(value) != layout_of(place.value):
                return path
            rebind = True
        for places in self._by_variable.values() if rebind else self._loaded_as_one:
            if any(place.get() is not places[0].get() for place in places):
                return PARTED
        if rebind and len({id(places[0].get()) for places in self._by_variable.values()}) < len(self._by_variable):
            return "arrays in several places, which are one now"
        if rebind and not self._chains_hold():
            return "the memory of arrays, which now overlaps"
        for place in self.effects.leaves:
            gradient = place.owner.grad
            is_result = type(gradient) is Tensor and gradient._node is not None
            if is_result or (gradient is None) != (place.value is None):
                return f"the gradient of {place.path}"
        for place, variable in (*self.effects.assigned, *self.effects.loaded):
            value = data_of(place.get())
            if type(value) is not variable.array_type or value.shape != variable.shape or value.dtype != variable.dtype:
                return place.path
        if not all(map(_are_equal, self.merged)):
            return UNEQUAL
        self.watch.update(self._scope_of_attempt)
        # Where somebody holds a gradient its buffer is left to him.
        held = [leaf.grad is buffer for leaf, buffer in zip(self.kept_leaves, self.buffers, strict=False)]
        counts = map(getrefcount, self.buffers)
        if rebind or any(n > m + h for n, m, h in zip(counts, self._unheld, held, strict=False)):
            self.release()
        return None

    def _chains_hold(self) -> bool:
        """Whether operations may be done block by block with the arrays that are there now."""
        arrays = {variable: places[0].get() for variable, places in self._by_variable.items()}
        return all(chain.holds_for(arrays) for chain in self.program.chains.values())

    def release(self) -> None:
        """Give back the buffers, which lie in cycles of functions and their variables."""
        self._step, self.attempt = None, missed
        self.buffers, self._unheld = [], []
        self._scope_of_step.clear()
        self._scope_of_attempt.clear()

    # Replaying

    def changed_arrays(self, given: list[Any]) -> list[Any]:
        """Those into which a replay writes, of what it can reach and of the arrays that it is ``given``."""
        given = given if self._changes_arguments else []
        found = [data_of(x) for place in self._changing for x in flat([place.get()])]
        return [x for x in (*found, *given) if is_array(x)]

    def set_gradients(self) -> None:
        """Let the gradients lie where replays leave them."""
        for leaf, buffer in zip(self.kept_leaves, self.buffers, strict=True):
            leaf.grad = buffer

    def arrays(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The arrays of a call, and buffers to go with them."""
        if self._step is None:
            self.bind()
        read = [place.get() for place, _ in self.effects.loaded]
        return self._leaves_of(args, kwargs) + list(map(data_of, read))

    def _leaves_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        return leaves(*args, *map(kwargs.__getitem__, self.keywords))  # in the order of the recording

    def replay(self, arrays: list[Any]) -> Any:
        """What the step would do and return. Raises Diverged, with nothing changed, at a branch that goes elsewhere."""
        if self.program.draws:
            generators = [*self.generators, *generators_in(arrays)]
            states = [generator.bit_generator.state for generator in generators]
            try:
                out = self._run(arrays)
            except Exception as error:
                line = self.failed_at(error)
                if line is None or not self.had_changed(line):  # the step runs instead, and draws them again
                    for generator, state in zip(generators, states, strict=True):
                        generator.bit_generator.state = state
                raise
        else:
            out = self._run(arrays)
        if self.records or self._written_positions:
            order = next_change()
            for record in (*self.records, *(record_of(arrays[i]) for i in self._written_positions)):
                record[1] = order
        self.calls += 1
        if self._fills:
            self.set_gradients()
        return self.effects.leave(out if type(out) is tuple else (out,))

    def _run(self, arrays: list[Any]) -> Any:
        if not self._quiet:
            return self._step(*arrays)
        with np.errstate(**self._quiet):
            return self._step(*arrays)

    def failed_at(self, error: BaseException) -> int | None:
        """The line of the program at which a replay failed; None for an error from somewhere else."""
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename != self._filename:
            frame = frame.tb_next
        return None if frame is None else frame.tb_lineno

    def had_changed(self, line: int) -> bool:
        """Whether the program has changed anything but its own buffers when it comes to a line."""
        return line >= self._text.first_change

    # Saving

    @property
    def kernels(self) -> list[str]:
        """The compiled kernels that the program calls."""
        return [x for x, f in self.functions.items() if ".kernels.numba_" in inspect.unwrap(f).__module__]

    def take_arrays(self) -> None:
        """Let the program's arrays be those that are there now. CaptureError, where something else has changed."""
        for place, path in self.watch.differences():
            if place is None or place.role != "array" or layout_of(place.get()) != layout_of(place.value):
                raise CaptureError(f"save: {path} is another one than in the last call of the step; call it before")
        self._bind_arrays()

    def inputs(self) -> dict[str, Any]:
        """The arrays that the program uses, by the names that they have in its text."""
        return {name: variable.array for name, variable in self._inputs}

    def numbers_by_name(self) -> dict[str, Any]:
        """The numbers that the program reads, by the names of the mappings that they lie in."""
        found: dict[str, Any] = {}
        for places in self.effects.numbers.values():
            for place in places:
                if id(place.owner) in self._mappings:
                    found.setdefault(self._mappings[id(place.owner)], {})[place.key] = place.get()
        return found

    def generators_by_name(self) -> dict[str, np.random.Generator]:
        """The random generators that the program draws from."""
        return {name: v.array for v, name in self._text.names.items() if v.kind == "generator"}


def _are_equal(places: list[Place]) -> bool:
    values = [place.owner[place.key] for place in places]
    return values.count(values[0]) == len(values)
