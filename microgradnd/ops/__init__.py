"""The operations: free functions under NumPy's names, and the tensor's operators and methods bound to them.

As a namespace this stands in for NumPy's where a gradient is differentiated again.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any

import numpy as np

from ..autograd import Leaf
from ..backends import NAMESPACES
from ..operands import NUMBERS
from ..tensor import Tensor
from .activations import gelu, leaky_relu, relu, sigmoid, silu, swiglu
from .arithmetic import (
    absolute,
    add,
    clip,
    divide,
    floor_divide,
    maximum,
    minimum,
    multiply,
    negative,
    positive,
    power,
    remainder,
    sign,
    subtract,
    where,
)
from .attention import rotate_halves, scaled_dot_product_attention, self_attention
from .dropout import dropout
from .elementwise import cos, erf, exp, log, log1p, sin, sqrt, tanh
from .indexing import getitem, scatter_add
from .linalg import einsum, linear, linear_gelu, linear_relu, matmul
from .losses import cross_entropy
from .moving import to
from .nondifferentiable import (
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    equal,
    greater,
    greater_equal,
    invert,
    isfinite,
    less,
    less_equal,
    not_equal,
    ones_like,
    zeros_like,
)
from .normalization import layer_norm, rms_norm
from .reductions import (
    all,
    any,
    argmax,
    argmin,
    log_softmax,
    logsumexp,
    max,
    mean,
    min,
    softmax,
    std,
    sum,
    var,
)
from .shaping import (
    alias,
    astype,
    broadcast_to,
    concatenate,
    expand_dims,
    ravel,
    reshape,
    squeeze,
    stack,
    swapaxes,
    transpose,
)

abs = absolute

__all__ = [
    "abs",
    "absolute",
    "add",
    "alias",
    "all",
    "any",
    "argmax",
    "argmin",
    "astype",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "broadcast_to",
    "clip",
    "concatenate",
    "cos",
    "cross_entropy",
    "divide",
    "dropout",
    "einsum",
    "equal",
    "erf",
    "exp",
    "expand_dims",
    "floor_divide",
    "gelu",
    "getitem",
    "greater",
    "greater_equal",
    "invert",
    "isfinite",
    "layer_norm",
    "leaky_relu",
    "less",
    "less_equal",
    "linear",
    "linear_gelu",
    "linear_relu",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "ones_like",
    "positive",
    "power",
    "ravel",
    "relu",
    "remainder",
    "reshape",
    "rms_norm",
    "rotate_halves",
    "scaled_dot_product_attention",
    "scatter_add",
    "self_attention",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softmax",
    "sqrt",
    "squeeze",
    "stack",
    "std",
    "subtract",
    "sum",
    "swapaxes",
    "swiglu",
    "tanh",
    "transpose",
    "var",
    "where",
    "zeros_like",
]


def masked(x: Any, mask: Any, scale: float | None = None) -> Tensor:
    """What ``xp.masked`` of the array namespaces is, for gradients that are differentiated again."""
    return where(mask, x if scale is None else x * scale, 0.0)


def relu_gradient(g: Any, out: Any) -> Tensor:
    """What ``xp.relu_gradient`` of the array namespaces is, for gradients that are differentiated again."""
    return where(out > 0, g, 0.0)


def _reflected(operation: Any) -> Any:
    def reflected(self: Tensor, other: Any) -> Tensor:
        return operation(other, self)

    return reflected


def _in_place(name: str) -> Any:
    """The operator ``t op= x``: for Python a new tensor; refused for a parameter, which would be lost by it."""

    def change(self: Tensor, other: Any) -> Any:
        if isinstance(self._node, Leaf) and not self._node.is_argument:
            raise TypeError(
                f"{name} in place: a parameter would be replaced by a new tensor; change its array, as in "
                "w.data -= lr * w.grad.data, or give the new one a name of its own"
            )
        return NotImplemented

    return change


# What == compares element by element although it has no __array__; and what has that, but holds no numbers: there
# Python decides.
SEQUENCES = (*NUMBERS, list, tuple, range, array, bytearray, deque, memoryview)
NO_NUMBERS = (type, np.character, np.datetime64, np.timedelta64)


def _comparing(operation: Any) -> Any:
    """== or !=: elementwise with what is or becomes an array of numbers.

    With anything else NotImplemented: Python asks the other object then, and at last whether it is the same.
    """

    def compare(self: Tensor, other: Any) -> Any:
        kind = other.__class__
        known = kind is Tensor or kind in NAMESPACES or isinstance(other, SEQUENCES)
        if known or (hasattr(other, "__array__") and not isinstance(other, NO_NUMBERS)):
            return operation(self, other)
        return NotImplemented

    return compare


_binary: dict[str, Any] = {
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "truediv": divide,
    "floordiv": floor_divide,
    "mod": remainder,
    "pow": power,
    "matmul": matmul,
    "and": bitwise_and,
    "or": bitwise_or,
    "xor": bitwise_xor,
}
for _name, _operation in _binary.items():
    setattr(Tensor, f"__{_name}__", _operation)
    setattr(Tensor, f"__r{_name}__", _reflected(_operation))
    setattr(Tensor, f"__i{_name}__", _in_place(_operation.__name__))

_others: dict[str, Any] = {
    "__neg__": negative,
    "__pos__": positive,
    "__abs__": absolute,
    "__invert__": invert,
    "__eq__": _comparing(equal),
    "__ne__": _comparing(not_equal),
    "__lt__": less,
    "__le__": less_equal,
    "__gt__": greater,
    "__ge__": greater_equal,
    "__getitem__": getitem,
    "all": all,
    "any": any,
    "argmax": argmax,
    "argmin": argmin,
    "astype": astype,
    "clip": clip,
    "flatten": ravel,
    "max": max,
    "mean": mean,
    "min": min,
    "ravel": ravel,
    "squeeze": squeeze,
    "std": std,
    "sum": sum,
    "to": to,
    "swapaxes": swapaxes,
    "var": var,
    "T": property(transpose),
}
for _name, _operation in _others.items():
    setattr(Tensor, _name, _operation)


def _reshape_method(self: Tensor, *shape: Any) -> Tensor:
    """The tensor with another shape: ``t.reshape(2, 3)`` or ``t.reshape((2, 3))``."""
    return reshape(self, shape[0] if len(shape) == 1 else shape)


def _transpose_method(self: Tensor, *axes: Any) -> Tensor:
    """The tensor with its axes reordered: ``t.transpose(1, 0)`` or ``t.transpose((1, 0))``; none: reversed."""
    return transpose(self, None if not axes else axes[0] if len(axes) == 1 else axes)


Tensor.reshape = _reshape_method  # type: ignore[method-assign]
Tensor.transpose = _transpose_method  # type: ignore[method-assign]
