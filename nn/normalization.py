"""Layers that normalise the last axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

import microgradnd as mg
from microgradnd.arguments import integer
from microgradnd.dtypes import is_floating

from .module import Module, as_tensor

if TYPE_CHECKING:
    import numpy.typing as npt


class _Norm(Module):
    """The axes that are normalised, and the scale that they get."""

    def __init__(self, normalized_shape: int | tuple[int, ...], elementwise_affine: bool, dtype: npt.DTypeLike) -> None:
        shape: Any = normalized_shape if np.ndim(normalized_shape) else (normalized_shape,)
        self.normalized_shape = tuple(integer(type(self).__name__, "normalized_shape", n) for n in shape)
        if not self.normalized_shape or min(self.normalized_shape) < 1:
            raise ValueError(f"{type(self).__name__}: sizes must be at least 1, got {normalized_shape}")
        self.weight = self._parameter(1, dtype) if elementwise_affine else None

    def _parameter(self, value: int, dtype: npt.DTypeLike) -> mg.Tensor:
        return mg.tensor(np.full(self.normalized_shape, value), dtype, requires_grad=True)

    def _flat(self, x: Any) -> Any:
        """The normalised axes as one; None stays None. Raises ValueError if x has others."""
        if x is None:
            return None
        x = as_tensor(x)
        shape, n = x.shape, len(self.normalized_shape)
        if shape[-n:] != self.normalized_shape:
            raise ValueError(
                f"{type(self).__name__}: expected a shape that ends in {self.normalized_shape}, got {shape}"
            )
        return x if n == 1 else mg.reshape(x, (*shape[:-n], math.prod(self.normalized_shape)))

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, elementwise_affine={self.weight is not None}"


class LayerNorm(_Norm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axes (Ba et al., 2016).

    Args:
        normalized_shape: of the last axes; an integer stands for the last one alone.
        eps: keeps the quotient finite.
        elementwise_affine: whether there is a weight, ones at first.
        bias: whether there is a bias too, zeros at first.
        dtype: of the parameters.

    Raises ValueError for sizes below 1, and in forward for an input whose shape ends otherwise.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, elementwise_affine, dtype)
        self.bias = self._parameter(0, dtype) if elementwise_affine and bias else None
        self.eps = float(eps)

    def forward(self, x: mg.Tensor, residual: mg.Tensor | None = None) -> mg.Tensor:
        """Of x + ``residual``, if there is one; raises ValueError unless that has the shape of x."""
        x, weight, bias = as_tensor(x), self._flat(self.weight), self._flat(self.bias)
        out = mg.layer_norm(self._flat(x), weight, bias, self.eps, self._flat(residual))
        return out if len(self.normalized_shape) == 1 else mg.reshape(out, x.shape)


class RMSNorm(_Norm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axes (Zhang and Sennrich, 2019).

    Args:
        normalized_shape: of the last axes; an integer stands for the last one alone.
        eps: keeps the quotient finite; None stands for the spacing of numbers around 1 in the dtype of the input, in
            float32 for float16, which is computed so.
        elementwise_affine: whether there is a weight, ones at first.
        dtype: of the weight.

    Raises ValueError for sizes below 1, and in forward for an input whose shape ends otherwise.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(normalized_shape, elementwise_affine, dtype)
        self.eps = None if eps is None else float(eps)

    def forward(self, x: mg.Tensor, residual: mg.Tensor | None = None) -> mg.Tensor:
        """Of x + ``residual``, if there is one; raises ValueError unless that has the shape of x."""
        x = as_tensor(x)
        dtype = np.result_type(x.dtype, np.float32) if is_floating(x.dtype) else np.float64
        eps = float(np.finfo(dtype).eps) if self.eps is None else self.eps
        out = mg.rms_norm(self._flat(x), self._flat(self.weight), eps, self._flat(residual))
        return out if len(self.normalized_shape) == 1 else mg.reshape(out, x.shape)
