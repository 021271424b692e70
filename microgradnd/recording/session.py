"""A call of a step while it is recorded: handles take the place of what it can reach, and give it back afterwards."""

from __future__ import annotations

import inspect
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np

from .. import randomness
from ..backends import NAMESPACES, register_cupy
from ..dtypes import is_numeric
from ..noting import hook
from ..tensor import Tensor, constant
from .active import CaptureError, active, is_recording, recorder
from .arrays import HANDLES, RecordedArray, RecordedGenerator, RecordedNumber, to_write
from .guard import layout, layout_of, leaves, settings
from .instructions import Variable, current_device, is_array
from .namespace import namespace
from .notes import notes
from .outside import outer
from .places import GONE, PLAIN, Place, cached_values, dict_of, random_state
from .reach import Reach
from .recorder import Recorder, flat
from .results import Output, data_of, like, mapped
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
        self._everything = lambda: Reach(function, (*args, *kwargs.values()), executed)
        self.reach = self._everything()
        if self.reach.refusal is not None:
            raise CaptureError(self.reach.refusal)
        self._recorder = Recorder(notes(function))
        self._generators: dict[int, RecordedGenerator] = {}
        self.left_at: str | None = None
        self.met_functions = False
        self.arguments: list[Variable] = []
        self.outputs: list[Variable] = []
        self.replaced: list[tuple[Place, Any]] = []
        paths = [place.path for place in self.reach.of_role("array") if "." in place.path]
        roots = {path.partition(".")[0] for path in paths}
        self._one_root = len(roots - {"optimizer", "optimiser", "opt"}) <= 1
        with _recording(self._recorder, self._generator):
            wrapped = [self._argument(x, name) for x, name in zip(args, _names(function, len(args)), strict=True)]
            wrapped_kwargs = {name: self._argument(x, name) for name, x in kwargs.items()}
            containers = [(x, _shape_of(x)) for x in (*wrapped, *wrapped_kwargs.values())]
            drawn = _random_states(self.reach)
            try:
                self._replace()
                with executed.noted():
                    result = _explained(function, wrapped, wrapped_kwargs)
                self._refuse(executed, any(_shape_of(x) != shape for x, shape in containers), drawn)
                self.structure = mapped(result, self._output)
                kept = [*(place for place, _ in self.replaced), *self.reach.of_role("gradient")]
                self.finals = {id(place): _final(place) for place in kept}
            finally:
                self._restore()
        if self._recorder.trouble is not None:
            raise self._recorder.trouble
        self.sets = self.reach.changed_plainly()
        for place, _ in self.sets:
            place.is_guarded = True  # what is set depends on what was there
        if self.left_at is None:
            self.left_at = self.reach.changed_otherwise()
        if len(executed.globals) > known:
            self.met_functions = True
        self.result = _without_handles(result)
        self.instructions, self.once = self._recorder.instructions, self._recorder.once
        # Our own functions ignore some too, of which their replays know nothing: these would only be slower.
        self.quiet = self._recorder.quiet if executed.ignores_errors else set()
        on_device = self._recorder.uses_device or any(v.is_on_device for v in self.arguments)
        self.device = current_device() if on_device else None
        self.generators = [x.value for x in self._generators.values() if x.variable.kind == "generator"]

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

    def short(self, path: str) -> str:
        """A path without the name of the model, where there is one only."""
        _, dot, rest = path.partition(".")
        return rest if dot and self._one_root and not rest.startswith(("param_groups", "_slots")) else path

    def _argument(self, value: Any, name: str) -> Any:
        """An argument with handles for its arrays and floats."""
        kind = type(value)
        if kind in NAMESPACES:
            if not is_numeric(value.dtype):
                raise CaptureError(f"capture: {name} is an array of {value.dtype}, which is not recorded")
            return self._array(value, name)
        if kind is Tensor:
            if value._node is not None:
                raise CaptureError(
                    f"capture: the argument {name} requires a gradient; tensors that do are used like parameters, from "
                    "outside of the step, and arguments are constants"
                )
            tensor = constant(value._data)
            tensor._data = self._array(value._data, name)
            return tensor
        if isinstance(value, np.random.Generator):
            variable = Variable(None, "argument", name)
            self.arguments.append(variable)
            return self._generators.setdefault(id(value), RecordedGenerator(value, variable))
        if kind is float or isinstance(value, np.generic):
            variable = Variable(value, "number" if kind is float else "argument", name)
            self.arguments.append(variable)
            return RecordedNumber(value, variable) if kind is float else RecordedArray(value, variable)
        if isinstance(value, tuple | list | dict) and _has_arrays(getattr(value, "__dict__", {}), value):
            raise CaptureError(
                f"capture: {name} is a {kind.__name__} with arrays in attributes, which are not recorded; hand over "
                "what is in it"
            )
        if isinstance(value, tuple | list):
            return like(value, [self._argument(part, f"{name}_{i}") for i, part in enumerate(value)])
        if isinstance(value, dict):
            return like(value, [self._argument(part, f"{name}_{key}") for key, part in value.items()])
        if isinstance(value, np.ndarray):
            raise CaptureError(f"capture: {name} is a {kind.__name__}, which is not recorded; hand over np.asarray(x)")
        return value

    def _array(self, array: Any, name: str) -> RecordedArray:
        handle = self._recorder.argument(array, name)
        self.arguments.append(handle.variable)
        return handle

    def _replace(self) -> None:
        """Put handles where arrays, gradients, generators and live numbers are."""
        numbers: dict[Any, RecordedNumber] = {}
        for place in self.reach.places:
            value, name = place.value, self.short(place.path)
            handle: Any = None
            if place.role == "tuple":
                handle = self._tuple(value, name)
            elif place.role == "array" and type(value) in NAMESPACES and is_numeric(value.dtype):
                handle = self._recorder.given(value, "input", name)
            elif place.role == "gradient" and value is not None:
                if isinstance(value, Tensor) and value._node is not None:
                    raise CaptureError(f"capture: the gradient of {place.path} can be differentiated; clear it before")
                array = value._data if isinstance(value, Tensor) else value
                # That of a 0-d parameter may be a number.
                array = np.asarray(array) if isinstance(array, np.generic) else array
                handle = self._recorder.argument(array, f"grad_{name}")
            elif place.role == "generator":
                handle = self._generator(value, name)
            elif place.role == "node":
                handle = outer(value)
            elif place.role == "number":
                plain = value if type(value) is int else float(value)
                # Equal ones are one, as long as they stay equal.
                key = (place.key, type(value), plain) if self._merge else id(place)
                if key not in numbers:
                    numbers[key] = self._recorder.number(plain, str(place.key))
                handle = numbers[key]
            if handle is not None:
                self.replaced.append((place, handle))
        for place, handle in self.replaced:
            place.set(handle)

    def _tuple(self, value: tuple[Any, ...], name: str) -> tuple[Any, ...]:
        """A tuple with handles for the arrays in it."""
        parts = []
        for i, x in enumerate(value):
            if type(x) in NAMESPACES:
                x = self._recorder.given(x, "input", f"{name}_{i}")
            parts.append(self._tuple(x, f"{name}_{i}") if isinstance(x, tuple) else x)
        return like(value, parts)  # type: ignore[no-any-return]

    def _generator(self, generator: Any, name: str = "rng") -> Any:
        """The handle of a generator; one that the step makes for itself can't be repeated."""
        if randomness.is_noting():
            raise CaptureError("capture: mg.checkpoint of a function that draws random numbers can't be recorded")
        if type(generator) is RecordedGenerator:
            return generator
        if not is_recording():  # another thread
            return np.random.default_rng(generator)
        if id(generator) not in self._generators:
            variable = Variable(None, "generator", name.rpartition(".")[2])
            variable.array = generator
            self._generators[id(generator)] = RecordedGenerator(generator, variable)
        return self._generators[id(generator)]

    def _output(self, result: Any) -> Any:
        """What stands for a result, or a part of one, that is no tuple, list or dict."""
        kind = type(result)
        if kind is Tensor or kind in NAMESPACES:
            data = result._data if kind is Tensor else result
            result = data if type(data) is RecordedArray else recorder().given(data.copy(), "constant", "constant")
        if type(result) in (RecordedArray, RecordedNumber):
            self.outputs.append(result.variable)
            return Output(kind is Tensor)
        if not isinstance(result, PLAIN):
            raise CaptureError(
                f"capture: the step returns a {kind.__name__}; it can return arrays, tensors, numbers, strings, and "
                "tuples, lists and dicts of them"
            )
        return result

    def _restore(self) -> None:
        """Put arrays and numbers where handles are, also where the step has put them."""
        for place, handle in self.replaced:
            value = place.look()
            if place.role in ("tuple", "node") and value is handle:
                place.set(place.value)
            elif type(value) in HANDLES:
                place.set(value.value)
        expected = [*(place for place, _ in self.replaced), *self.reach.of_role("gradient")]
        known = {(id(place.owner), place.key) for place in expected}
        reach = self._everything()
        for cache, path in reach.caches:
            if any(_without_handles(part) is not part for part in cached_values(cache)):
                self._restore_cache(cache, path)
                self.left_at = path
        for variable, path in reach.variables:
            if (bare := _without_handles(variable.get(None))) is not variable.get(None):
                variable.set(bare)
                self.left_at = path
        for place in reach.places:
            value = place.value
            if type(value) in (*HANDLES, Tensor) or isinstance(value, tuple):
                bare = _without_handles(value)
                if bare is not value:
                    place.set(bare)
                    if (id(place.owner), place.key) not in known:
                        is_element = place.is_item and isinstance(place.key, int)
                        self.left_at = place.path.rpartition(".")[0] if is_element else place.path

    def _restore_cache(self, cache: Any, path: str) -> None:
        kept = dict_of(cache)
        if kept is None:  # where in it the handles are is not known
            cache.cache_clear()
            self._recorder.trouble = CaptureError(
                f"capture: {path} kept an array of the step while a call was recorded, and is empty now; call the "
                "function before the step, or let its cache have no limit (functools.cache)"
            )
            return
        for key, value in kept.items():
            kept[key] = _without_handles(value)


def _explained(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The result; an error of a function that takes no handles says so."""
    try:
        return function(*args, **kwargs)
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


def _has_arrays(attributes: dict[str, Any], value: Any) -> bool:
    """Whether a container has arrays in its attributes too, or attributes that are what is in it."""
    return attributes is value or any(type(x) is Tensor or type(x) in NAMESPACES for x in attributes.values())


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
        states.append(repr(legacy.get_state(legacy=False)["state"]))
    return states


def _without_handles(value: Any) -> Any:
    """A value without handles, in lists, tuples and dicts too; tensors get their arrays back."""
    kind = type(value)
    if kind is RecordedArray and value.variable.root.kind == "constant":
        return value.value.copy()  # that of the recording stays what it is
    if kind in HANDLES:
        return value.value
    if kind is Tensor:
        if type(value._data) is RecordedArray:
            data = _without_handles(value._data)
            value._data = data if is_array(data) else np.asarray(data)
        return value
    if isinstance(value, tuple | list | dict):
        before = list(value.values()) if isinstance(value, dict) else list(value)
        parts = [_without_handles(part) for part in before]
        return value if all(map(is_, parts, before)) else like(value, parts)
    return value


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
