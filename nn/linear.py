"""The affine layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import microgradnd as mg
from microgradnd.arguments import integer

from .init import drawn, lecun_normal
from .module import Module

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng


class Linear(Module):
    """The affine map x W + b of the last axis: (..., in_features) -> (..., out_features).

    ``weight`` has the shape (in_features, out_features), the transpose of PyTorch's: the forward pass then
    multiplies untransposed matrices, which OpenBLAS does faster where they are small. ``bias`` has the shape
    (out_features,), or is None.

    Args:
        in_features, out_features: sizes of the last axis of input and output, at least 1.
        bias: whether to add a bias, zero at first.
        init: the initial weights, a function of ``nn.init`` or one like them.
        dtype: of the parameters, a floating-point dtype.
        rng: a ``numpy.random.Generator`` or a seed for the weights; None draws a seed.

    Raises:
        ValueError: for sizes below 1, and for an ``init`` that gives another shape.
        TypeError: for sizes that are no integers, and dtypes that are not floating-point.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        init: Callable[..., Any] = lecun_normal,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        self.in_features = integer("Linear", "in_features", in_features)
        self.out_features = integer("Linear", "out_features", out_features)
        weight = drawn("Linear", init, (self.in_features, self.out_features), rng, dtype)
        self.weight = mg.tensor(weight, dtype, requires_grad=True)
        self.bias = mg.tensor(np.zeros(self.out_features, dtype), requires_grad=True) if bias else None

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return mg.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
