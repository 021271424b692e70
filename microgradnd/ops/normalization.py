"""Normalisation of the last axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..autocast import in_float32
from ..fused import fused
from ..kernels import array_norms
from ..tensor import Tensor
from .elementwise import sqrt
from .reductions import mean
from .shaping import astype

if TYPE_CHECKING:
    from ..tensor import Operand


def _with_residual(x: Any, residual: Any) -> Any:
    """x + residual; integers as floats, since sums and squares of small ones wrap around."""
    x, residual = (astype(t, np.float64) if t is not None and t.dtype.kind in "biu" else t for t in (x, residual))
    return x if residual is None else x + residual


@fused(array_norms.layer_norm, "x", "weight", "bias", "residual", conversion=in_float32)
def layer_norm(
    x: Operand,
    weight: Operand | None = None,
    bias: Operand | None = None,
    eps: float = 1e-5,
    residual: Operand | None = None,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance of the last axis (Ba et al., 2016).

    ``x`` is (..., n), ``weight`` and ``bias`` are (n,); the variance is the mean of the squared deviations. With
    ``residual``, of the shape of x, that of x + residual; one kernel computes both where Numba's are used.
    Raises ValueError for other shapes.
    """
    x = _with_residual(x, residual)
    deviation: Any = x - mean(x, axis=-1, keepdims=True)
    out: Any = deviation / sqrt(mean(deviation * deviation, axis=-1, keepdims=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


@fused(array_norms.rms_norm, "x", "weight", "residual", conversion=in_float32)
def rms_norm(x: Operand, weight: Operand | None = None, eps: float = 1e-6, residual: Operand | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, with the mean of the last axis (Zhang and Sennrich, 2019).

    ``x`` is (..., n) and ``weight`` (n,). ``nn.RMSNorm`` has another default for ``eps``, PyTorch's. With ``residual``,
    of the shape of x, that of x + residual; one kernel computes both where Numba's are used. Raises ValueError for
    other shapes.
    """
    x = _with_residual(x, residual)
    out: Any = x / sqrt(mean(x * x, axis=-1, keepdims=True) + eps)
    return out if weight is None else out * weight
