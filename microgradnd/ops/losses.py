"""Losses, reduced to one number by the mean."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..autocast import in_float32
from ..backends import NAMESPACES, as_array
from ..fused import fused
from ..kernels import array_losses
from ..tensor import Tensor
from .reductions import log_softmax, sum
from .shaping import reshape

if TYPE_CHECKING:
    from ..tensor import Operand


@fused(array_losses.cross_entropy, "logits", conversion=in_float32)
def cross_entropy(logits: Operand, targets: Operand) -> Tensor:
    """The mean over all rows of -sum(targets * log_softmax(logits)), in nats.

    Args:
        logits: (..., classes), unnormalised log-probabilities.
        targets: (...) integer class indices, or (..., classes) probabilities such as one-hot rows.

    Raises:
        TypeError: for class indices that are no integers.
        IndexError: for a class index outside of 0 to classes - 1. On a GPU, which is not waited for, the loss and the
            gradient of that row are NaN instead.
        ValueError: for other shapes of ``targets``, and for no rows at all.
    """
    targets = as_array(targets) if isinstance(targets, int | np.integer) else targets
    log_p = log_softmax(logits)
    count = prod(log_p.shape[:-1])
    if targets.shape == log_p.shape:
        return -sum(log_p * targets) / count
    rows = reshape(log_p, (count, log_p.shape[-1]))
    each = NAMESPACES[rows.data.__class__].arange(count)
    return -sum(rows[each, reshape(targets, (count,))]) / count
