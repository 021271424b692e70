"""Activation functions as layers."""

from __future__ import annotations

import microgradnd as mg

from .module import Module


class ReLU(Module):
    """The rectifier max(x, 0), elementwise (Fukushima, 1969); its gradient at 0 is 0."""

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.relu(x)


class Softmax(Module):
    """exp(x) / sum(exp(x)) over ``axis``.

    For training, give the logits to ``nn.cross_entropy`` instead: it includes the softmax, and is exact where
    a probability underflows.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.softmax(x, axis=self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"
