"""Dropout: zeros at random places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import NAMESPACES
from ..primitive import primitive
from ..randomness import generator
from ..tensor import Tensor

if TYPE_CHECKING:
    from ..randomness import Rng
    from ..tensor import Operand


@primitive(x=lambda g, xp, kept, scale: xp.masked(g, kept, scale), kept=None)
def _dropout(xp: Any, x: Operand, kept: Operand, scale: float) -> Any:
    return xp.masked(x, kept, scale)


def dropout(x: Operand, p: float = 0.5, rng: Rng = None) -> Tensor:
    """x with each element set to zero with probability p, the others divided by 1 - p (Srivastava et al., 2014).

    Args:
        x: floating-point, any shape.
        p: between 0 and 1; 1 gives zeros.
        rng: a ``numpy.random.Generator``, which is advanced, or a seed; None draws a seed. On a GPU the generator
            gives a seed for the device, so that nothing is copied; there other elements are dropped than on the host.

    Raises ValueError for p out of range.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must lie between 0 and 1, got {p}")
    x, p = x if isinstance(x, Tensor) else Tensor(x), float(p)
    rng = generator(rng)
    if x.data.__class__ is np.ndarray:
        kept = rng.random(x.shape, np.float32) >= p
    else:
        kept = NAMESPACES[x.data.__class__].kept(rng.integers(2**63), 0, x.shape, p)
    return _dropout(x, kept, 1 / (1 - p) if p < 1 else 0.0)
