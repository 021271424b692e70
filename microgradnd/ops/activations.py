"""Activation functions: the nonlinearities between layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..arguments import number
from ..fused import fused
from ..kernels import array_kernels
from ..primitive import primitive
from ..tensor import Tensor
from .elementwise import erf, tanh

if TYPE_CHECKING:
    from ..tensor import Operand


@primitive(x=lambda g, xp, out: xp.relu_gradient(g, out))
def relu(xp: Any, x: Operand) -> Any:
    """The rectifier max(x, 0), elementwise (Fukushima, 1969); the gradient at 0 is 0."""
    return xp.relu(x)


@primitive(x=lambda g, xp, x, negative_slope: xp.where(x > 0, g, float(negative_slope) * g))
def leaky_relu(xp: Any, x: Operand, negative_slope: float = 0.01) -> Any:
    """x where it is positive and negative_slope x elsewhere (Maas et al., 2013); the gradient at 0 is the slope."""
    return xp.where(x > 0, x, float(number("", "negative_slope", negative_slope)) * x)


@primitive(x=lambda g, out: g * out * (1.0 - out))
def sigmoid(xp: Any, x: Operand) -> Any:
    """The logistic function 1 / (1 + exp(-x)), elementwise."""
    return xp.sigmoid(x)


@fused(array_kernels.silu, "x")
def silu(x: Operand) -> Tensor:
    """x sigmoid(x), elementwise (Elfwing et al., 2017), also called Swish."""
    return sigmoid(x) * x


@fused(array_kernels.swiglu, "gate", "x")
def swiglu(gate: Operand, x: Operand) -> Tensor:
    """silu(gate) x, elementwise: the inner part of a gated feed-forward sublayer (Shazeer, 2020)."""
    return silu(gate) * x


@fused(array_kernels.gelu, "x")
def gelu(x: Operand, approximate: str = "none") -> Tensor:
    """The Gaussian error linear unit x Phi(x), elementwise; Phi is the normal distribution function.

    ``approximate="tanh"`` replaces Phi(x) by (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, which differs
    from it by 2e-4 at most, and the result by 5e-4 (Hendrycks and Gimpel, 2016). Raises ValueError for other values.
    """
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))
