"""Handles in the place of what a step is given and of what it can reach; what they stand for, put back afterwards."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

import numpy as np

from .. import randomness
from ..autograd import Leaf
from ..backends import NAMESPACES
from ..dtypes import is_numeric
from ..tensor import Tensor, constant
from .active import CaptureError, is_recording
from .arrays import HANDLES, RecordedArray, RecordedGenerator, RecordedNumber
from .instructions import Variable, is_array
from .outside import outer
from .places import Place, cached_values, dict_of
from .reach import Reach
from .recorder import Recorder
from .results import like


class Exchange:
    """The handles of one recorded call.

    Attributes:
        arguments: variables for the arrays and floats among the arguments, in order.
        generators: the handles of random generators, by id of what they stand for.
        replaced: the places that held arrays, gradients, generators and live numbers, with the handles they got.
        left_at: a place that was not there before and holds what the step computed, if there is one.
    """

    def __init__(self, recorder: Recorder, reach: Reach, merge: bool) -> None:
        self.arguments: list[Variable] = []
        self.generators: dict[int, RecordedGenerator] = {}
        self.replaced: list[tuple[Place, Any]] = []
        self.left_at: str | None = None
        self._recorder, self._reach, self._merge = recorder, reach, merge
        paths = [place.path for place in reach.of_role("array") if "." in place.path]
        roots = {path.partition(".")[0] for path in paths}
        self._one_root = len(roots - {"optimizer", "optimiser", "opt"}) <= 1

    def short(self, path: str) -> str:
        """A path without the name of the model, where there is one only."""
        _, dot, rest = path.partition(".")
        return rest if dot and self._one_root and not rest.startswith(("param_groups", "_slots")) else path

    def argument(self, value: Any, name: str) -> Any:
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
            return self.generators.setdefault(id(value), RecordedGenerator(value, variable))
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
            return like(value, [self.argument(part, f"{name}_{i}") for i, part in enumerate(value)])
        if isinstance(value, dict):
            return like(value, [self.argument(part, f"{name}_{key}") for key, part in value.items()])
        if isinstance(value, np.ndarray):
            raise CaptureError(f"capture: {name} is a {kind.__name__}, which is not recorded; hand over np.asarray(x)")
        return value

    def _array(self, array: Any, name: str) -> RecordedArray:
        handle = self._recorder.argument(array, name)
        self.arguments.append(handle.variable)
        return handle

    def replace(self) -> None:
        """Put handles where arrays, gradients, generators and live numbers are."""
        numbers: dict[Any, RecordedNumber] = {}
        for place in self._reach.places:
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
                handle = self.generator(value, name)
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

    def generator(self, generator: Any, name: str = "rng") -> Any:
        """The handle of a generator; one that the step makes for itself can't be repeated."""
        if randomness.is_noting():
            raise CaptureError("capture: mg.checkpoint of a function that draws random numbers can't be recorded")
        if type(generator) is RecordedGenerator:
            return generator
        if not is_recording():  # another thread
            return np.random.default_rng(generator)
        if id(generator) not in self.generators:
            variable = Variable(None, "generator", name.rpartition(".")[2])
            variable.array = generator
            self.generators[id(generator)] = RecordedGenerator(generator, variable)
        return self.generators[id(generator)]

    def put_back(self, reach_now: Callable[[], Reach]) -> None:
        """Put arrays and numbers where handles are, also where the step has put them and ``reach_now`` finds them."""
        for place, handle in self.replaced:
            value = place.look()
            if place.role in ("tuple", "node") and value is handle:
                place.set(place.value)
            elif type(value) in HANDLES:
                place.set(_in_place(place, value.value))
        expected = [*(place for place, _ in self.replaced), *self._reach.of_role("gradient")]
        known = {(id(place.owner), place.key) for place in expected}
        reach = reach_now()
        for cache, path in reach.caches:
            if any(without_handles(part) is not part for part in cached_values(cache)):
                self._put_back_in_cache(cache, path)
                self.left_at = path
        for variable, path in reach.variables:
            if (bare := without_handles(variable.get(None))) is not variable.get(None):
                variable.set(bare)
                self.left_at = path
        for place in reach.places:
            value = place.value
            if type(value) in (*HANDLES, Tensor) or isinstance(value, tuple):
                bare = without_handles(value)
                if bare is not value:
                    place.set(_in_place(place, bare))
                    if (id(place.owner), place.key) not in known:
                        is_element = place.is_item and isinstance(place.key, int)
                        self.left_at = place.path.rpartition(".")[0] if is_element else place.path

    def _put_back_in_cache(self, cache: Any, path: str) -> None:
        kept = dict_of(cache)
        if kept is None:  # where in it the handles are is not known
            cache.cache_clear()
            self._recorder.trouble = CaptureError(
                f"capture: {path} kept an array of the step while a call was recorded, and is empty now; call the "
                "function before the step, or let its cache have no limit (functools.cache)"
            )
            return
        for key, value in kept.items():
            kept[key] = without_handles(value)


def _in_place(place: Place, value: Any) -> Any:
    """What is put there: of a gradient without axes an array, where NumPy has made a number of it."""
    return np.asarray(value) if isinstance(place.owner, Leaf) and issubclass(type(value), np.generic) else value


def _has_arrays(attributes: dict[str, Any], value: Any) -> bool:
    """Whether a container has arrays in its attributes too, or attributes that are what is in it."""
    return attributes is value or any(type(x) is Tensor or type(x) in NAMESPACES for x in attributes.values())


def without_handles(value: Any) -> Any:
    """A value without handles, in lists, tuples and dicts too; tensors get their arrays back."""
    kind = type(value)
    if kind is RecordedArray and value.variable.root.kind == "constant":
        return value.value.copy("K")  # that of the recording stays what it is
    if kind in HANDLES:
        return value.value
    if kind is Tensor:
        if type(value._data) is RecordedArray:
            data = without_handles(value._data)
            value._data = data if is_array(data) else np.asarray(data)
        return value
    if isinstance(value, tuple | list | dict):
        before = list(value.values()) if isinstance(value, dict) else list(value)
        parts = [without_handles(part) for part in before]
        return value if all(map(is_, parts, before)) else like(value, parts)
    return value
