"""What a step can reach: the tensors, arrays, generators and plain values that its outcome may depend on.

Found by going through the variables that the texts of its functions name, through its arguments, and on through
layers, optimisers, lists, dicts and objects. A replay is valid as long as all of it is what it was, apart from what
replays read anew.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import random
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from threading import local
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

import numpy as np

from ..autograd import Leaf
from ..dtypes import is_numeric
from ..primitive import is_operation
from ..tensor import Tensor
from .active import CaptureError
from .arrays import HANDLES, RecordedArray, RecordedGenerator, RecordedNumber
from .instructions import is_array, is_on_device, root_of
from .places import (
    CACHE,
    KEYS,
    LENGTH,
    PLAIN,
    SAME,
    WHOLE,
    WITHOUT,
    WITHOUT_ATTRIBUTE,
    WITHOUT_KEY,
    Look,
    Place,
    beginning_of,
    cached_values,
    is_equal,
    is_plain,
    kind_of,
    snapshot,
)
from .scout import Executed, globals_in, is_users, modules_in

MOST = 100_000  # places that are looked at
# What decorators in classes make of functions, and where these are then.
DECORATED = (
    classmethod, staticmethod, property, functools.cached_property, functools.partialmethod,
    functools.singledispatchmethod,
)  # fmt: skip
METHODS = ("__call__", "__getattr__")  # that are called by no name
FUNCTIONS = ("__func__", "fget", "fset", "func", "args", "keywords", "dispatcher")
# What reads or writes attributes whose names are in no text.
ANY_ATTRIBUTE = frozenset(["__dict__", "asdict", "astuple", "getattr", "replace", "vars"])
# Objects of Python's own without attributes, which show what they hold, or go through it.
THROUGH: tuple[type, ...] = (
    type({}.keys()), type({}.values()), type({}.items()), enumerate, filter, map, zip,
    type(functools.cmp_to_key(max)),
)  # fmt: skip
# Not looked into: what belongs to other libraries, and the machinery of Python itself.
OPAQUE = frozenset([
    "_thread", "cupy", "cupyx", "io", "jax", "logging", "matplotlib", "pandas", "threading", "torch", "tqdm", "weakref",
])  # fmt: skip


class Reach:
    """Everything that a call of a function can reach, as it is now."""

    def __init__(self, function: Callable[..., Any], args: Any, executed: Executed) -> None:
        self.places: list[Place] = []
        self.looks: list[tuple[Look, Any, Any, str]] = []  # how, at what, what is expected, its path
        self.kinds: list[tuple[Look, Any, Any, str]] = []  # the same for the types of numbers, which a step may change
        self.refusal: str | None = None  # why what is there can't be recorded
        self.variables: list[tuple[ContextVar[Any], str]] = []
        self.caches: list[tuple[Any, str]] = []  # functions with functools.lru_cache
        self.without_place: list[Any] = []  # random generators that get no handle, such as those in tuples
        self._seen: dict[int, Any] = {}
        self._kept: set[tuple[int, Any]] = set()
        self._numbers: set[tuple[int, Any]] = set()
        self._paths: dict[int, str] = {}  # of tensors
        self._waiting: list[tuple[Any, str]] = []
        self.later_looks: list[tuple[Look, Any, Any, str]] = []  # at what need not be looked at in each replay
        self._later: list[tuple[Any, str]] = []
        self._own = executed.own
        self._names, self._strings, self._codes = executed.names(), executed.strings(), executed.globals
        self._function(function, "")
        for code, scope in executed.globals.items():
            self._globals(code, scope)
        for i, x in enumerate(args):
            self._argument(x, f"argument_{i}")
        # What comes last is taken first: layers, by whose names people know their parameters; optimisers when all else
        # has a name, but their numbers are known before, since a step may name the group where they lie.
        for value, _ in self._waiting:
            self._live_numbers(value)
        self._waiting.sort(key=lambda x: hasattr(type(x[0]), "named_tensors") - hasattr(type(x[0]), "live_numbers"))
        self._go_on()
        guarded, looks = len(self.places), len(self.looks)
        self._waiting += self._later
        self._go_on()
        self.later_looks, self.looks = self.looks[looks:], self.looks[:looks]
        for place in self.places[guarded:]:
            place.is_guarded = False

    def of_role(self, *roles: str) -> Iterator[Place]:
        return (place for place in self.places if place.role in roles)

    def changed_plainly(self) -> list[tuple[Place, Any]]:
        """The places of numbers, strings and the like that hold another one now, with what they hold."""
        return [(place, value) for place, value in self._changed() if _are_plain(place.value, value)]

    def changed_otherwise(self) -> str | None:
        """Something else that is not what it was, if there is one: by its path."""
        changed = (place.path for place, value in self._changed() if not _are_plain(place.value, value))
        return next(itertools.chain(changed, _different(self.looks)), None)

    def _changed(self) -> Iterator[tuple[Place, Any]]:
        for place in self.of_role("plain", "node"):
            value = place.look()
            if value is not place.value and not is_equal(value, place.value):
                yield place, value

    def different(self) -> Iterator[str]:
        """The paths of what has another length, order or content as a whole, and of what was not there before."""
        return _different([*self.looks, *self.kinds, *self.later_looks])

    def _go_on(self) -> None:
        while self._waiting:
            self._open(*self._waiting.pop())

    # Finding

    def _function(self, function: Any, path: str) -> None:
        if isinstance(function, functools.partial):
            self._value(function.keywords, f"{path}keywords")
            for i, part in enumerate([function.func, *function.args]):
                self._value(part, f"{path}argument_{i}")
        elif isinstance(function, MethodType):
            self._value(function.__self__, "self")
            self._function(function.__func__, path)
        elif not isinstance(function, FunctionType):
            self._value(function, path or "step")
        elif is_operation(function):
            operation = vars(function)["operation"]
            if self._is_programs(operation.function):  # of ours nothing changes
                for part in (operation.function, *operation.vjps, operation.conversion):
                    self._value(part, path)
        elif id(function) not in self._seen:
            self._seen[id(function)] = function
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                self._keep(cell, "cell_contents", False, name)
            if not self._is_programs(function):
                return
            self._globals(function.__code__, function.__globals__)
            self._keep(function, "__code__", False, f"{path}code")  # IPython's autoreload replaces it
            self._attributes(vars(function), f"{path}{function.__name__}", self._names)
            self._keep(function, "__defaults__", False, f"{path}defaults")
            self._keep(function, "__kwdefaults__", False, f"{path}defaults")

    def _is_programs(self, function: Any) -> bool:
        """By where its text is: a decorator of ours gives its function the module of what it decorates."""
        return is_users(function.__globals__.get("__name__")) or function.__globals__ is self._own

    def _argument(self, x: Any, path: str) -> None:
        """Objects among the arguments; arrays, and what is in containers, are looked at in every call."""
        if isinstance(x, list | tuple):
            for i, part in enumerate(x):
                self._argument(part, f"{path}.{i}")
        elif isinstance(x, dict):
            for name, part in x.items():
                self._argument(part, f"{path}.{name}")
        elif not isinstance(x, Tensor | np.random.Generator) and not is_array(x):
            self._value(x, path)

    def _globals(self, code: CodeType, scope: dict[str, Any]) -> None:
        for name in globals_in(code):
            if name in scope:
                self._keep(scope, name, True, name)
            elif (id(scope), name) not in self._kept:  # one of Python's own, as long as there is no other
                self._kept.add((id(scope), name))
                self.looks.append((WITHOUT_KEY, scope, name, name))
        for module in modules_in(code, scope):
            self._value(module, module.__name__)

    def _module(self, module: ModuleType, path: str) -> None:
        """Of a module of the program what the texts of functions name, by strings too where they may ask for any."""
        if is_users(module.__name__):
            names = self._names | self._strings if ANY_ATTRIBUTE & self._names else self._names
            for name in list(vars(module)):
                if name in names and not name.startswith("__"):
                    self._keep(module, name, False, f"{path}.{name}")
            if module.__name__ != "__main__":
                self.looks.append((LENGTH, vars(module), len(vars(module)), path))

    def _class(self, value: type, path: str) -> None:
        self._value(type(value), f"{path}.__class__")
        for base in value.__mro__[1:]:
            self._value(base, f"{path}.{base.__name__}")
        if is_users(value.__module__):
            attributes, all_read = vars(value), self._are_read_by_others(value.__mro__)
            self.looks.append((LENGTH, attributes, len(attributes), path))
            for name, part in attributes.items():
                if isinstance(part, (FunctionType, *DECORATED)):
                    if name in METHODS or not name.startswith("__") or self._has_run(part):
                        self._keep(attributes, name, True, f"{path}.{name}")  # getattr would call some
                elif (all_read or name in self._names) and not name.startswith("__"):
                    if hasattr(type(part), "__get__"):
                        self._keep(attributes, name, True, f"{path}.{name}")
                    else:  # so that it can be set too
                        self._keep(value, name, False, f"{path}.{name}")

    def _has_run(self, method: Any) -> bool:
        """Whether a method that is not called by its name has run in the step."""
        return getattr(method, "__code__", None) in self._codes

    def _keep(self, owner: Any, key: Any, is_item: bool, path: str) -> None:
        """Note what lies in a place, and go on into it."""
        if (id(owner), key) in self._kept:
            return
        try:
            value = owner[key] if is_item else getattr(owner, key)
        except ValueError:  # an empty cell
            return
        except AttributeError:  # a slot that is not set
            self.looks.append((WITHOUT_ATTRIBUTE, owner, key, path))
            return
        self._kept.add((id(owner), key))
        if len(self.places) > MOST:
            raise CaptureError(
                f"capture: the step can reach more than {MOST} values; hand it what it needs as arguments"
            )
        role = "plain"
        if _is_recorded(value):
            role = "array"
        elif isinstance(value, np.random.Generator | RecordedGenerator):
            role = "generator"
        elif type(value) is RecordedNumber:
            role = "number"
        elif isinstance(value, tuple) and any(map(_is_recorded, _in_tuples(value))):
            role = "tuple"
        self.places.append(Place(owner, key, is_item, path, role, value))
        for part in value if role == "tuple" else ():
            if not _is_recorded(part):
                self._value(part, path)
        if role == "plain" or (role == "array" and not is_numeric(value.dtype)):
            self._value(value, path)

    def _value(self, value: Any, path: str) -> None:
        if type(value) in HANDLES or isinstance(value, (*PLAIN, CellType, CodeType)) or id(value) in self._seen:
            return
        if isinstance(value, FunctionType | MethodType | functools.partial):
            self._function(value, f"{path}.")
            return
        if isinstance(value, BuiltinFunctionType):  # a method such as d.get
            self._value(value.__self__, path)
            return
        self._seen[id(value)] = value
        if isinstance(value, np.ndarray) or is_on_device(value):
            self._array(value, path)
        elif isinstance(value, type):
            self._class(value, path)
        elif isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
            self.without_place.append(value)
        elif isinstance(value, ModuleType):
            self._module(value, path)
        else:
            self._holder(value, path)

    def _array(self, value: Any, path: str) -> None:
        if is_on_device(value):
            if value.dtype.kind not in "biufc":
                raise CaptureError(f"capture: {path} is an array of {value.dtype} on a device, which is not recorded")
            return
        if type(value) is not np.ndarray or not is_numeric(value.dtype):
            self.looks.append((WHOLE, value, snapshot(value), path))
        for part in value.flat if value.dtype.hasobject and value.dtype.names is None else ():
            self._value(part, path)

    def _holder(self, value: Any, path: str) -> None:
        """What Python's library makes of functions and objects, and all others, whose turn comes later."""
        if isinstance(value, DECORATED):
            for name in FUNCTIONS:
                part = getattr(value, name, None)
                if name == "dispatcher" or not isinstance(part, FunctionType) or self._has_run(part):
                    self._value(part, f"{path}.")
        elif isinstance(value, functools._lru_cache_wrapper):
            path = f"the cache of {getattr(value, '__name__', path)}"
            self.caches.append((value, path))
            self.looks.append((CACHE, value, beginning_of(value), path))
            for part in cached_values(value):
                self._value(part, path)
        elif isinstance(value, ref):
            self._value(value(), path)
        elif isinstance(value, WeakKeyDictionary | WeakSet | WeakValueDictionary):
            self._keep(value, "data", False, path)
        elif isinstance(value, memoryview):
            with contextlib.suppress(ValueError):  # it has been released
                self.looks.append((WHOLE, value, bytes(value), path))
        wrapped = getattr(value, "__dict__", {}).get("__wrapped__")  # of what a decorator made
        self._value(wrapped, f"{path}.")
        if wrapped is None or root_of(type(value).__module__) not in ("functools", "microgradnd"):
            self._waiting.append((value, path))

    def _open(self, value: Any, path: str) -> None:
        if isinstance(value, Tensor):
            self._tensor(value, path)
            return
        if isinstance(value, ContextVar):
            self.looks.append((WHOLE, value, snapshot(value), path))
            self.variables.append((value, path))
            self._value(value.get(None), path)
        elif isinstance(value, MappingProxyType):
            self._value(gc.get_referents(value)[0], path)  # what it shows
        elif isinstance(value, list | dict) or (isinstance(value, deque) and not all(map(is_plain, value))):
            if isinstance(value, dict) and len(value) > 1:
                plain = all(isinstance(key, PLAIN) for key in value)
                self.looks.append((KEYS if plain else SAME, value, [*value], path))
            else:
                self.looks.append((LENGTH, value, len(value), path))
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                if (id(value), key) in self._numbers and isinstance(value[key], int | float | np.floating):
                    self._number(value, key, f"{path}.{key}")
                else:
                    self._keep(value, key, True, f"{path}.{key}")
                if not isinstance(key, PLAIN):
                    self._value(key, path)
        elif isinstance(value, THROUGH):
            for part in gc.get_referents(value):
                self._value(part, path)
        elif hasattr(type(value), "__length_hint__"):  # an iterator, which a replay does not advance
            self.looks.append((WHOLE, value, snapshot(value), path))
        elif isinstance(value, tuple | set | frozenset | deque | array | bytearray):
            if not isinstance(value, tuple | frozenset):
                self.looks.append((WHOLE, value, snapshot(value), path))
            for i, part in enumerate(value):
                self._value(part, f"{path}.{i}")
        self._object(value, path)

    def _number(self, owner: Any, key: Any, path: str) -> None:
        """One that replays read anew; as a float, unless the step's own functions name it."""
        value = owner[key]
        place = Place(owner, key, True, path, "number", value)
        if key in self._strings:
            if isinstance(value, np.generic):
                self.refusal = (
                    f"capture: {path} is a {type(value).__name__} of NumPy, and the step itself names {key}; make it a "
                    "number of Python, float(x)"
                )
            self.kinds.append((kind_of(key), owner, type(value), path))
            place.is_typed = True
        self.places.append(place)

    def _tensor(self, tensor: Tensor, path: str) -> None:
        self._paths[id(tensor)] = path
        self.places.append(Place(tensor, "_data", False, path, "array", tensor._data))
        self.places.append(Place(tensor, "_node", False, path, "node", tensor._node))
        if isinstance(tensor._node, Leaf):
            self.places.append(Place(tensor._node, "grad", False, path, "gradient", tensor._node.grad))

    def _object(self, value: Any, path: str) -> None:
        if isinstance(value, local):
            for name in vars(value):
                self._keep(value, name, False, f"{path}.{name}")  # by its name, since each thread has its own
        if root_of(type(value).__module__) in OPAQUE:
            return
        parameter = getattr(value, "parameter", None) if hasattr(type(value), "parameter") else None
        path = self._paths.get(id(parameter), path) if isinstance(parameter, Tensor) else path  # an optimiser's slot
        self._live_numbers(value)
        attributes, unwatched = getattr(value, "__dict__", None), getattr(type(value), "unwatched", ())
        # Of objects that the library knows nothing of, only what the program's functions name can matter.
        named = None if self._are_read_by_others(type(value).__mro__) else self._names
        if named is not None and "__match_args__" in named:  # patterns name attributes by position
            named = named | set(getattr(type(value), "__match_args__", ()))
        if isinstance(attributes, dict):
            self._attributes(attributes, path, named, type(value))
        if is_users(type(value).__module__):
            self._keep(value, "__class__", False, f"{path}.__class__")
        for kind in type(value).__mro__:
            self._value(kind, f"{path}.{kind.__name__}")
            slots = getattr(kind, "__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__weakref__", "__dict__", *unwatched) and (named is None or name in named):
                    mangled = name.startswith("__") and not name.endswith("__")
                    name = f"_{kind.__name__.lstrip('_')}{name}" if mangled else name
                    self._keep(value, name, False, f"{path}.{name}")

    def _live_numbers(self, value: Any) -> None:
        if hasattr(type(value), "live_numbers"):
            for mapping, key in value.live_numbers():
                self._numbers.add((id(mapping), key))

    def _attributes(
        self, attributes: dict[str, Any], path: str, named: set[str] | None, kind: type | None = None
    ) -> None:
        """Those in ``named`` (None: all), and that there is none more: it might hide that of a class."""
        if named is None:
            self.looks.append((LENGTH, attributes, len(attributes), f"an attribute of {path}"))
        else:
            self.looks.append((WITHOUT, attributes, frozenset(named - attributes.keys()), f"an attribute of {path}"))
        for name in list(attributes):
            if name in getattr(kind, "unwatched", ()) or (named is not None and name not in named):
                continue
            if name in getattr(kind, "looked_at_later", ()):
                self._later.append((attributes[name], f"{path}.{name}"))
            else:
                self._keep(attributes, name, True, f"{path}.{name}")

    def _are_read_by_others(self, kinds: tuple[type, ...]) -> bool:
        """Whether attributes are read without being named: by layers, optimisers, ChainMap, or what asks for any."""
        if ANY_ATTRIBUTE & self._names:
            return True
        known = ("collections", "microgradnd", "nn", "numpy")
        asked = {"__getattr__", "__getattribute__"}
        return any(
            root_of(kind.__module__) in known or (is_users(kind.__module__) and asked & vars(kind).keys())
            for kind in kinds
        )


def _is_recorded(x: Any) -> bool:
    """Whether x is an array that gets a handle, or one."""
    return type(x) is np.ndarray or is_on_device(x) or type(x) is RecordedArray


def _different(looks: list[tuple[Look, Any, Any, str]]) -> Iterator[str]:
    return (path for look, x, expected, path in looks if not look.holds(x, expected))


def _in_tuples(x: Any) -> Iterator[Any]:
    """What is in nested tuples."""
    for part in x:
        yield from _in_tuples(part) if isinstance(part, tuple) else (part,)


def _are_plain(*values: Any) -> bool:
    return all(map(is_plain, values))
