"""Loss functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import microgradnd as mg
from microgradnd import cross_entropy

if TYPE_CHECKING:
    from microgradnd.tensor import Operand

__all__ = ["cross_entropy", "mse_loss"]


def mse_loss(predictions: mg.Tensor, targets: Operand) -> mg.Tensor:
    """The mean of (predictions - targets)^2 over all elements.

    Raises ValueError where the shapes differ: (n, 1) and (n,) would broadcast to (n, n) unnoticed.
    """
    difference = predictions - targets
    shapes = [getattr(x, "shape", ()) for x in (predictions, targets)]
    if any(shape != difference.shape for shape in shapes):
        raise ValueError(f"mse_loss: expected equal shapes, got predictions {shapes[0]} and targets {shapes[1]}")
    return (difference * difference).mean()
