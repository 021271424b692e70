"""A call of a step while it is recorded: what it may do, and what comes of it."""

from __future__ import annotations

import inspect
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import randomness
from ..backends import NAMESPACES, register_cupy
from ..noting import hook
from ..tensor import Tensor
from .active import CaptureError, active, recorder
from .arrays import HANDLES, RecordedArray, RecordedNumber, to_write
from .exchange import Exchange, without_handles
from .guard import layout, layout_of, leaves, settings
from .instructions import Variable, current_device
from .namespace import namespace
from .notes import notes
from .places import GONE, PLAIN, Place, random_state
from .reach import Reach
from .recorder import Recorder, flat
from .results import Output, data_of, mapped
from .scout import Executed, uncollected

_one_at_a_time = threading.RLock()


class Session:
    """One recorded call.

    Attributes:
        result: what it returned, without handles.
        structure: the same with an ``Output`` for each array.
        outputs: their variables, in order.
        instructions: what it did.
        given: the arrays, floats and generators among the arguments, in order.
        keywords, in_order: the names of the arguments by keyword, and whether the step sees their order.
        arguments: variables for the arrays and floats among the arguments, in order.
        reach: what it can reach, as it was before.
        replaced: the places that held arrays, gradients, generators and live numbers, with the handles they got.
        short: gives a path without the name of the model, where there is one only.
        left_at: a place that was not there before and holds what the step computed, if there is one: what the step
            does next time is something else, then.
        once: whether it does something that the next call is not likely to do.
        met_functions: whether functions ran that were not looked into before.
        sets: places of plain values that the step changes, with what it leaves there.
        finals: what those places, and those of all gradients, held at the end, by id of the place.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        executed: Executed,
        merge: bool,
    ) -> None:
        if "cupy" in sys.modules:
            register_cupy()  # so that arrays of CuPy are seen wherever they lie
        self.name = getattr(function, "__name__", type(function).__name__)
        self.settings = settings()
        self.layout = layout(args, kwargs)
        self.layouts = [(type(x), layout_of(x)) for x in (*args, *kwargs.values())]
        self.keywords = tuple(kwargs)
        self.in_order = _takes_any_keyword(function)
        self.given = leaves(*args, *kwargs.values())
        self._merge = merge
        with _one_at_a_time, uncollected():
            self._run(function, args, kwargs, executed)

    def _run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], executed: Executed
    ) -> None:
        known = len(executed.globals)

        def reach_now() -> Reach:
            return Reach(function, (*args, *kwargs.values()), executed)

        self.reach = reach_now()
        if self.reach.refusal is not None:
            raise CaptureError(self.reach.refusal)
        self._recorder = Recorder(notes(function))
        exchange = Exchange(self._recorder, self.reach, self._merge)
        self.short, self.arguments, self.replaced = exchange.short, exchange.arguments, exchange.replaced
        self.met_functions = False
        self.outputs: list[Variable] = []
        with _recording(self._recorder, exchange.generator):
            wrapped = [exchange.argument(x, name) for x, name in zip(args, _names(function, len(args)), strict=True)]
            wrapped_kwargs = {name: exchange.argument(x, name) for name, x in kwargs.items()}
            containers = [(x, _shape_of(x)) for x in (*wrapped, *wrapped_kwargs.values())]
            drawn = _random_states(self.reach)
            try:
                exchange.replace()
                with executed.noted():
                    result = _explained(function, wrapped, wrapped_kwargs)
                self._refuse(executed, any(_shape_of(x) != shape for x, shape in containers), drawn)
                self.structure = mapped(result, self._output)
                kept = [*(place for place, _ in self.replaced), *self.reach.of_role("gradient")]
                self.finals = {id(place): _final(place) for place in kept}
            finally:
                exchange.put_back(reach_now)
        if self._recorder.trouble is not None:
            raise self._recorder.trouble
        self.sets = self.reach.changed_plainly()
        for place, _ in self.sets:
            place.is_guarded = True  # what is set depends on what was there
        self.left_at = exchange.left_at
        if self.left_at is None:
            self.left_at = self.reach.changed_otherwise()
        if len(executed.globals) > known:
            self.met_functions = True
        self.result = without_handles(result)
        self.instructions, self.once = self._recorder.instructions, self._recorder.once
        # Our own functions ignore some too, which matters to replays where float16 overflows: others would be slower.
        ignores = executed.ignores_errors or self._recorder.computes_narrowly
        self.quiet = self._recorder.quiet if ignores else set()
        on_device = self._recorder.uses_device or any(v.is_on_device for v in self.arguments)
        self.device = current_device() if on_device else None
        self.generators = [x.value for x in exchange.generators.values() if x.variable.kind == "generator"]

    def _refuse(self, executed: Executed, changes_arguments: bool, drawn: Any) -> None:
        """Raise what the recorder met, and CaptureError for what the step has done that no replay would do."""
        if self._recorder.trouble is not None:
            raise self._recorder.trouble
        if executed.unrepeated is not None:
            raise CaptureError(
                f"capture: the step calls {executed.unrepeated}, which a replay would not do again; do it outside, or "
                "hand over what it gives"
            )
        if changes_arguments:
            raise CaptureError(
                "capture: the step changes a list, dict or tensor among its arguments, which a replay does not do; "
                "return what is new instead"
            )
        if _random_states(self.reach) != drawn:
            raise CaptureError(
                "capture: the step draws from a random generator of a module (random, np.random), from one of Python's "
                "or from one in a tuple, as the defaults of a function are, which is not recorded; hand over a "
                "np.random.Generator, or let the step find it under a name"
            )

    def _output(self, result: Any) -> Any:
        """What stands for a result, or a part of one, that is no tuple, list or dict."""
        kind = type(result)
        if kind is Tensor or kind in NAMESPACES:
            data = result._data if kind is Tensor else result
            result = data if type(data) is RecordedArray else recorder().given(data.copy("K"), "constant", "constant")
        if type(result) in (RecordedArray, RecordedNumber):
            self.outputs.append(result.variable)
            return Output(kind is Tensor)
        if not isinstance(result, PLAIN):
            raise CaptureError(
                f"capture: the step returns a {kind.__name__}; it can return arrays, tensors, numbers, strings, and "
                "tuples, lists and dicts of them"
            )
        return result


def _explained(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The result; an error of a function that takes no handles says so."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "you are shuffling a 'Recorded")  # before any row has been moved
            return function(*args, **kwargs)
    except UserWarning as error:
        if "shuffling" not in str(error):
            raise
        raise CaptureError(
            "capture: shuffle changes an array in place, which is not recorded; index it by rng.permutation(len(x))"
        ) from error
    except TypeError as error:
        if "Recorded" not in str(error):
            raise
        if "SeedSequence" in str(error):
            raise CaptureError(
                "capture: a generator was made of a generator, default_rng(rng); use rng itself"
            ) from error
        raise CaptureError(
            "capture: an array, or a number that changes, was handed to what is not recorded, such as a kernel of your "
            f"own or the keys of a dict ({error}); compute with operators and functions of microgradnd, NumPy and CuPy"
        ) from error


def _final(place: Place) -> Any:
    """What lies in a place after the step; None where it was removed."""
    value = place.look()
    return None if value is GONE else data_of(value)


def _shape_of(x: Any) -> Any:
    """What a step may not change of its arguments: what is in containers, and which array a tensor has."""
    if isinstance(x, tuple | list):
        return [_shape_of(part) for part in x]
    if isinstance(x, dict):
        return [(key, _shape_of(part)) for key, part in x.items()]
    return id(x) if type(x) is not Tensor else (id(x), id(x._data), id(x._node))


def _random_states(reach: Reach) -> Any:
    """Of generators that get no handle: of ``random``, of ``np.random`` if anybody has used it, and those found."""
    legacy = sys.modules.get("numpy.random")
    states: list[Any] = [random.getstate(), *map(random_state, reach.without_place)]
    if legacy is not None:
        states.append(repr(legacy.get_state(legacy=False)))
    return states


@contextmanager
def _recording(recording: Recorder, generator: Callable[[Any], Any]) -> Iterator[None]:
    plain = dict(NAMESPACES)
    NAMESPACES[np.ndarray] = namespace
    for array_type in plain:
        if array_type is not np.ndarray:
            from . import device

            NAMESPACES[array_type] = device.namespace
    active.recorder, hook.call, hook.once, randomness.wrapping.wrap = recording, _call, recording.note_once, generator
    try:
        yield
    finally:
        active.recorder = hook.call = hook.once = randomness.wrapping.wrap = None
        NAMESPACES.update(plain)


def _call(name: str, function: Any, args: tuple[Any, ...], writes: Sequence[Any]) -> Any:
    """A call of a function that is noted as a whole, or of a kernel, which writes into some of its arguments."""
    kind = "kernel" if hasattr(function, "replayed") else "whole"
    if not any(type(x) in HANDLES for x in flat(args)):
        return function.run(*args) if kind == "kernel" else function(*args)
    if kind == "kernel":
        function, args = function.replayed(args, recorder().unwrapped(args)[0])
    return recorder().call(kind, name, function, args, writes=tuple(map(to_write, writes)))


def _takes_any_keyword(function: Any) -> bool:
    """Whether a function sees in which order keywords are."""
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(x.kind is x.VAR_KEYWORD for x in parameters)


def _names(function: Any, count: int) -> list[str]:
    """The names of a function's parameters, for the text."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment]
    names = [x.name for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    return [names[i] if i < len(names) else f"x_{i}" for i in range(count)]
