"""Derivatives of functions, as functions."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeAlias

from .autograd import backpropagate, reachable
from .backends import as_array
from .grad_mode import enable_grad, grad_mode
from .inplace import next_order
from .ops import alias, ones_like, zeros_like
from .tensor import Tensor, constant

Argnums: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...]


def grad(f: Callable[..., Tensor], argnums: Argnums = 0) -> Callable[..., Any]:
    """The gradient of a scalar function: a function of the same arguments.

    >>> mg.grad(lambda x: x**3)(2.0)
    tensor(12., dtype=float64)
    >>> mg.grad(mg.grad(lambda x: x**3))(2.0)
    tensor(12., dtype=float64)

    Args:
        f: takes tensors (arrays and numbers at ``argnums`` are converted) and returns a tensor of shape ().
        argnums: the position of the argument to differentiate, or a tuple of positions.

    Returns:
        A function giving one tensor for an integer ``argnums``, else a tuple of them. It touches no
        ``.grad``. Where ``f`` also depends on tensors outside that require gradients, the result can be
        differentiated with respect to them, so gradients nest to any order; under ``no_grad`` it is constant.

    Raises:
        TypeError: if an argument is not of a floating-point dtype, or ``f`` does not return a tensor.
        ValueError: if ``f`` returns a tensor that is not of shape ().
    """
    with_value = value_and_grad(f, argnums)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        return with_value(*args, **kwargs)[1]

    return gradient


def value_and_grad(f: Callable[..., Tensor], argnums: Argnums = 0) -> Callable[..., tuple[Tensor, Any]]:
    """The value and the gradient of a scalar function in one evaluation: see :func:`grad`.

    >>> mg.value_and_grad(lambda x, y: (x * y).sum(), argnums=(0, 1))(2.0, 5.0)
    (tensor(10., dtype=float64), (tensor(5., dtype=float64), tensor(2., dtype=float64)))

    Returns a function that gives the value, a tensor of shape (), and the gradient, a tuple for a tuple of
    ``argnums``. It raises what :func:`grad` raises.
    """
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not callable(f):
        raise TypeError(f"grad: expected a function, got {f!r}")
    positions: Any = None
    if not any(isinstance(number, bool) for number in numbers):
        with contextlib.suppress(TypeError, ValueError):  # of tensors of several elements
            positions = tuple(map(operator.index, numbers))
    if positions is None:
        raise TypeError(f"grad: argnums must be an integer or a tuple of integers, got {argnums!r}")
    name = getattr(f, "__name__", type(f).__name__)

    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        tracked = grad_mode.current
        start = next_order()
        inputs = list(args)
        with enable_grad():
            for position in positions:
                inputs[position] = variable(name, args, position)
            out = f(*inputs, **kwargs)
            variables = [inputs[position] for position in positions]
            gradients, outside = _gradients(name, out, variables, start, tracked)
        if not (outside and tracked):
            out = out.detach()
        return out, gradients if isinstance(argnums, tuple) else gradients[0]

    return value_and_gradient


def variable(name: str, args: tuple[Any, ...], position: int) -> Tensor:
    """The argument at ``position`` as a tensor whose node is new, so that its gradient is this call's alone."""
    if not -len(args) <= position < len(args):
        raise TypeError(
            f"grad: argnums names argument {position} of {name} (the first is 0), but it was called with {len(args)}"
        )
    x = args[position]
    if isinstance(x, dict) or (isinstance(x, list | tuple) and any(isinstance(part, Tensor) for part in x)):
        raise TypeError(
            f"grad: argument {position} of {name} is a {type(x).__name__}, expected an array; hand over several "
            "one by one, and name them by argnums"
        )
    if isinstance(x, Tensor) and x.requires_grad:
        return alias(x)
    try:
        tensor: Any = Tensor(x, requires_grad=True)
        tensor._node.is_argument = True
        return tensor  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise type(error)(f"grad: argument {position} of {name}: {error}") from None


def _gradients(
    name: str, out: Any, variables: list[Tensor], start: int, tracked: bool
) -> tuple[tuple[Tensor, ...], bool]:
    """Gradients of ``out`` for ``variables``, and whether ``out`` depends on tensors made before ``start``."""
    if not isinstance(out, Tensor):
        raise TypeError(f"grad: {name} must return a tensor, got a {type(out).__name__}")
    if out.shape != ():
        raise ValueError(f"grad: {name} must return a scalar, got shape {out.shape}; reduce it first (sum, mean)")
    if out._node is None:
        return tuple(zeros_like(x) for x in variables), False
    # Orders fall: what has a larger one was there before this call.
    outside = any(node.order > start for node in reachable(out._node))
    create_graph = outside and tracked
    one = ones_like(out)
    nodes = [x._node for x in variables]
    found = backpropagate(
        out._node,
        one if create_graph else one._data,
        retain_graph=outside,
        create_graph=create_graph,
        targets=frozenset(node for node in nodes if node is not None),
    )
    gradients = [found.get(node) for node in nodes]
    return tuple(
        zeros_like(x) if g is None else g if create_graph else constant(as_array(g))
        for g, x in zip(gradients, variables, strict=True)
    ), outside
