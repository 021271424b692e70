"""Arrays, numbers and generators that note what is done with them, while a step is recorded.

A recorded array computes like the array that it holds, with NumPy or CuPy, and every call becomes an instruction.
What would take its value out of the recording (a Python number, an array of NumPy's own) is refused; a branch is noted.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from .active import CaptureError, recorder
from .instructions import Variable, is_array, is_on_device, library_of, root_of
from .operators import give_operators, give_operators_in_place

AS_TEXT = np.array2string, np.array_repr, np.array_str


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
        prefix, library = _library_of_all([*inputs, *(out or ())])
        name = f"{prefix}.{ufunc.__name__}"
        if library is not np:
            return _ufunc_on_device(library, ufunc, method, inputs, out, kwargs)
        if getattr(np, ufunc.__name__, None) is not ufunc:
            raise CaptureError(f"capture: the ufunc {ufunc.__name__} is not one of NumPy's, which alone are recorded")
        if out is not None:
            if len(out) > 1:
                raise CaptureError(f"capture: {name} writes into several arrays, which is not recorded")
            (out,) = out
        if method == "at":
            to_write(inputs[0])
            return recorder().call("function", f"{name}.at", ufunc.at, inputs, writes=inputs[:1])
        if method == "__call__":
            return recorder().call("ufunc", name, ufunc, inputs, kwargs, to_write(out))
        if method == "reduce":
            for key, value in zip(("axis", "dtype"), inputs[1:], strict=False):
                kwargs[key] = value
            kwargs = {key: value for key, value in kwargs.items() if value is not None or key == "axis"}
            return recorder().call("reduce", f"{name}.reduce", ufunc.reduce, inputs[:1], kwargs, to_write(out))
        return recorder().call("function", f"{name}.{method}", getattr(ufunc, method), inputs, kwargs, to_write(out))

    def __getattr__(self, name: str) -> Any:
        """Refused, where what it holds has it: hasattr must not hear that there is none.

        But for special names, which NumPy and copy ask for, to take others where there are none.
        """
        if name in _Recorded.__slots__:  # of a handle that has not been given its value
            raise AttributeError(name)
        if name.startswith("__") or not hasattr(self.value, name):
            raise AttributeError(f"{type(self.value).__name__} has no attribute {name}")
        raise CaptureError(f"capture: {name} of {self.variable.name} is asked for, which is not recorded")

    def __bool__(self) -> bool:
        return bool(recorder().branch(self, bool))

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__copy__()


def _library_of_all(values: Any) -> tuple[str, Any]:
    """What computes with the values of these handles: CuPy, if one of them lies on a device."""
    found = [x.value for x in values if type(x) is RecordedArray]
    return library_of(next(filter(is_on_device, found), None))


def _ufunc_on_device(library: Any, ufunc: np.ufunc, method: str, inputs: Any, out: Any, kwargs: Any) -> Any:
    """A ufunc of NumPy's for arrays on a device, where CuPy has one of the same name."""
    function = getattr(library, ufunc.__name__, None)
    if method != "__call__" or function is None:
        raise CaptureError(f"capture: np.{ufunc.__name__}.{method} of an array on a device is not recorded")
    return device_ufunc(f"cp.{ufunc.__name__}", function, (*inputs, *(out or ())), kwargs)


def device_ufunc(name: str, function: Any, args: Any, kwargs: Any) -> Any:
    """A ufunc of CuPy's, or an elementwise kernel: what it takes beyond its inputs it writes into."""
    out = kwargs.pop("out", None)
    inputs, written = args[: function.nin], args[function.nin :]
    out = out[0] if isinstance(out, tuple) and len(out) == 1 else out
    out = written[0] if len(written) == 1 and out is None else out
    if len(written) > 1 or isinstance(out, tuple):
        raise CaptureError(f"capture: {name} writes into several arrays, which is not recorded")
    kind = "ufunc" if name.startswith("cp.") else "whole"
    if kind == "whole" and kwargs:
        raise CaptureError(f"capture: {name} with {', '.join(kwargs)} is not recorded")
    if kind == "whole" and out is not None:
        return recorder().call(kind, name, function, (*inputs, to_write(out)), kwargs, writes=(out,))
    return recorder().call(kind, name, function, inputs, kwargs, to_write(out))


def to_write(out: Any) -> Any:
    """An array that a call writes into: one that is being recorded."""
    if out is not None and type(out) is not RecordedArray:
        raise CaptureError(
            "capture: a result was written into an array that the step made without any other array; make it with "
            "np.zeros(shape, dtype, like=x), so that the recording knows it"
        )
    return out


give_operators(_Recorded)


