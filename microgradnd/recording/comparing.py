"""Whether a replay does what the step itself does: the state before is put back, and both results are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import is_narrow
from .guard import generators_in
from .instructions import is_on_device
from .places import Place
from .reach import Reach
from .results import data_of

if TYPE_CHECKING:
    from .recording import Recording

CHANGING = ("array", "tuple", "gradient", "number")  # roles of places whose content a step may change


class State:
    """What a replay may change, as it is now: what lies in places, the content of arrays, where generators stand."""

    def __init__(self, recording: Recording, given: list[Any]) -> None:
        """``given``: the leaves of the arguments."""
        self._places: list[tuple[Place, Any]] = [(place, place.get()) for place in recording.reach.of_role(*CHANGING)]
        self._places += [(place, place.value) for place, _ in recording.effects.sets]
        different = {id(x): x for x in recording.changed_arrays(given)}.values()
        generators = [*recording.generators, *generators_in(given)]
        self._copies = [(x, x.copy()) for x in different if is_on_device(x) or x.flags.writeable]
        self._generators = [(generator, generator.bit_generator.state) for generator in generators]

    def put_back(self) -> None:
        for place, value in self._places:
            place.set(value)
        for array, copy in self._copies:
            array[...] = copy
        for generator, state in self._generators:
            generator.bit_generator.state = state


def fingerprints(reach: Reach, generators: list[np.random.Generator], arrays: list[Any], result: Any) -> dict[str, Any]:
    """What stands for every bit of the result and of all that a step may change, by name; for any NaN the same."""
    found = {"the result": fingerprint(result)}
    found |= {f"argument {i}": fingerprint(x) for i, x in enumerate(arrays)}
    for place in reach.of_role(*CHANGING):
        name = f"the gradient of {place.path}" if place.role == "gradient" else place.path
        found[name] = fingerprint(place.get())
    return found | {f"random generator {i}": repr(x.bit_generator.state) for i, x in enumerate(generators)}


def fingerprint(value: Any) -> Any:
    """Shape, dtype and a hash of an array's bytes; of other values themselves, as text.

    The sign of a NaN depends on which operand comes first in a register, and so on places in memory.
    """
    value = data_of(value)
    if is_on_device(value):
        return value.device.id, fingerprint(value.get())
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return value.shape, str(value.dtype), repr(value.tolist())
    if isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        if (array.dtype.kind in "fc" or is_narrow(array.dtype)) and (undefined := np.isnan(array)).any():
            array = np.where(undefined, np.asarray(np.nan, array.dtype), array)
        return (
            value.shape,
            str(value.dtype),
            hashlib.blake2b(array.view(np.uint8).data if array.size else b"").hexdigest(),
        )
    if isinstance(value, tuple | list):
        return type(value), [fingerprint(part) for part in value]
    if isinstance(value, dict):
        return {key: fingerprint(part) for key, part in value.items()}
    return type(value), repr(value)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    """The names of what differs."""
    return (name for name, value in expected.items() if found.get(name) != value)
