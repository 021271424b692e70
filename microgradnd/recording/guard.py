"""Whether a recording holds for a call: a function, written for it, that looks at everything it depends on."""

from __future__ import annotations

from sys import getrefcount
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autocast import autocast_mode
from ..backends import NAMESPACES, as_array
from ..devices import default
from ..grad_mode import grad_mode
from ..inplace import next_change
from ..kernels import kernels
from ..tensor import Tensor, new
from .instructions import current_device, current_stream

if TYPE_CHECKING:
    from .recording import Recording


def settings() -> tuple[Any, ...]:
    """What a recording depends on besides what its step can reach."""
    return kernels.current, grad_mode.current, autocast_mode.current, default.current


def layout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a recording depends on of the arguments: their structure, and the kind of array at each place."""
    if not kwargs:
        return [layout_of(x) for x in args]
    return [layout_of(x) for x in args], {name: layout_of(x) for name, x in kwargs.items()}


def layout_of(x: Any) -> Any:
    """The same of one argument: of an array its layout, of a number or string itself, of an object which one it is."""
    kind = type(x)
    if kind is np.ndarray:
        return x.shape, x.strides, x.dtype
    if kind in NAMESPACES:
        return kind, x.shape, x.strides, x.dtype, x.device.id
    if kind is Tensor:
        return Tensor, x._node is None, *layout_of(x._data)
    if kind is float or isinstance(x, np.random.Generator):
        return kind
    if isinstance(x, np.generic):
        return kind, x.dtype
    if isinstance(x, tuple | list):
        return kind, [layout_of(part) for part in x], _attributes_of(x)
    if isinstance(x, dict):
        factory = getattr(x, "default_factory", None)
        factory = getattr(factory, "__code__", factory)  # a function may be made anew for each call
        return kind, [(name, layout_of(part)) for name, part in x.items()], _attributes_of(x), factory
    return (kind, repr(x)) if isinstance(x, int | str | bytes | complex | NoneType) else _Same(x)


def _attributes_of(x: Any) -> Any:
    """The attributes of a container, where its class lets it have some; floats are constants there."""
    attributes = getattr(x, "__dict__", None)
    return attributes and [
        (name, repr(part) if type(part) is float else layout_of(part)) for name, part in attributes.items()
    ]


class _Same:
    """Of other objects the object itself: equal ones need not be alike."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def leaves(*values: Any) -> list[Any]:
    """The arrays, floats and generators in arguments, in order."""
    found: list[Any] = []
    for x in values:
        _collect(x, found)
    return found


def _collect(x: Any, found: list[Any]) -> None:
    if type(x) is float or type(x) in NAMESPACES or isinstance(x, np.generic | np.random.Generator):
        found.append(x)
    elif type(x) is Tensor:
        found.append(x._data)
    elif isinstance(x, tuple | list):
        for part in x:
            _collect(part, found)
    elif isinstance(x, dict):
        for part in x.values():
            _collect(part, found)


def generators_in(given: list[Any]) -> list[np.random.Generator]:
    """The generators among the leaves of arguments."""
    return [x for x in given if isinstance(x, np.random.Generator)]


def which_generators(given: list[Any], known: list[Any]) -> list[int]:
    """Which of the generators among the leaves of arguments are one, or one of those that are ``known``."""
    found = generators_in(given)
    places = [id(x) for x in (*known, *found)]
    return [places.index(id(x)) for x in found]


def missed(*args: Any, **kwargs: Any) -> Any:
    """What stands for the function where there is none: everything is looked at closely."""
    return MISSED


def _named(array_type: type, scope: dict[str, Any]) -> str:
    """The name of an array type in the text of the conditions."""
    if array_type is np.ndarray:
        return "array"
    scope["device_array"] = array_type
    return "device_array"


MISSED = object()  # instead of a result: the recording may not hold for the call


def attempt_function(recording: Recording, step: Any) -> tuple[Any, dict[str, Any], list[int]]:
    """A function of a step's arguments, those by keyword last, that replays the recording if it holds for them.

    Otherwise it gives MISSED. Straight-line code, since it runs at every call: some 30 ns for each condition. Returned
    with its variables and with how often the buffers of gradients are referred to when nobody else holds them.
    """
    scope: dict[str, Any] = {"Tensor": Tensor, "array": np.ndarray, "layout_of": layout_of, "leaves": leaves}
    scope |= {"kernels": kernels, "grad_mode": grad_mode, "autocast_mode": autocast_mode, "default": default}
    scope |= {"getrefcount": getrefcount, "which_generators": which_generators} | recording.watch.scope
    scope |= {"MISSED": MISSED, "step": step, "recording": recording, "next_change": next_change}
    names = [f"argument_{i}" for i in range(len(recording.arguments))]
    conditions, arrays = _of_arguments(recording, scope)
    conditions += _of_settings(recording, scope)
    conditions += recording.watch.conditions
    conditions += _of_gradients(recording, scope)
    conditions += _of_numbers(recording, scope)
    more, loaded = _of_loaded(recording, scope)
    conditions += more
    arrays += loaded
    lines = [f"        {line}" for line in _replaying(recording, arrays, scope)]
    head = [f"def attempt({', '.join(names)}):", f"    if ({' and '.join(conditions)}):"]
    exec("\n".join([*head, *lines, "    return MISSED"]), scope)
    return scope["attempt"], scope, list(map(getrefcount, recording.buffers))


