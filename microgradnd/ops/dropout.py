"""Dropout: zeros at random places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import number
from ..backends import NAMESPACES
from ..fused import fused
from ..kernels import array_kernels
from ..randomness import generator
from ..tensor import Tensor
from .arithmetic import where

if TYPE_CHECKING:
    from ..randomness import Rng
    from ..tensor import Operand


@fused(array_kernels.dropout, "x", "residual")
def _dropout(
    x: Operand, residual: Operand | None = None, kept: Operand | None = None, p: float = 0.5, seed: int = 0
) -> Tensor:
    kept = NAMESPACES[x.data.__class__].kept(seed, 0, x.shape, p) if kept is None else kept
    out: Any = where(kept, x * array_kernels.dropout_scale(p), 0.0)
    return out if residual is None else residual + out


def dropout(x: Operand, p: float = 0.5, rng: Rng = None, residual: Operand | None = None) -> Tensor:
    """x with each element set to zero with probability p, the others divided by 1 - p (Srivastava et al., 2014).

    Args:
        x: any shape; of integers the result is floating-point.
        p: between 0 and 1; 1 gives zeros.
        rng: a ``numpy.random.Generator``, which is advanced, or a seed; None draws a seed. On a GPU the generator
            gives a seed for the device, so that nothing is copied; there other elements are dropped than on the host.
        residual: added to the result, in the same pass over memory where it has the shape of x.

    Raises ValueError for p out of range, TypeError for a boolean as ``rng``.
    """
    if not 0 <= number("dropout", "p", p) <= 1:
        raise ValueError(f"dropout: p must lie between 0 and 1, got {p}")
    if isinstance(rng, bool):
        raise TypeError(f"dropout: rng must be a generator, a seed or None, got {rng}")
    x, p, rng = x if isinstance(x, Tensor) else Tensor(x), float(p), generator(rng)
    if x.data.__class__ is np.ndarray:
        return _dropout(x, residual, rng.random(x.shape, np.float32) >= p, p)
    return _dropout(x, residual, None, p, rng.integers(2**63))
