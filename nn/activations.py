"""Activation functions as layers."""

from __future__ import annotations

from typing import Any

import microgradnd as mg
from microgradnd.primitive import is_operation

from .module import Module


def made(owner: str, activation: Any) -> Any:
    """The layer that ``activation`` makes. Raises TypeError, which names ``owner``, for a layer or anything else."""
    if isinstance(activation, Module) or not callable(activation) or is_operation(activation):
        raise TypeError(f"{owner}: activation must make a layer, as the class nn.ReLU does; got {activation!r}")
    return activation()


class ReLU(Module):
    """The rectifier max(x, 0), elementwise (Fukushima, 1969); its gradient at 0 is 0."""

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.relu(x)


class LeakyReLU(Module):
    """x where it is positive and negative_slope x elsewhere (Maas et al., 2013)."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = float(negative_slope)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope:g}"


class Sigmoid(Module):
    """The logistic function 1 / (1 + exp(-x)), elementwise."""

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent, elementwise."""

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.tanh(x)


class SiLU(Module):
    """x sigmoid(x), elementwise (Elfwing et al., 2017)."""

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.silu(x)


class GELU(Module):
    """x Phi(x) with the normal distribution function Phi, elementwise (Hendrycks and Gimpel, 2016).

    ``approximate="tanh"`` takes the form with the hyperbolic tangent instead, as GPT-2 does. Raises ValueError
    for anything but "tanh" and "none".
    """

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


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