class RecordedNumber(_Recorded):
    """A Python number that replays read or compute anew. Where its value is asked for, replays have to agree on it."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return format(recorder().branch(self), spec)

    def __repr__(self) -> str:
        return repr(recorder().branch(self))

    def __round__(self, digits: int | None = None) -> Any:
        return round(recorder().branch(self), digits)

    def __float__(self) -> float:
        return float(recorder().branch(self))

    def __int__(self) -> int:
        return int(recorder().branch(self))

    def __index__(self) -> int:
        return operator.index(recorder().branch(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(recorder().branch(self), dtype)  # as part of a list of numbers


class RecordedArray(_Recorded):
    """An array, or one of NumPy's numbers, of a step that is being recorded."""

    __slots__ = ()

    def _unknown(self, *_: Any, **__: Any) -> NoReturn:
        if self.variable.kind == "argument" and not is_array(self.value):
            name = self.variable.name
            raise CaptureError(
                f"capture: the value of {name} was asked for, a {type(self.value).__name__}, which replays take anew "
                f"each time, as they do arrays; hand over int({name}) or float({name})"
            )
        if any(x.kind == "draw" and self.variable in x.results for x in recorder().instructions):
            raise CaptureError(
                "capture: the value of a random number was asked for, by int, float or print, or as an index; replays "
                "draw others: draw it before the call, and hand it over"
            )
        raise CaptureError(
            "capture: the value of a tensor was asked for, by item, float or print, by a NumPy function that is not "
            "recorded (np.array and np.asarray; np.stack and x.copy() are), or as the index of a plain array (of "
            "mg.tensor(table) it is recorded); replays do not know it before it computes: return the tensor from the "
            "step instead"
        )

    __float__ = __int__ = __index__ = __complex__ = __round__ = __array__ = _unknown
    item = tolist = tobytes = __format__ = __repr__ = _unknown

    T = property(lambda self: recorder().call("attribute", "T", operator.attrgetter("T"), (self,)))

    def __copy__(self) -> Any:
        return self.copy("K") if is_array(self.value) else self

    def __len__(self) -> int:
        self.variable.root.is_asked = True
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return bool((self == value).any())

    @property
    def base(self) -> Any:
        """Whose memory this is a view of: for ourselves, who ask whether there is such an array and no more."""
        base = self.value.base
        if base is not None and root_of(sys._getframe(1).f_globals.get("__name__")) != "microgradnd":
            raise CaptureError(f"capture: base of {self.variable.name} is asked for, which is not recorded")
        return base

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        prefix, library = library_of(self.value)
        part = function.__module__.removeprefix("numpy").removeprefix(".")
        name = f"{part}.{function.__name__}" if part else function.__name__
        if not _is_numpys(name, function):
            raise CaptureError(f"capture: {function.__module__}.{function.__name__} is not recorded")
        if function in AS_TEXT:
            self._unknown()
        if library is not np:
            try:
                function = operator.attrgetter(name)(library)
            except AttributeError:
                raise CaptureError(f"capture: CuPy has no {name}, for an array on a device") from None
        return call_function(f"{prefix}.{name}", function, args, kwargs)

    def __cupy_override_elementwise_kernel__(self, kernel: Any, *args: Any, **kwargs: Any) -> Any:
        """What CuPy calls instead of its ufuncs and elementwise kernels."""
        _, library = _library_of_all(args)
        name = kernel.name.removeprefix("cupy_")
        if getattr(library, name, None) is kernel:
            return device_ufunc(f"cp.{name}", kernel, args, kwargs)
        return device_ufunc(kernel.name, kernel, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS and name not in CHANGING and not (name == "get" and is_on_device(self.value)):
            return super().__getattr__(name)
        on_device = is_on_device(self.value)

        def method(*args: Any, out: Any = None, **kwargs: Any) -> Any:
            function = getattr(type(self.value) if on_device or not is_array(self.value) else np.ndarray, name)
            writes = (self,) if name in CHANGING else ()
            return recorder().call("method", name, function, (self, *args), kwargs, to_write(out), writes)

        return method

    def __getitem__(self, index: Any) -> Any:
        return recorder().call("getitem", "getitem", operator.getitem, (self, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        if type(value) is RecordedArray and value.variable.root is self.variable.root:
            target = self.value[recorder().unwrapped(index)[0]]
            if is_array(target) and lies_alike(target, value.value):
                return  # x[index] += y ends with x[index] = what lies there already
        recorder().call("setitem", "setitem", operator.setitem, (self, index, value), writes=(self,))


def _asking(name: str) -> Any:
    def ask(self: RecordedArray) -> Any:
        self.variable.root.is_asked = True
        return getattr(self.value, name)

    def refuse(self: RecordedArray, _: Any) -> NoReturn:
        raise CaptureError(f"capture: the {name} of an array is assigned to, which is not recorded; use reshape")

    return property(ask, refuse if name in ("shape", "strides") else None)


for _name in ("shape", "size", "nbytes", "ndim", "strides", "flags"):
    setattr(RecordedArray, _name, _asking(_name))
for _name in ("dtype", "device", "itemsize"):
    setattr(RecordedArray, _name, property(operator.attrgetter(f"value.{_name}")))
give_operators_in_place(RecordedArray)


def _is_numpys(name: str, function: Any) -> bool:
    try:
        return operator.attrgetter(name)(np) is function
    except AttributeError:
        return False


def lies_alike(x: Any, y: Any) -> bool:
    """Whether two arrays are the same elements in the same places."""
    if type(x) is not type(y) or _address(x) != _address(y):
        return False
    return bool(x.shape == y.shape and x.strides == y.strides and x.dtype == y.dtype)


def _address(x: Any) -> Any:
    return x.data.ptr if is_on_device(x) else x.__array_interface__["data"][0]


def call_function(name: str, function: Any, args: Any, kwargs: Any) -> Any:
    """A call of a library's function ``name``, noted; or done, where it asks for what does not change."""
    plain = function.__name__
    if plain in SAVING:
        raise CaptureError(f"capture: {name} writes a file, which a replay would not do again; call it after the step")
    if plain in DESCRIBING:
        if plain in ("shape", "ndim", "size"):
            recorder().ask_shapes(args, kwargs)
        real_args, _ = recorder().unwrapped(args)
        real_kwargs, _ = recorder().unwrapped(kwargs)
        return function(*real_args, **real_kwargs)
    if plain in CREATING:
        return create(name, function, args, kwargs)
    if plain in CREATING_LIKE:
        return recorder().created_like(name.removesuffix("_like"), function, args, kwargs)
    writes = (args or (kwargs.get(WRITING[plain]),))[:1] if plain in WRITING else ()
    if writes and type(writes[0]) is not RecordedArray:
        raise CaptureError(f"capture: {name} writes into an array that the recording does not know")
    out = kwargs.pop("out", None)
    return recorder().call("function", name, function, args, kwargs, to_write(out), writes)


METHODS = frozenset([
    "all", "any", "argmax", "argmin", "argsort", "astype", "clip", "conj", "copy", "cumprod", "cumsum", "diagonal",
    "dot", "flatten", "max", "mean", "min", "nonzero", "prod", "ravel", "repeat", "reshape", "round", "squeeze", "std",
    "sum", "swapaxes", "take", "trace", "transpose", "var", "view",
])  # fmt: skip
CHANGING = frozenset(["fill", "sort"])
# What these functions call their first argument, into which they write.
WRITING = {
    "copyto": "dst", "put": "a", "place": "arr", "putmask": "a", "put_along_axis": "arr", "fill_diagonal": "a",
}  # fmt: skip
SAVING = frozenset(["save", "savetxt", "savez", "savez_compressed"])
DESCRIBING = frozenset(["shape", "ndim", "size", "result_type", "can_cast", "iscomplexobj", "isrealobj"])
CREATING = frozenset(["empty", "zeros", "ones", "full", "arange", "tri", "eye", "identity", "linspace"])
CREATING_LIKE = frozenset(["empty_like", "zeros_like", "ones_like", "full_like"])


def create(name: str, function: Any, args: Any, kwargs: Any) -> Any:
    """An array that depends on no other."""
    return recorder().call("create", name, function, args, kwargs)


class RecordedGenerator:
    """A random generator: what it draws in a step is drawn anew in each replay."""

    __slots__ = ("__weakref__", "value", "variable")

    def __init__(self, value: np.random.Generator, variable: Variable) -> None:
        self.value = value
        self.variable = variable

    __class__ = property(lambda self: type(self.value))

    def __getattr__(self, name: str) -> Any:
        if not hasattr(np.random.Generator, name):
            raise AttributeError(f"Generator has no attribute {name}")
        if name.startswith("_") or name in ("bit_generator", "spawn"):
            raise CaptureError(f"capture: {name} of a random generator is used in a step, which is not recorded")

        def draw(*args: Any, **kwargs: Any) -> Any:
            if name == "shuffle" or "out" in kwargs:
                raise CaptureError(f"capture: {name} changes an array in place, which is not recorded; assign a result")
            return recorder().call("draw", name, getattr(np.random.Generator, name), (self, *args), kwargs)

        return draw


HANDLES = (RecordedArray, RecordedNumber, RecordedGenerator)
