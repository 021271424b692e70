"""Checking gradients against central differences."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from .arguments import integer, number
from .autograd import Node, reachable
from .backends import as_array
from .dtypes import is_floating
from .functional import grad, variable
from .grad_mode import enable_grad, no_grad
from .tensor import Tensor

# Steps of the four-point formula (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h: with h = eps^(1/5) its
# truncation error h^4 and its rounding error eps / h are both about 1e-13 relative.
_STEP = float(np.finfo(np.float64).eps) ** 0.2


def check_grads(f: Callable[..., Tensor], *args: Any, order: int = 2, rtol: float = 1e-6, atol: float = 1e-8) -> None:
    """Raise unless the gradients of ``f`` at ``args`` agree with central differences, up to ``order``.

    >>> mg.check_grads(lambda x, y: mg.sin(x) * y, np.ones(3), 2.0)

    Args:
        f: takes tensors and returns a tensor of any shape; it must be smooth within 2e-3 max(1, abs(x)) of
            each element x of ``args``, so not at the kink of ``abs`` or ``max``.
        args: tensors, arrays, numbers or lists of numbers. Floating-point ones are checked, converted to float64
            (differences in float32 prove nothing); others, such as indices, are passed on as they are.
        order: 1 checks the gradient, 2 also the gradient of the gradient, and so on.
        rtol, atol: numbers a and b agree where abs(a - b) <= atol + rtol max(abs(a), abs(b)).

    Raises:
        AssertionError: naming the function, the operations in it, the order, the argument, the position
            and both numbers where they differ most; or if ``f`` gives different results for the same input.
        TypeError: if ``f`` is no function or does not return a floating-point tensor, or if no argument is
            floating-point.
        ValueError: for an order below 1, and tolerances that are negative or infinite.

    The cost is four evaluations per element of the arguments at each order.
    """
    if not callable(f):
        raise TypeError(f"check_grads: expected a function, got {f!r}")
    if integer("check_grads", "order", order) < 1:
        raise ValueError(f"check_grads: order must be at least 1, got {order}")
    rtol, atol = number("check_grads", "rtol", rtol), number("check_grads", "atol", atol)
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf):
        raise ValueError(f"check_grads: rtol and atol must be at least 0 and finite, got {rtol} and {atol}")
    name = getattr(f, "__name__", type(f).__name__)
    checked = tuple(i for i, x in enumerate(args) if _is_floating(x))
    values = [Tensor(x, np.float64) if i in checked else x for i, x in enumerate(args)]
    if not checked:
        raise TypeError(f"check_grads: {name}: no argument is floating-point, so there is no gradient to check")
    _check(f, values, checked, name, 1, order, rtol, atol)


def _is_floating(x: Any) -> bool:
    if isinstance(x, list | tuple):
        try:
            x = np.asarray(x)
        except (TypeError, ValueError):  # an index
            return False
    dtype = getattr(x, "dtype", None)
    return isinstance(x, float) or (isinstance(dtype, np.dtype) and is_floating(dtype))


def _check(
    f: Callable[..., Tensor],
    values: list[Any],
    checked: tuple[int, ...],
    name: str,
    level: int,
    order: int,
    rtol: float,
    atol: float,
) -> None:
    out, operations = _evaluated(f, values, checked, name)
    rng = np.random.default_rng(level)
    weights = _on_the_device_of(out, rng.uniform(0.5, 1.5, out.shape))  # tests all outputs at once

    def scalar(*args: Any) -> Tensor:
        return (f(*args) * weights).sum()

    gradients = grad(scalar, checked)(*values)
    for i, gradient in zip(checked, gradients, strict=True):
        ours, numbers = gradient.numpy(), _differences(scalar, values, i)
        difference = np.abs(ours - numbers)
        wrong = ~(difference <= atol + rtol * np.maximum(np.abs(ours), np.abs(numbers)))  # NaN is wrong too
        if wrong.any():
            worst = np.where(wrong, np.nan_to_num(difference, nan=np.inf), -1.0).argmax()
            position = tuple(int(k) for k in np.unravel_index(worst, difference.shape))
            raise AssertionError(
                f"check_grads: {name} (operations: {operations}): the gradient of order {level} with respect to "
                f"argument {i} at position {position} is {float(ours[position])!r}, central differences give "
                f"{float(numbers[position])!r}"
            )
    if level < order:
        directions = [_on_the_device_of(out, rng.uniform(0.5, 1.5, gradient.shape)) for gradient in gradients]

        def derivative(*args: Any) -> Tensor:
            parts = grad(scalar, checked)(*args)
            along = [(part * direction).sum() for part, direction in zip(parts, directions, strict=True)]
            total: Tensor = functools.reduce(operator.add, along)
            return total

        _check(derivative, values, checked, name, level + 1, order, rtol, atol)


def _evaluated(f: Callable[..., Tensor], values: list[Any], checked: tuple[int, ...], name: str) -> tuple[Tensor, str]:
    """The result of ``f``, and the operations that it recorded; refuses functions that are not functions."""
    with enable_grad():
        tracked = [variable(name, tuple(values), i) if i in checked else x for i, x in enumerate(values)]
        out, again = f(*tracked), f(*tracked)
    if not isinstance(out, Tensor) or out.dtype.kind != "f":
        raise TypeError(f"check_grads: {name} must return a floating-point tensor, got {out!r}")
    if not np.array_equal(out.numpy(), again.numpy(), equal_nan=True):
        raise AssertionError(f"check_grads: {name} gives different results for the same arguments")
    nodes = reachable(out._node) if out._node is not None else set()
    calls = sorted((node for node in nodes if isinstance(node, Node)), key=lambda node: -node.order)
    return out.detach(), ", ".join(dict.fromkeys(node.op.name for node in calls)) or "none"


def _differences(f: Callable[..., Tensor], values: list[Any], i: int) -> Any:
    """The gradient of a scalar ``f`` with respect to argument ``i`` by central differences, on the host."""
    x = values[i].numpy()
    numbers = np.empty(x.shape)

    def at(position: tuple[int, ...], change: float) -> float:
        moved = x.copy()
        moved[position] += change
        return float(f(*values[:i], _on_the_device_of(values[i], moved), *values[i + 1 :]))

    with no_grad():
        for position in np.ndindex(x.shape):
            h = _STEP * max(1.0, abs(float(x[position])))
            near, far = at(position, h) - at(position, -h), at(position, 2 * h) - at(position, -2 * h)
            numbers[position] = (8 * near - far) / (12 * h)
    return numbers


def _on_the_device_of(tensor: Tensor, array: Any) -> Tensor:
    return Tensor(as_array(array, like=tensor.data))