# Each of these puts what its conditions name into the scope. The arrays are those that the program takes.


def _of_arguments(recording: Recording, scope: dict[str, Any]) -> tuple[list[str], list[str]]:
    conditions, arrays = [], []
    for i, (kind, expected) in enumerate(recording.arguments):
        name = f"argument_{i}"
        if kind is Tensor:
            conditions.append(f"{name}.__class__ is Tensor and {name}._node is None")
            name += "._data"
        if kind is Tensor or kind in NAMESPACES:
            described = expected[2:] if kind is Tensor else expected
            if len(described) > 3:  # on a device
                array_type, *described, gpu = described
                conditions += [f"{name}.__class__ is {_named(array_type, scope)}", f"{name}.data.device_id == {gpu}"]
            else:
                conditions.append(f"{name}.__class__ is array")
            shape, strides, dtype = described
            conditions += [f"{name}.shape == {shape}", f"{name}.strides == {strides}", f"{name}.dtype is dtype_{i}"]
            scope[f"dtype_{i}"] = dtype
            arrays.append(name)
        else:
            scope[f"layout_{i}"] = expected
            conditions.append(f"layout_of({name}) == layout_{i}")
            arrays.append(f"*leaves({name})")
    if recording.which_generators:
        scope["known_generators"] = recording.known_generators
        given = ", ".join(f"argument_{i}" for i in range(len(recording.arguments)))
        conditions.append(f"which_generators(leaves({given}), known_generators) == {recording.which_generators}")
    return conditions, arrays


def _of_settings(recording: Recording, scope: dict[str, Any]) -> list[str]:
    kernels_in_use, recording_gradients, scope["autocast_dtype"], scope["device"] = recording.settings
    conditions = [
        f"kernels.current == {kernels_in_use!r}",
        f"grad_mode.current is {recording_gradients}",
        "autocast_mode.current is autocast_dtype",
        "default.current is None" if scope["device"] is None else "default.current == device",
    ]
    if recording.device is not None:
        scope["current_device"] = current_device
        conditions.append(f"current_device() == {recording.device}")
        if recording.program.device_memory or recording.graph:
            scope["current_stream"] = current_stream
            conditions.append(f"current_stream() == {recording.stream}")
    return conditions


def _of_gradients(recording: Recording, scope: dict[str, Any]) -> list[str]:
    conditions = []
    for i, (leaf, none) in enumerate(recording.other_leaves):
        scope[f"leaf_{i}"] = leaf
        conditions.append(f"leaf_{i}.grad is {'' if none else 'not '}None")
    scope |= {f"buffer_{i}": buffer for i, buffer in enumerate(recording.buffers)}
    # Counted as the conditions will count them: how many references a call holds differs among versions of Python.
    counts = eval(f"[{', '.join(f'getrefcount(buffer_{i})' for i in range(len(recording.buffers)))}]", scope)
    for i, ((place, _), count) in enumerate(zip(recording.effects.kept, counts, strict=True)):
        scope[f"kept_{i}"] = place.owner
        if place.value is None:  # what a replay has left there would have to be added to
            conditions += [f"kept_{i}.grad is None", f"getrefcount(buffer_{i}) == {count}"]
            continue
        # The leaf holds the buffer too; somebody else who does shall keep what is in it.
        conditions += [f"kept_{i}.grad is buffer_{i}", f"getrefcount(buffer_{i}) == {count + 1}"]
    return conditions


def _of_numbers(recording: Recording, scope: dict[str, Any]) -> list[str]:
    conditions = []
    for i, places in enumerate(recording.merged):
        scope |= {f"number_{i}_{k}": place.owner for k, place in enumerate(places)}
        first, *others = [f"number_{i}_{k}[{place.key!r}]" for k, place in enumerate(places)]
        conditions += [f"{other} == {first}" for other in others]
    return conditions


def _of_loaded(recording: Recording, scope: dict[str, Any]) -> tuple[list[str], list[str]]:
    conditions, arrays = [], []
    for k, (place, variable) in enumerate(recording.effects.loaded):
        scope[f"loaded_{k}"], scope[f"loaded_dtype_{k}"] = place.owner, variable.dtype
        read = place.expression(f"loaded_{k}")
        conditions.append(f"{read}.__class__ is {_named(variable.array_type, scope)}")
        conditions += [f"{read}.shape == {variable.shape}", f"{read}.dtype == loaded_dtype_{k}"]
        arrays.append(read)
    return conditions, arrays


def _replaying(recording: Recording, arrays: list[str], scope: dict[str, Any]) -> list[str]:
    """The lines of a replay: for a result alone as recording.replay does it, written out."""
    if not recording.is_plain:
        return [f"return recording.replay([{', '.join(arrays)}])"]
    scope |= {"new": new, "as_array": as_array} | {f"record_{i}": x for i, x in enumerate(recording.records)}
    result_type = recording.effects.results[0].array_type or np.ndarray  # a number's is made an array
    changed = "".join(f"record_{i}[1] = " for i in range(len(recording.records)))
    return [
        f"out = step({', '.join(arrays)})",
        "recording.calls += 1",
        *([f"{changed}next_change()"] if changed else []),
        "tensor = new(Tensor)",
        f"tensor._data = out if out.__class__ is {_named(result_type, scope)} else as_array(out)",
        "tensor._node = None",
        "return tensor",
    ]
