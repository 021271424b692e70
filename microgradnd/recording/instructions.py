"""What a recording consists of: instructions, and the variables that they compute."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from ..backends import NAMESPACES
from ..dtypes import is_numeric

GIVEN = ("input", "argument", "constant")  # kinds of arrays that were there before
PREFIXES = {"numpy": "np", "cupy": "cp"}  # what a library is called in the text of a program


def is_array(x: Any) -> bool:
    """Whether x is an array itself, on the host or on a device, and no handle."""
    return type(x) in NAMESPACES or issubclass(type(x), np.ndarray)


def is_on_device(x: Any) -> bool:
    """Whether x is an array itself on a device."""
    return type(x) in NAMESPACES and type(x) is not np.ndarray


def library_of(x: Any) -> tuple[str, Any]:
    """What computes with an array or a number, NumPy or CuPy: its name in a program's text, and the module."""
    name = type(x).__module__.partition(".")[0] if is_on_device(x) else "numpy"
    return PREFIXES[name], sys.modules[name]


def current_device() -> int | None:
    """The number of the GPU that computes; None where no array on a device has been seen."""
    cupy = sys.modules.get("cupy") if len(NAMESPACES) > 1 else None
    return None if cupy is None else int(cupy.cuda.runtime.getDevice())


def current_stream() -> int:
    """The address of CuPy's current stream."""
    return int(sys.modules["cupy"].cuda.get_current_stream().ptr)


def root_of(module: str | None) -> str:
    """The top-level package of a module, by its name; "" for none."""
    return module.partition(".")[0] if isinstance(module, str) else ""  # Cython's classes have something else


def bare(name: str) -> str:
    """A function's name without its library's."""
    return name[3:] if name.startswith(("np.", "cp.")) else name


class Variable:
    """A value that a step computes or gets: what is known of it before it is computed."""

    __slots__ = ("address", "array", "array_type", "dtype", "is_asked", "kind", "name", "root", "shape", "strides")

    def __init__(self, value: Any, kind: str, name: str, root: Variable | None = None) -> None:
        has_shape = is_array(value)
        # "input", "argument", "constant", "made", or without an array's attributes "number" or "generator".
        self.kind = kind
        self.name = name
        self.root = self if root is None else root  # the variable whose memory this is a view of
        self.is_asked = False  # of a root, whether somebody has looked at its shape or at that of a view of it
        self.shape: Any = value.shape if has_shape else None
        self.strides: Any = value.strides if has_shape else None
        self.dtype: Any = value.dtype if has_shape else None
        self.array_type: Any = type(value) if has_shape else None
        self.array: Any = None  # of inputs and constants, the array itself
        self.address = value.ctypes.data if isinstance(value, np.ndarray) else None  # in the recording, on the host

    @property
    def nbytes(self) -> int:
        return int(math.prod(self.shape) * self.dtype.itemsize)

    @property
    def is_c_contiguous(self) -> bool:
        """Whether the elements lie in memory, without gaps, in the order of their indices."""
        return self._is_ordered(self._axes[::-1])

    @property
    def is_f_contiguous(self) -> bool:
        """The same for its transpose."""
        return self._is_ordered(self._axes)

    @property
    def is_dense(self) -> bool:
        """Whether there are elements, and they lie in memory without gaps, in whatever order of the axes."""
        return is_numeric(self.dtype) and 0 not in self.shape and self._is_ordered(sorted(self._axes))

    @property
    def _axes(self) -> list[tuple[int, int]]:
        return list(zip(self.strides, self.shape, strict=True))

    def _is_ordered(self, axes: list[tuple[int, int]]) -> bool:
        expected = self.dtype.itemsize
        for stride, n in axes:
            if n != 1 and stride != expected:
                return False
            expected *= n
        return True

    def twin(self) -> Variable:
        """Another one for an array like this one, which a step makes."""
        other = Variable(None, "made", self.name)
        # The address too: it is looked at beside those of views, which are views of the other one then.
        for name in ("shape", "strides", "dtype", "array_type", "address"):
            setattr(other, name, getattr(self, name))
        return other

    @property
    def is_on_device(self) -> bool:
        return self.array_type is not None and not issubclass(self.array_type, np.ndarray)


class Instruction:
    """One call: ``function(*args, **kwargs)``, with variables for arrays."""

    __slots__ = ("args", "function", "is_tuple", "kind", "kwargs", "name", "note", "results", "writes")

    def __init__(self, kind: str, name: str, function: Any, args: Any, kwargs: Any, note: str) -> None:
        # How it is written down: "operator", "in place", "ufunc", "reduce", "function", "method", "attribute",
        # "getitem", "setitem", "create", "draw", "branch", "whole" (a function of ours) or "kernel" (a compiled one).
        self.kind = kind
        self.name = name
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.note = note  # what it belongs to: an operation, its gradient, an optimiser
        self.results: list[Variable] = []  # new ones, in the order of the result's parts
        self.is_tuple = False  # whether there are several, to be unpacked
        self.writes: list[Variable] = []  # whose memory is changed

    def reads(self) -> list[Variable]:
        return variables((self.args, self.kwargs))

    def replace(self, others: dict[Variable, Variable]) -> None:
        """Read other variables in place of those that are keys of ``others``, and give views of them."""
        self.args, self.kwargs = replaced(self.args, others), replaced(self.kwargs, others)
        for v in self.results:
            if v.root in others:
                v.root = others[v.root].root


def variables(value: Any) -> list[Variable]:
    """All variables in nested tuples, lists and dicts."""
    if type(value) is Variable:
        return [value]
    if type(value) is dict:
        value = list(value.values())
    if type(value) in (tuple, list):
        return [v for part in value for v in variables(part)]
    return []


def replaced(value: Any, others: dict[Variable, Variable]) -> Any:
    """Nested tuples, lists and dicts with other variables in place of those that are keys of ``others``."""
    if type(value) is Variable:
        return others.get(value, value)
    if type(value) in (tuple, list):
        return type(value)(replaced(part, others) for part in value)
    if type(value) is dict:
        return {name: replaced(part, others) for name, part in value.items()}
    return value
