"""Dropout as a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import microgradnd as mg
from microgradnd.arguments import number

from .module import Module, as_tensor

if TYPE_CHECKING:
    from microgradnd.randomness import Rng


class Dropout(Module):
    """Sets elements to zero with probability ``p`` and divides the others by 1 - p, in training mode alone.

    Args:
        p: between 0 and 1 (Srivastava et al., 2014).
        rng: a ``numpy.random.Generator``, which may be shared with others, or a seed; None draws a seed. The layer
            keeps it, and ``nn.save_checkpoint`` saves where it stands.

    Raises ValueError for p out of range, TypeError for a boolean as ``rng`` (PyTorch's ``inplace`` comes second).
    """

    def __init__(self, p: float = 0.5, rng: Rng = None) -> None:
        self.p = number("Dropout", "p", p)
        if not 0 <= self.p <= 1:
            raise ValueError(f"Dropout: p must lie between 0 and 1, got {p}")
        if isinstance(rng, bool):
            raise TypeError(f"Dropout: rng must be a generator, a seed or None, got {rng}")
        self.rng = np.random.default_rng(rng)

    def forward(self, x: mg.Tensor, residual: mg.Tensor | None = None) -> mg.Tensor:
        """``residual`` is added to the result."""
        if self.training and self.p:
            return mg.dropout(x, self.p, self.rng, residual)
        x = as_tensor(x)
        return x if residual is None else residual + x

    def extra_repr(self) -> str:
        return f"p={self.p:g}"
