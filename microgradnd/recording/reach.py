"""What a step can reach: the tensors, arrays, generators and plain values that its outcome may depend on.

Found by going through the variables that the function's text names, and on through modules of layers, optimisers,
lists, dicts and objects. A replay is valid as long as all of it is what it was, apart from what replays read anew.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from ..autograd import Leaf
from ..tensor import Tensor
from .arrays import RecordedArray, RecordedGenerator, RecordedNumber
from .instructions import CaptureError

MOST = 100_000  # places that are looked at
LIBRARIES = frozenset(["builtins", "cupy", "microgradnd", "nn", "numba", "numpy"])
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.dtype, np.generic)
HANDLES = (RecordedArray, RecordedNumber, RecordedGenerator)


class Place:
    """Where a value is kept: an item of a list or dict, or an attribute (``cell_contents`` of a closure's cell)."""

    __slots__ = ("is_guarded", "is_item", "key", "owner", "path", "role", "value")

    def __init__(self, owner: Any, key: Any, is_item: bool, path: str, role: str, value: Any) -> None:
        self.is_guarded = True
        self.owner, self.key, self.is_item = owner, key, is_item
        self.path = path
        self.role = role  # "plain", "array", "gradient", "generator" or "number"
        self.value = value

    def get(self) -> Any:
        return self.owner[self.key] if self.is_item else getattr(self.owner, self.key)

    def expression(self, owner: str, key: str = "") -> str:
        """What :meth:`get` does, as text."""
        return f"{owner}[{key or repr(self.key)}]" if self.is_item else f"{owner}.{self.key}"

    def set(self, value: Any) -> None:
        if self.is_item:
            self.owner[self.key] = value
        else:
            setattr(self.owner, self.key, value)


class Reach:
    """Everything that a function can reach, as it is now."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.places: list[Place] = []
        self.lengths: list[tuple[Any, int, str]] = []
        self._seen: dict[int, Any] = {}
        self._numbers: set[tuple[int, Any]] = set()
        self._paths: dict[int, str] = {}  # of tensors
        self._waiting: list[tuple[Any, str]] = []
        self._later: list[tuple[Any, str]] = []  # what an object alone knows and changes: found, but not guarded
        self._function(function, "")
        # Layers first: their names are the ones that people know their parameters by.
        self._waiting.sort(key=lambda entry: not hasattr(entry[0], "named_tensors"), reverse=True)
        self._go_on()
        guarded = len(self.places)
        self._waiting += self._later
        lengths = list(self.lengths)
        self._go_on()
        self.lengths = lengths
        for place in self.places[guarded:]:
            place.is_guarded = False

    def of_role(self, *roles: str) -> Iterator[Place]:
        return (place for place in self.places if place.role in roles)

    def _go_on(self) -> None:
        while self._waiting:
            self._open(*self._waiting.pop())

    # Finding

    def _function(self, function: Any, path: str) -> None:
        if isinstance(function, functools.partial):
            for i, part in enumerate([function.func, *function.args, *function.keywords.values()]):
                self._value(part, f"{path}argument_{i}")
            return
        if isinstance(function, MethodType):
            self._value(function.__self__, "self")
            self._function(function.__func__, path)
            return
        if not isinstance(function, FunctionType):
            call = vars(type(function)).get("__call__")
            if isinstance(call, FunctionType):
                self._value(function, path or "step")
                self._function(call, path)
            return
        if id(function) in self._seen:
            return
        self._seen[id(function)] = function
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._keep(cell, "cell_contents", False, name)
        names = _names(function.__code__)
        for name in names:
            if name in function.__globals__:
                self._keep(function.__globals__, name, True, name)
                self._named_parts(function.__globals__[name], names, name)
        for i, value in enumerate([*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]):
            self._value(value, f"default_{i}")

    def _named_parts(self, value: Any, names: list[str], path: str) -> None:
        """Of a user's module or class what the function's text names."""
        if not isinstance(value, ModuleType | type):
            return
        if _is_users(value.__name__ if isinstance(value, ModuleType) else value.__module__):
            for name in names:
                if name in vars(value):
                    self._keep(value, name, False, f"{path}.{name}")

    def _keep(self, owner: Any, key: Any, is_item: bool, path: str) -> None:
        """Note what lies in a place, and go on into it."""
        try:
            value = owner[key] if is_item else getattr(owner, key)
        except (AttributeError, ValueError):  # an empty cell, a slot that is not set
            return
        if len(self.places) > MOST:
            raise CaptureError(
                f"capture: the step can reach more than {MOST} values; hand it what it needs as arguments"
            )
        role = "plain"
        if isinstance(value, np.ndarray | RecordedArray):
            role = "array"
        elif isinstance(value, np.random.Generator | RecordedGenerator):
            role = "generator"
        elif isinstance(value, RecordedNumber):
            role = "number"
        self.places.append(Place(owner, key, is_item, path, role, value))
        if role == "plain":
            self._value(value, path)

    def _value(self, value: Any, path: str) -> None:
        if isinstance(value, PLAIN) or value.__class__ in HANDLES or id(value) in self._seen:
            return
        if isinstance(value, FunctionType | MethodType | functools.partial):
            if isinstance(value, functools.partial) or _is_users(value.__module__) or isinstance(value, MethodType):
                self._function(value, f"{path}.")
            return
        if isinstance(value, np.ndarray | ModuleType | type | BuiltinFunctionType | CellType):
            return
        self._seen[id(value)] = value
        if callable(value) and hasattr(value, "__wrapped__"):
            self._function(value.__wrapped__, f"{path}.")  # what a decorator made: another captured step
            return
        self._waiting.append((value, path))

    def _open(self, value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            self._tensor(value, path)
        elif isinstance(value, list | dict):
            self.lengths.append((value, len(value), path))
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                if (id(value), key) in self._numbers:
                    self.places.append(Place(value, key, True, f"{path}.{key}", "number", value[key]))
                else:
                    self._keep(value, key, True, f"{path}.{key}")
        elif isinstance(value, tuple | set | frozenset):
            for i, part in enumerate(value):
                self._value(part, f"{path}.{i}")
        else:
            self._object(value, path)

    def _tensor(self, tensor: Tensor, path: str) -> None:
        self._paths[id(tensor)] = path
        self.places.append(Place(tensor, "_data", False, path, "array", tensor._data))
        self.places.append(Place(tensor, "_node", False, path, "plain", tensor._node))
        if isinstance(tensor._node, Leaf):
            self.places.append(Place(tensor._node, "grad", False, path, "gradient", tensor._node.grad))

    def _object(self, value: Any, path: str) -> None:
        if _root(type(value).__module__) not in ("microgradnd", "nn") and not _is_users(type(value).__module__):
            return
        parameter = getattr(value, "parameter", None)  # what an optimiser keeps is named after its parameter
        path = self._paths.get(id(parameter), path) if isinstance(parameter, Tensor) else path
        if hasattr(value, "live_numbers"):
            for mapping, key in value.live_numbers():
                self._numbers.add((id(mapping), key))
        attributes, unwatched = getattr(value, "__dict__", None), getattr(value, "unwatched", ())
        if isinstance(attributes, dict):
            self.lengths.append((attributes, len(attributes), path))
            for name in list(attributes):
                if name in unwatched:
                    self._later.append((attributes[name], f"{path}.{name}"))
                else:
                    self._keep(attributes, name, True, f"{path}.{name}")
        for kind in type(value).__mro__:
            for name in getattr(kind, "__slots__", ()):
                if name not in ("__weakref__", "__dict__", *unwatched):
                    self._keep(value, name, False, f"{path}.{name}")


def _names(code: Any) -> list[str]:
    """The names in a function's text, those in functions within it included."""
    found = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            found.update(dict.fromkeys(_names(constant)))
    return list(found)


def _root(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_users(module: str | None) -> bool:
    root = _root(module)
    return root not in LIBRARIES and (root == "__main__" or root not in sys.stdlib_module_names)


class Watch:
    """What is found in a reach has to stay as it is, but for what replays read anew.

    Attributes:
        conditions: Python expressions, which hold as long as it does.
        scope: the objects that they name.
    """

    def __init__(self, reach: Reach, ignored: set[int]) -> None:
        guarded = reach.of_role("plain", "array", "generator")
        self.places = [x for x in guarded if x.is_guarded and id(x) not in ignored]
        self._lengths = reach.lengths
        self.scope: dict[str, Any] = {}
        self.conditions: list[str] = []
        self._owners: dict[int, str] = {}
        for i, place in enumerate(self.places):
            self.scope[f"value_{i}"] = place.value
            key = "" if isinstance(place.key, str | int) else f"key_{i}"  # of others the text is no expression
            self.scope |= {key: place.key} if key else {}
            self.conditions.append(f"{place.expression(self._name(place.owner), key)} is value_{i}")
        self.conditions += [f"len({self._name(x)}) == {n}" for x, n, _ in reach.lengths]

    def _name(self, owner: Any) -> str:
        name = self._owners.setdefault(id(owner), f"owner_{len(self._owners)}")
        self.scope[name] = owner
        return name

    def differences(self) -> list[tuple[Place | None, str]]:
        """The places that hold something else now, and the names of what has other lengths."""
        found: list[tuple[Place | None, str]] = [(None, path) for x, n, path in self._lengths if len(x) != n]
        for place in self.places:
            try:
                value = place.get()
            except (AttributeError, IndexError, KeyError, ValueError):
                found.append((None, place.path))
                continue
            if value is not place.value and not _equal(value, place.value):
                found.append((place, place.path))
        return found

    def update(self, scope: dict[str, Any]) -> None:
        """Take what lies in the places now for what is expected, also where the conditions are evaluated."""
        for i, place in enumerate(self.places):
            place.value = scope[f"value_{i}"] = place.get()


def _equal(x: Any, y: Any) -> bool:
    return isinstance(x, PLAIN) and x.__class__ is y.__class__ and bool(x == y)
