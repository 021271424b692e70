"""``@fused``: an operation specified as a function of tensors, with a faster kernel on arrays for everyday use.

The function is the definition: it works on every backend and to every order. The kernel computes the same
on arrays and returns the result with its pullback, which may share work and memory with the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, ParamSpec

import numpy as np

from .autocast import autocast
from .autograd import Node, backpropagate
from .dtypes import is_floating, is_narrow
from .operands import attached
from .operation_text import wrapper
from .primitive import Conversion, Operation
from .tensor import Tensor

P = ParamSpec("P")


def fused(
    kernel: Callable[..., Any], *differentiated: str, conversion: Conversion | None = None
) -> Callable[[Callable[P, Tensor]], Callable[P, Tensor]]:
    """Replace a function of tensors by ``kernel`` wherever first-order gradients are all that is asked for.

    Args:
        kernel: ``kernel(xp, ...)`` with the function's own parameters (arrays where they have no default, or the
            default None) returning ``(out, pullback)``; ``pullback(g)`` gives a tuple of gradients, one per name
            in ``differentiated``: arrays, or functions of no arguments that compute them, called only for
            arguments that need one, or :class:`microgradnd.autograd.Onto`. It may be called more than once and must
            not change what it keeps.
        differentiated: the arguments that the kernel differentiates. A call in which another argument
            requires a gradient goes to the function itself; a gradient of the gradient goes through it.
        conversion: see :func:`microgradnd.primitive`.
    """

    def decorate(reference: Callable[P, Tensor]) -> Callable[P, Tensor]:
        return wrapper(FusedOperation(reference, kernel, differentiated, conversion))

    return decorate


class FusedOperation(Operation):
    """An operation whose gradients come from its kernel's pullback, and in higher orders from its definition.

    Its generated text takes the pullback along with the result and leaves it in the node, saves all arguments, and
    hands a call over to the definition where an argument needs a gradient that the kernel does not give.
    """

    __slots__ = ()
    results_text = "out, _pullback"
    pullback_text = "_pullback"

    def __init__(
        self,
        reference: Callable[..., Tensor],
        kernel: Callable[..., Any],
        differentiated: tuple[str, ...],
        conversion: Conversion | None,
    ) -> None:
        names = reference.__code__.co_varnames[: reference.__code__.co_argcount]
        defaults = dict(zip(reversed(names), reversed(reference.__defaults__ or ()), strict=False))
        arrays = tuple(name for name in names if defaults.get(name) is None)
        super().__init__(kernel, dict.fromkeys(arrays), conversion)
        self.name = reference.__name__.strip("_")
        self.definition = reference
        take = {name: taken(i) for i, name in enumerate(differentiated)}
        self.vjps = tuple(take.get(name) for name in arrays)
        self.saves = tuple(self.names for _ in arrays)

    def line_without_vjp(self, argument: str) -> str:
        nodes = ", ".join(f"{name!r}: _{name}_node" for name in self.arguments)
        return f"return _op.composed(({', '.join(self.names)},), {{{nodes}}}, out.dtype)"

    def composed(self, values: tuple[Any, ...], nodes: dict[str, Any], dtype: Any) -> Tensor:
        """The result by the definition, for arrays that belong to ``nodes``, in the dtype that the kernel gives."""
        tensors = [attached(value, nodes.get(name)) for name, value in zip(self.names, values, strict=True)]
        return self.defined(dict(zip(self.names, tensors, strict=True)), dtype)

    def defined(self, inputs: dict[str, Any], dtype: Any) -> Tensor:
        """The result by the definition; of float16 and bfloat16 tensors computed in float32, as kernels do."""
        from .ops import astype

        floats = [x for x in inputs.values() if isinstance(x, Tensor) and is_floating(x.dtype)]
        narrow = [x for x in floats if is_narrow(x.dtype)]
        if not narrow:
            return self.definition(**inputs)  # type: ignore[no-any-return]
        wide = {name: astype(x, np.float32) if any(x is y for y in narrow) else x for name, x in inputs.items()}
        with autocast(None):  # which would make them narrow again
            out = self.definition(**wide)
        return astype(out, dtype)

    def vjp_of_tensors(self, node: Node, index: int, saved: tuple[Any, ...], g: Tensor) -> Any:
        from .ops import alias

        name = self.arguments[index]
        parents = self.parents(node)
        inputs = {n: attached(value, parents.get(n)) for n, value in zip(self.names, saved, strict=True)}
        inputs[name] = alias(inputs[name])  # where the definition's gradient is read off
        out = self.defined(inputs, node.dtype)
        target = inputs[name]._node
        assert out._node is not None
        return backpropagate(out._node, g, create_graph=True, targets=frozenset([target]))[target]


def taken(index: int) -> Callable[..., Any]:
    """The vjp of a fused operation: what its pullback gave for argument ``index``, taken out of the list."""

    def vjp(gradients: list[Any], *inputs: Any) -> Any:
        gradient, gradients[index] = gradients[index], None
        return gradient() if gradient.__class__ is FunctionType else gradient

    return vjp
