"""Optimisers: they change parameters in place, by the gradients that backward left in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from microgradnd import Tensor
from microgradnd.autograd import Leaf
from microgradnd.backends import NAMESPACES
from microgradnd.inplace import mark_changed, record_of


class SGD:
    """Stochastic gradient descent with momentum (Robbins and Monro, 1951; Polyak, 1964), as in PyTorch.

        d = grad + weight_decay * p
        v = momentum * v + d          (v = d in the first step)
        p = p - lr * v                (p - lr * d without momentum)

    The optimiser works on arrays of its own: the first step replaces each parameter's array by a copy, so
    that an array which the parameter was made of, or which two parameters share, never changes behind
    your back.

    Args:
        params: tensors that require a gradient, each once.
        lr: learning rate, at least 0; may be changed between steps.
        momentum: at least 0 and below 1.
        weight_decay: at least 0.

    Raises:
        ValueError: for no parameters, a parameter given twice, and values out of range.
        TypeError: for parameters that are no tensors, or that require no gradient.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.params = _checked(params)
        upper = {"lr": math.inf, "momentum": 1, "weight_decay": math.inf}
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not 0 <= value < upper[name]:
                raise ValueError(f"SGD: {name} must be at least 0 and below {upper[name]}, got {value}")
        # Python floats: a NumPy float64 would turn float32 gradients into float64 ones.
        self.lr = float(lr)
        self.momentum = float(momentum)
        self.weight_decay = float(weight_decay)
        self._own: list[Any] = [None] * len(self.params)  # arrays that nobody else made, to be changed in place
        self._records: list[Any] = [None] * len(self.params)
        self._velocities: list[Any] = [None] * len(self.params)

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        changed = []
        lr = None
        for i, parameter in enumerate(self.params):
            leaf: Any = parameter._node
            if leaf is None or leaf.grad is None:
                continue
            d = leaf.grad._data if leaf.grad.__class__ is Tensor else leaf.grad
            p = parameter._data
            if p is not self._own[i]:
                p = parameter._data = self._own[i] = p.copy()
                self._records[i] = record_of(p)
            if self.weight_decay:
                d = d + self.weight_decay * p
            if self.momentum:
                if self._velocities[i] is None:
                    self._velocities[i] = d.copy()
                else:
                    self._velocities[i] *= self.momentum
                    self._velocities[i] += d
                d = self._velocities[i]
            if lr is None or lr.dtype is not p.dtype:
                # NumPy multiplies by a 0-d array faster than by a number.
                lr = NAMESPACES[p.__class__].asarray(self.lr, p.dtype)
            p -= lr * d
            changed.append(self._records[i])
        mark_changed(*changed)

    def __getstate__(self) -> dict[str, Any]:
        """For pickling and copying: which arrays are its own holds for this optimiser alone."""
        nobody = [None] * len(self.params)
        return self.__dict__ | {"_own": nobody, "_records": list(nobody)}

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters (sets them to None)."""
        for parameter in self.params:
            if parameter._node is not None:
                parameter._node.grad = None  # type: ignore[union-attr]


def _checked(params: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(params, Tensor):
        raise TypeError("SGD: params must be a list of tensors, got a single tensor")
    tensors = list(params)
    if not tensors:
        raise ValueError("SGD: got no parameters; a generator can be used only once")
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor) or not isinstance(tensor._node, Leaf):
            raise TypeError(f"SGD: parameter {position} must be a tensor made with requires_grad=True, got {tensor!r}")
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise ValueError("SGD: a parameter was given twice")
    return tensors
