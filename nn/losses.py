"""Loss functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import microgradnd as mg
from microgradnd import cross_entropy
from microgradnd.autocast import autocast_mode, in_float32

if TYPE_CHECKING:
    from microgradnd.tensor import Operand

__all__ = ["cross_entropy", "mse_loss"]


def mse_loss(predictions: Operand, targets: Operand) -> mg.Tensor:
    """The mean of (predictions - targets)^2 over all elements.

    Raises ValueError where the shapes differ: (n, 1) and (n,) would broadcast to (n, n) unnoticed.
    """
    shapes = [x.shape if hasattr(x, "shape") else np.shape(x) for x in (predictions, targets)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"mse_loss: expected equal shapes, got predictions {shapes[0]} and targets {shapes[1]}")
    if autocast_mode.current is not None:
        predictions, targets = in_float32(predictions, targets)
    dtypes = [x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype for x in (predictions, targets)]
    if all(dtype.kind in "biu" for dtype in dtypes):
        predictions = mg.astype(predictions, np.float64)  # differences of unsigned integers would wrap around
    difference = mg.subtract(predictions, targets)
    return (difference * difference).mean()
