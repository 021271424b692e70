"""Arrays, numbers and generators that note what is done with them, while a step is recorded.

A recorded array computes like the array that it holds, with NumPy, and every call becomes an instruction. What would
take its value out of the recording (a Python number, an array of NumPy's own) is refused; a branch is noted.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np


class Variable:
    """A value that a step computes or gets: what is known of it before it is computed."""

    __slots__ = ("array", "dtype", "kind", "name", "root", "shape", "strides")

    def __init__(self, value: Any, kind: str, name: str, root: Variable | None = None) -> None:
        is_array = isinstance(value, np.ndarray)
        self.kind = kind  # "input", "argument", "constant", "made", or "number" without an array's attributes
        self.name = name
        self.root = self if root is None else root  # the variable whose memory this is a view of
        self.shape: Any = value.shape if is_array else None
        self.strides: Any = value.strides if is_array else None
        self.dtype: Any = value.dtype if is_array else None
        self.array: Any = None  # of inputs and constants, the array itself


class Instruction:
    """One call: ``function(*args, **kwargs)``, with variables for arrays."""

    __slots__ = ("args", "function", "kind", "kwargs", "name", "note", "results", "structure", "writes")

    def __init__(self, kind: str, name: str, function: Any, args: Any, kwargs: Any, note: str) -> None:
        self.kind = kind  # how it is written down: see recording.text
        self.name = name
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.note = note  # what it belongs to: an operation, its gradient, an optimiser
        self.results: list[Variable] = []  # new ones, in the order of the result's parts
        self.structure: Any = None  # the result, with the variables in their places
        self.writes: list[Variable] = []  # whose memory is changed

    def reads(self) -> Iterator[Variable]:
        return variables((self.args, self.kwargs))


def variables(value: Any) -> Iterator[Variable]:
    """All variables in nested tuples, lists and dicts."""
    if value.__class__ is Variable:
        yield value
    elif value.__class__ in (tuple, list):
        for part in value:
            yield from variables(part)
    elif value.__class__ is dict:
        yield from variables(list(value.values()))


class CaptureError(RuntimeError):
    """A step can't be recorded, or its recording does not repeat what the step does."""


