"""``checkpoint``: what a function computes on the way is dropped, and computed again when backward needs it."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from .autocast import autocast, autocast_mode
from .autograd import Leaf, Node, backpropagate, edges_of, saved_arrays
from .backends import NAMESPACES
from .dtypes import eps
from .fused import taken
from .grad_mode import enable_grad, grad_mode
from .inplace import next_order
from .randomness import Draws, recorded, repeated
from .tensor import Tensor

P = ParamSpec("P")
SAMPLES = 64  # elements of the result that are compared with those of the repetition


def checkpoint(f: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """``f`` with less memory for more time: intermediate results are computed again in backward, not kept.

    >>> x = mg.checkpoint(block)(x)  # keeps x, and nothing of what the block computes

    Gradients, of every order, are those of ``f``; tensors that ``f`` uses without getting them as arguments, such
    as the parameters of a layer, get theirs too. Memory for a chain of n blocks falls from n blocks' to that of
    one block and n inputs, for one more forward pass (Griewank and Walther, 2000; Chen et al., 2016); with
    ``create_graph``, for one per tensor that ``f`` depends on.

    Args:
        f: a function or layer that returns one tensor, and the same one when it is called again: it may draw random
            numbers through ``mg.dropout`` and the layers of ``nn``, whose generators are set back for the
            repetition, but must not change anything else that it depends on.

    Raises:
        TypeError: in forward, if ``f`` does not return a tensor.
        RuntimeError: in backward, if ``f`` gives another result than before in one of some dozens of elements, spread
            over it, that are compared (on a device none is), or parameters have changed.
    """
    name = getattr(f, "__name__", type(f).__name__)

    def returned(out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise TypeError(f"checkpoint: {name} must return a tensor, got {out!r}")
        return out

    @functools.wraps(f, updated=())  # a layer's attributes are no attributes of the function
    def checkpointed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if not grad_mode.current:
            return returned(f(*args, **kwargs))
        start = next_order()
        with recorded() as draws:
            out = returned(f(*args, **kwargs))
        node = out._node
        if not isinstance(node, Node) or node.order > start:  # nothing was recorded (orders fall)
            return out
        outer, arrays = _outside(node, start)
        if not outer:  # f has gone back through it already, or made all that it needs
            return out
        out._node = None
        del node  # the graph is freed here, and with it what only the graph held
        operation = Recomputation(name, lambda: f(*args, **kwargs), draws, outer, _sample(out))
        alive = tuple({id(x): x for x in (reference() for reference in arrays) if x is not None}.values())
        edges: tuple[Any, ...] = ()
        for index in reversed(range(len(outer))):
            edges = outer[index], index, (alive,), edges
        out._node = Node(operation, edges, out.shape, out.dtype)
        out._node.pullback = operation.pullback
        return out

    return checkpointed


def _outside(root: Node, start: int) -> tuple[tuple[Any, ...], list[weakref.ref[Any]]]:
    """The nodes older than ``start`` that ``root`` was computed from directly, and the arrays that were used for it."""
    outer: dict[Any, None] = {}
    arrays: list[weakref.ref[Any]] = []
    seen: set[Any] = {root}
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        arrays += [weakref.ref(array) for array in saved_arrays(node) if array.__class__ in NAMESPACES]
        for parent, _, _ in edges_of(node):
            if parent in seen:
                continue
            seen.add(parent)
            if parent.order > start:
                outer[parent] = None
                if isinstance(parent, Leaf) and (tensor := parent.tensor()) is not None:
                    arrays.append(weakref.ref(tensor._data))  # which f has read, though no gradient may need it
            elif isinstance(parent, Node):  # else a leaf that f itself has made
                stack.append(parent)
    return tuple(outer), arrays


def _sample(out: Tensor) -> Any:
    """Some elements of the result, spread over it; None on a device, which would have to be waited for."""
    if type(out.data) is not np.ndarray:
        return None
    step = max(1, out.size // SAMPLES)
    while out.ndim and math.gcd(step, out.shape[-1]) > 1:  # else it would leave out columns
        step += 1
    return out.data.reshape(-1)[::step].copy()


class Recomputation:
    """One call of a checkpointed function, as the operation of its node."""

    def __init__(
        self, name: str, repeat: Callable[[], Tensor], draws: Draws, outer: tuple[Any, ...], sample: Any
    ) -> None:
        self.name = f"checkpoint({name})"
        self.repeat = repeat
        self.draws = draws
        self.outer = outer
        self.order = next_order()
        self.autocast = autocast(autocast_mode.current)  # as in forward
        self.sample = sample
        self.arguments = tuple(f"tensor {i} that it depends on" for i in range(len(outer)))
        self.vjps = tuple(taken(i) for i in range(len(outer)))

    def pullback(self, g: Any) -> tuple[Any, ...]:
        return self.gradients(g, self.outer, create_graph=False)

    def vjp_of_tensors(self, node: Node, index: int, saved: tuple[Any, ...], g: Tensor) -> Any:
        return self.gradients(g, (self.outer[index],), create_graph=True)[0]

    def gradients(self, g: Any, targets: tuple[Any, ...], create_graph: bool) -> tuple[Any, ...]:
        """The gradients of the result, weighted with g, for some of the nodes that it was computed from."""
        found = backpropagate(self.root(), g, create_graph=create_graph, targets=frozenset(targets))
        if any(target not in found for target in targets):
            raise self._unlike()
        return tuple(found[target] for target in targets)

    def root(self) -> Node:
        """The node of the result, with its graph recorded anew."""
        if any(isinstance(leaf, Leaf) and leaf.assigned < self.order for leaf in self.outer):  # orders fall
            raise RuntimeError(
                f"backward: a tensor that {self.name} depends on was given other values since, by an assignment or by "
                "an optimiser's step; call backward() before"
            )
        with repeated(self.draws), enable_grad(), self.autocast:
            out = self.repeat()
        if not isinstance(out._node, Node) or not self._agrees(_sample(out)):
            raise self._unlike()
        return out._node

    def _unlike(self) -> RuntimeError:
        return RuntimeError(
            f"backward: {self.name} gave another result when it was repeated; it must not depend on anything that "
            "changes, such as random numbers that neither mg.dropout nor a layer draws"
        )

    def _agrees(self, sample: Any) -> bool:
        if self.sample is None or sample is None:
            return sample is self.sample
        if sample.shape != self.sample.shape or sample.dtype != self.sample.dtype:
            return False
        tolerance = eps(sample.dtype) ** 0.5
        scale = float(np.max(np.abs(self.sample), initial=0.0, where=np.isfinite(self.sample)))
        return np.allclose(sample, self.sample, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
