"""Arguments of operations: unwrapped, checked, converted, and described where an operation fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import NAMESPACES, as_array
from .devices import refuse_several_devices
from .dtypes import BFLOAT16, FOREIGN
from .tensor import Tensor, constant

if TYPE_CHECKING:
    from .primitive import Operation


def attached(value: Any, node: Any) -> Any:
    """A tensor around the array ``value`` that belongs to ``node``; other values as they are."""
    if value.__class__ not in NAMESPACES:
        return value
    tensor = constant(value)
    tensor._node = node
    return tensor


def operand(x: Any, operation: Operation, argument: str) -> Any:
    """An argument that is no tensor, checked: arrays and numbers as they are, sequences as arrays.

    Python numbers stay Python numbers, so that NumPy's promotion keeps the other operand's dtype.
    """
    xp = NAMESPACES.get(x.__class__)
    if xp is not None and ((x.dtype.kind in "biufc" and x.dtype.num < FOREIGN) or x.dtype.char == BFLOAT16):
        return xp.asarray(x)  # itself, or what stands for it in a recording
    if isinstance(x, NUMBERS):
        return x
    return array_operand(x, operation, argument)


def array_operand(x: Any, operation: Operation, argument: str) -> Any:
    """An argument that is no tensor, as an array."""
    try:
        return as_array(x)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{operation.name}: {argument}: {error}") from None


def operands(
    xs: tuple[Any, ...], operation: Operation, argument: str
) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
    """Arrays and nodes of a ``*star`` argument; None for the nodes where none of them needs a gradient."""
    nodes = tuple(x._node if x.__class__ is Tensor else None for x in xs)
    arrays = tuple(x._data if x.__class__ is Tensor else operand(x, operation, argument) for x in xs)
    return arrays, (nodes if any(node is not None for node in nodes) else None)


def namespace_of(arrays: tuple[Any, ...]) -> Any:
    """The namespace of the first array among ``arrays``, or None."""
    return next((NAMESPACES[x.__class__] for x in arrays if x.__class__ in NAMESPACES), None)


def no_gradient(operation: Operation, argument: str) -> TypeError:
    """The error for a tensor that requires a gradient where none is defined."""
    return TypeError(
        f"{operation.name}: no gradient is defined with respect to {argument}, but a tensor that requires "
        "one was given; pass a constant, for example its detach()"
    )


def explained(error: Exception, operation: Operation, **arguments: Any) -> Exception:
    """``error`` as an error of the same kind that names the operation, the shapes and the dtypes."""
    try:
        refuse_several_devices(operation.name, **{name: arguments[name] for name in operation.arguments})
    except TypeError as several:
        return several
    if type(error) is AttributeError:  # of a number, which has no shape
        for name in operation.arguments:
            if isinstance(arguments[name], NUMBERS):
                return ValueError(f"{operation.name}: {name} must be an array, got {arguments[name]!r}")
    for kind in _EXPLAINED:
        if type(error) is kind or (isinstance(error, kind) and type(error).__module__.startswith(("numpy", "cupy"))):
            got = ", ".join(f"{name}: {_described(x)}" for name, x in arguments.items())
            return kind(f"{operation.name}: {error} (got {got})")
    error.add_note(f"(in the operation {operation.name})")
    return error


def _described(x: Any) -> str:
    if isinstance(x, tuple) and any(hasattr(part, "shape") for part in x):
        return f"[{', '.join(map(_described, x))}]"
    return f"{x.__class__.__module__.partition('.')[0]} {x.dtype} {x.shape}" if hasattr(x, "shape") else repr(x)


_EXPLAINED = (
    np.exceptions.AxisError,
    AttributeError,
    IndexError,
    OverflowError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
NUMBERS = (int, float, complex, np.number, np.bool_)