class Recorder:
    """What a step did so far, instruction by instruction."""

    active: Recorder | None = None

    def __init__(self, note: Callable[[], str]) -> None:
        self.instructions: list[Instruction] = []
        self._note = note
        self._thread = threading.get_ident()
        self._roots: dict[int, tuple[Any, Variable]] = {}  # id of an array that owns memory -> itself, its variable
        self._handles: dict[int, tuple[Any, RecordedArray]] = {}  # of inputs, arguments and constants
        self._views: dict[Any, Variable] = {}  # by how they are made
        self._numbers: dict[Any, RecordedNumber] = {}  # what numbers alone give, by how it is computed

    def is_this_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def given(self, array: Any, kind: str, name: str) -> RecordedArray:
        """A handle for an array that was there before, the same one each time."""
        known = self._handles.get(id(array))
        if known is None:
            root = self._root(array)
            if kind == "constant" and array.size:
                name = {0: "zeros", 1: "ones"}.get(array.flat[0], name) if (array == array.flat[0]).all() else name
            variable = Variable(array, kind, name, root)
            variable.array = array
            if root is None:
                self._register(array, variable)
            known = self._handles[id(array)] = (array, RecordedArray(array, variable))
        return known[1]

    def number(self, value: Any, name: str) -> RecordedNumber:
        """A handle for a number that is read anew in each replay."""
        return RecordedNumber(value, Variable(value, "number", name))

    def _root(self, array: Any) -> Variable | None:
        owner = _owner(array)
        found = self._roots.get(id(owner))
        return found[1] if found is not None and found[0]() is owner else None

    def _register(self, array: Any, variable: Variable) -> None:
        owner = _owner(array)
        self._roots[id(owner)] = (weakref.ref(owner), variable)

    def unwrapped(self, value: Any) -> tuple[Any, Any]:
        """A nested argument with arrays for handles, and with variables for them."""
        kind = value.__class__
        if kind is RecordedArray or kind is RecordedNumber or kind is RecordedGenerator:
            return value.value, value.variable
        if kind is np.ndarray:
            return value, self.given(value, "constant", "constant").variable
        if kind in (tuple, list):
            pairs = [self.unwrapped(part) for part in value]
            return kind([real for real, _ in pairs]), kind([noted for _, noted in pairs])
        if kind is dict:
            both = {name: self.unwrapped(part) for name, part in value.items()}
            return {name: x[0] for name, x in both.items()}, {name: x[1] for name, x in both.items()}
        return value, value

    def call(
        self,
        kind: str,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        out: Any = None,
        writes: tuple[Any, ...] = (),
    ) -> Any:
        """The result of a call, noted. ``out`` or ``writes`` are those of its arguments that it changes."""
        if not self.is_this_thread():
            raise CaptureError("capture: another thread uses the tensors of a step while the step is recorded")
        real_args, noted_args = self.unwrapped(args)
        real_kwargs, noted_kwargs = self.unwrapped(kwargs or {})
        instruction = Instruction(kind, name, function, noted_args, noted_kwargs, self._note())
        if out is not None:
            real_out, instruction.writes = out.value, [out.variable]
            result = function(*real_args, **real_kwargs, out=real_out)
            instruction.kwargs["out"] = out.variable
            self.instructions.append(instruction)
            return out if result is real_out else self._result(result, instruction)
        result = function(*real_args, **real_kwargs)
        for given in _flat(args):  # what came is what went: nothing to note
            if given.__class__ is RecordedArray and given.value is result:
                if writes:
                    instruction.writes = [x.variable for x in writes]
                    self.instructions.append(instruction)
                return given
        instruction.writes = [x.variable for x in writes]
        numbers_alone = kind == "operator" and not isinstance(result, np.ndarray | np.generic)
        if numbers_alone:
            key = (name, *((id(x) if x.__class__ is Variable else (x.__class__, x)) for x in noted_args))
            if key not in self._numbers:
                self.instructions.append(instruction)
                self._numbers[key] = self._result(result, instruction)
            return self._numbers[key]
        if isinstance(result, np.ndarray) and not writes and self._root(result) is not None:
            key = (name, repr([id(x) if x.__class__ is Variable else x for x in (*noted_args, *noted_kwargs.items())]))
            if key in self._views:
                return RecordedArray(result, self._views[key])
            handle = self._result(result, instruction)
            self._views[key] = handle.variable
            self.instructions.append(instruction)
            return handle
        self.instructions.append(instruction)
        return self._result(result, instruction)

    def _result(self, result: Any, instruction: Instruction) -> Any:
        handle = self._handle(result, instruction)
        instruction.structure = self.unwrapped(handle)[1]
        return handle

    def _handle(self, result: Any, instruction: Instruction) -> Any:
        if result is None:
            return None
        if result.__class__ in (tuple, list):
            return tuple(self._handle(part, instruction) for part in result)
        if isinstance(result, bool | int | float | complex) and not isinstance(result, np.generic):
            variable = Variable(result, "number", instruction.name)
            instruction.results.append(variable)
            return RecordedNumber(result, variable)
        if not isinstance(result, np.ndarray | np.generic):
            raise CaptureError(f"capture: {instruction.name} gave {result!r}, which is not recorded")
        root = self._root(result) if isinstance(result, np.ndarray) else None
        variable = Variable(result, "made", instruction.name, root)
        if root is None and isinstance(result, np.ndarray):
            self._register(result, variable)
        instruction.results.append(variable)
        return RecordedArray(result, variable)

    def created_like(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An array of the layout of another one, and of one value: noted without the other one."""
        result = function(*self.unwrapped(args)[0], **self.unwrapped(kwargs)[0])
        name = f"np.{function.__name__.removesuffix('_like')}"
        fill = (args[1] if len(args) > 1 else kwargs["fill_value"],) if name == "np.full" else ()
        noted = self.unwrapped((result.shape, *fill, result.dtype))[1]
        instruction = Instruction("create", name, getattr(np, name[3:]), noted, {}, self._note())
        self.instructions.append(instruction)
        return self._result(result, instruction)

    def branch(self, handle: Any, kind: type | None = None) -> Any:
        """The value of ``handle``, converted by ``kind``: replays have to agree on it."""
        value = handle.value if kind is None else kind(handle.value)
        key = ("branch", id(handle.variable), kind)
        if key not in self._numbers:
            self._numbers[key] = handle
            name = "branch" if kind is None else kind.__name__
            self.instructions.append(Instruction("branch", name, kind, (handle.variable, value), {}, self._note()))
        return value


def _flat(args: Any) -> Iterator[Any]:
    for part in args:
        if part.__class__ in (tuple, list):
            yield from _flat(part)
        else:
            yield part


def _owner(array: Any) -> Any:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def recorder() -> Recorder:
    """The active recorder."""
    if Recorder.active is None:
        raise CaptureError(
            "capture: this array belongs to a step that was recorded before; a captured step hands out what it returns"
        )
    return Recorder.active


OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
    "eq": "equal", "ne": "not_equal", "neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert",
}  # fmt: skip
UNARY = ("neg", "pos", "abs", "invert")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
FUNCTIONS = {"and": operator.and_, "or": operator.or_}


class _Recorded:
    """Operators, which arrays and numbers have in common."""

    __slots__ = ("__weakref__", "value", "variable")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any, variable: Variable) -> None:
        self.value = value
        self.variable = variable

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if any(getattr(x, "__array_ufunc__", self) is None for x in inputs):
            return NotImplemented
        name = f"np.{ufunc.__name__}"
        if method == "at":
            return recorder().call("function", f"{name}.at", ufunc.at, inputs, writes=inputs[:1])
        if method == "__call__":
            out = out[0] if out is not None and len(out) == 1 else out
            return recorder().call("ufunc", name, ufunc, inputs, kwargs, _to_write(out))
        if method == "reduce":
            for key, value in zip(("axis", "dtype"), inputs[1:], strict=False):
                kwargs[key] = value
            out = out[0] if isinstance(out, tuple) else out
            kwargs = {key: value for key, value in kwargs.items() if value is not None or key == "axis"}
            return recorder().call("reduce", f"{name}.reduce", ufunc.reduce, inputs[:1], kwargs, _to_write(out))
        return recorder().call("function", f"{name}.{method}", getattr(ufunc, method), inputs, kwargs, _to_write(out))

    def __repr__(self) -> str:
        return f"<{self.variable.name}, being recorded>"

    def __bool__(self) -> bool:
        return bool(recorder().branch(self, bool))


def _to_write(out: Any) -> Any:
    if out is not None and out.__class__ is not RecordedArray:
        raise CaptureError("capture: a result was written into an array that the recording does not know")
    return out


def _operator(name: str) -> Any:
    function = FUNCTIONS.get(name) or getattr(operator, name)

    def apply(self: Any, *other: Any) -> Any:
        if other and getattr(other[0], "__array_ufunc__", self) is None:
            return NotImplemented  # a tensor's own
        return recorder().call("operator", name, function, (self, *other))

    return apply


def _reflected(name: str) -> Any:
    function = FUNCTIONS.get(name) or getattr(operator, name)
    return lambda self, other: recorder().call("operator", name, function, (other, self))


def _in_place(name: str) -> Any:
    function = getattr(operator, f"i{name}")

    def apply(self: RecordedArray, other: Any) -> Any:
        if not isinstance(self.value, np.ndarray):
            return recorder().call("operator", name, FUNCTIONS.get(name) or getattr(operator, name), (self, other))
        recorder().call("in place", name, function, (self, other), writes=(self,))
        return self

    return apply


for _name in OPERATORS:
    setattr(_Recorded, f"__{_name}__", _operator(_name))
    if _name not in UNARY + COMPARISONS:
        setattr(_Recorded, f"__r{_name}__", _reflected(_name))


class RecordedNumber(_Recorded):
    """A Python number that replays read or compute anew. Where its value is asked for, replays have to agree on it."""

    __slots__ = ()

    def __float__(self) -> float:
        return float(recorder().branch(self))

    def __int__(self) -> int:
        return int(recorder().branch(self))

    def __index__(self) -> int:
        return operator.index(recorder().branch(self))


class RecordedArray(_Recorded):
    """An array, or one of NumPy's numbers, of a step that is being recorded."""

    __slots__ = ()

    def _unknown(self, *_: Any) -> NoReturn:
        raise CaptureError(
            "capture: the value of a tensor was asked for (item, float, print, a NumPy function that is not recorded), "
            "which a replay does not know before it computes; return the tensor from the step instead"
        )

    __float__ = __int__ = __index__ = __complex__ = __array__ = item = tolist = tobytes = __format__ = _unknown

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    strides = property(lambda self: self.value.strides)
    flags = property(lambda self: self.value.flags)
    base = property(lambda self: self.value.base)
    itemsize = property(lambda self: self.value.itemsize)
    nbytes = property(lambda self: self.value.nbytes)
    T = property(lambda self: recorder().call("attribute", "T", operator.attrgetter("T"), (self,)))

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def get(self) -> RecordedArray:
        """What ``Tensor.numpy`` asks arrays for that are not NumPy's."""
        return self

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        module = function.__module__.removeprefix("numpy")
        name = f"np{module if module.startswith(('.linalg', '.fft')) else ''}.{function.__name__}"
        if function in DESCRIBING:
            real_args, _ = recorder().unwrapped(args)
            real_kwargs, _ = recorder().unwrapped(kwargs)
            return function(*real_args, **real_kwargs)
        if function in CREATING:
            return create(function, args, kwargs)
        if function in CREATING_LIKE:
            return recorder().created_like(function, args, kwargs)
        writes = args[:1] if function in WRITING else ()
        if writes and writes[0].__class__ is not RecordedArray:
            raise CaptureError(f"capture: {name} writes into an array that the recording does not know")
        out = kwargs.pop("out", None)
        return recorder().call("function", name, function, args, kwargs, _to_write(out), writes)

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS and name not in CHANGING:
            raise AttributeError(f"capture: arrays of a recorded step have no attribute {name}")

        def method(*args: Any, out: Any = None, **kwargs: Any) -> Any:
            function = getattr(np.ndarray if isinstance(self.value, np.ndarray) else np.generic, name)
            writes = (self,) if name in CHANGING else ()
            return recorder().call("method", name, function, (self, *args), kwargs, _to_write(out), writes)

        return method

    def __getitem__(self, index: Any) -> Any:
        return recorder().call("getitem", "getitem", operator.getitem, (self, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if value.__class__ is RecordedArray and value.variable.root is self.variable.root:
            target = self.value[recorder().unwrapped(index)[0]]
            if isinstance(target, np.ndarray) and _same_memory(target, value.value):
                return  # x[index] += y ends with x[index] = what lies there already
        recorder().call("setitem", "setitem", operator.setitem, (self, index, value), writes=(self,))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(RecordedArray, f"__i{_name}__", _in_place(_name))


def _same_memory(x: Any, y: Any) -> bool:
    interfaces = [a.__array_interface__["data"][0] for a in (x, y)]
    return bool(interfaces[0] == interfaces[1]) and x.shape == y.shape and x.strides == y.strides and x.dtype == y.dtype


METHODS = frozenset(
    [
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "astype",
        "clip",
        "conj",
        "copy",
        "cumprod",
        "cumsum",
        "diagonal",
        "dot",
        "flatten",
        "max",
        "mean",
        "min",
        "nonzero",
        "prod",
        "ravel",
        "repeat",
        "reshape",
        "round",
        "squeeze",
        "std",
        "sum",
        "swapaxes",
        "take",
        "trace",
        "transpose",
        "var",
        "view",
    ]
)
CHANGING = frozenset(["fill", "sort"])
WRITING = (np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal)
DESCRIBING = (np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.iscomplexobj, np.isrealobj)
CREATING = (np.empty, np.zeros, np.ones, np.full, np.arange, np.tri, np.eye, np.identity, np.linspace)
CREATING_LIKE = (np.empty_like, np.zeros_like, np.ones_like, np.full_like)


def create(function: Any, args: Any, kwargs: Any) -> Any:
    """An array that depends on no other."""
    return recorder().call("create", f"np.{function.__name__}", function, args, kwargs)


class RecordedGenerator:
    """A random generator: what it draws in a step is drawn anew in each replay."""

    __slots__ = ("__weakref__", "value", "variable")

    def __init__(self, value: np.random.Generator, variable: Variable) -> None:
        self.value = value
        self.variable = variable

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("bit_generator", "spawn"):
            raise CaptureError(f"capture: {name} of a random generator is used in a step, which is not recorded")

        def draw(*args: Any, **kwargs: Any) -> Any:
            if name == "shuffle" or "out" in kwargs:
                raise CaptureError(f"capture: {name} changes an array in place, which is not recorded; assign a result")
            return recorder().call("draw", name, getattr(np.random.Generator, name), (self, *args), kwargs)

        return draw
