"""The operators of handles: which there are, NumPy's functions of the same meaning, and the methods that note them."""

from __future__ import annotations

import operator
from typing import Any

from .active import recorder
from .instructions import is_array

OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
    "eq": "equal", "ne": "not_equal", "neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert",
}  # fmt: skip
UNARY = ("neg", "pos", "abs", "invert")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
IN_PLACE = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")


def give_operators(handle: type) -> None:
    """Methods of a class of handles that note what operators do."""
    for name in OPERATORS:
        setattr(handle, f"__{name}__", _operator(name))
        if name not in UNARY + COMPARISONS:
            setattr(handle, f"__r{name}__", _reflected(name))


def give_operators_in_place(handle: type) -> None:
    """The same for those that change an array, such as ``+=``; numbers of Python and NumPy become others."""
    for name in IN_PLACE:
        setattr(handle, f"__i{name}__", _in_place(name))


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

    def apply(self: Any, other: Any) -> Any:
        if not is_array(self.value):
            return recorder().call("operator", name, getattr(operator, f"__{name}__"), (self, other))
        recorder().call("in place", name, function, (self, other), writes=(self,))
        return self

    return apply
