"""Arrays, numbers and generators that note what is done with them, while a step is recorded.

A recorded array computes like the array that it holds, with NumPy, and every call becomes an instruction. What would
take its value out of the recording (a Python number, an array of NumPy's own) is refused; a branch is noted.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from .instructions import CaptureError, Variable, recorder

OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
    "eq": "equal", "ne": "not_equal", "neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert",
}  # fmt: skip
UNARY = ("neg", "pos", "abs", "invert")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")


class _Recorded:
    """Operators, which arrays and numbers have in common."""

    __slots__ = ("__weakref__", "value", "variable")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: Any, variable: Variable) -> None:
        self.value = value
        self.variable = variable

    # For isinstance it is what it holds; the recording itself asks for the type.
    __class__ = property(lambda self: type(self.value))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if any(getattr(x, "__array_ufunc__", self) is None for x in inputs):
            return NotImplemented
        name = f"np.{ufunc.__name__}"
        if getattr(np, ufunc.__name__, None) is not ufunc:
            raise CaptureError(f"capture: the ufunc {ufunc.__name__} is not one of NumPy's, which alone are recorded")
        if method == "at":
            _to_write(inputs[0])
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
    if out is not None and type(out) is not RecordedArray:
        raise CaptureError(
            "capture: a result was written into an array that the step made without any other array; make it with "
            "np.zeros(shape, dtype, like=x), so that the recording knows it"
        )
    return out


def _operator(name: str) -> Any:
    function = getattr(operator, f"__{name}__")

    def apply(self: Any, *other: Any) -> Any:
        if other and getattr(other[0], "__array_ufunc__", self) is None:
            return NotImplemented  # a tensor's own
        return recorder().call("operator", name, function, (self, *other))

    return apply


def _reflected(name: str) -> Any:
    function = getattr(operator, f"__{name}__")
    return lambda self, other: recorder().call("operator", name, function, (other, self))


def _in_place(name: str) -> Any:
    function = getattr(operator, f"i{name}")

    def apply(self: RecordedArray, other: Any) -> Any:
        if not isinstance(self.value, np.ndarray):
            return recorder().call("operator", name, getattr(operator, f"__{name}__"), (self, other))
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

    def __format__(self, spec: str) -> str:
        return format(recorder().branch(self), spec)

    def __str__(self) -> str:
        return str(recorder().branch(self))

    def __round__(self, digits: int | None = None) -> Any:
        return round(recorder().branch(self), digits)

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
            "capture: the value of a tensor was asked for, by item, float or print, by a NumPy function that is not "
            "recorded, or as the index of a plain array (of mg.tensor(table) it is recorded); replays do not know it "
            "before it computes: return the tensor from the step instead"
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
        if writes and type(writes[0]) is not RecordedArray:
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
        if type(value) is RecordedArray and value.variable.root is self.variable.root:
            target = self.value[recorder().unwrapped(index)[0]]
            if isinstance(target, np.ndarray) and lies_alike(target, value.value):
                return  # x[index] += y ends with x[index] = what lies there already
        recorder().call("setitem", "setitem", operator.setitem, (self, index, value), writes=(self,))


for _name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(RecordedArray, f"__i{_name}__", _in_place(_name))


def lies_alike(x: Any, y: Any) -> bool:
    """Whether two arrays are the same elements in the same places."""
    interfaces = [a.__array_interface__["data"][0] for a in (x, y)]
    return bool(interfaces[0] == interfaces[1]) and x.shape == y.shape and x.strides == y.strides and x.dtype == y.dtype


METHODS = frozenset([
    "all", "any", "argmax", "argmin", "argsort", "astype", "clip", "conj", "copy", "cumprod", "cumsum", "diagonal",
    "dot", "flatten", "max", "mean", "min", "nonzero", "prod", "ravel", "repeat", "reshape", "round", "squeeze", "std",
    "sum", "swapaxes", "take", "trace", "transpose", "var", "view",
])  # fmt: skip
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
