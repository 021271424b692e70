"""Kernels written in the array namespace: they serve every backend."""

from __future__ import annotations

from math import prod
from typing import Any


def cross_entropy(xp: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
    """Mean cross-entropy of softmax(logits); one exp serves the loss and its gradient softmax(logits) - targets."""
    count = prod(logits.shape[:-1])
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    e = xp.exp(shifted)
    total = xp.sum(e, axis=-1, keepdims=True)
    if targets.shape == logits.shape:
        picked = xp.sum(targets * (shifted - xp.log(total)))

        def pullback(g: Any) -> tuple[Any, ...]:
            p = e * (xp.sum(targets, axis=-1, keepdims=True) / total)
            return ((p - targets) * (g / count),)
    else:
        classes = logits.shape[-1]
        index = (xp.arange(count), xp.reshape(targets, (count,)))
        picked = xp.sum(xp.reshape(shifted, (count, classes))[index]) - xp.sum(xp.log(total))

        def pullback(g: Any) -> tuple[Any, ...]:
            p = e / total
            xp.reshape(p, (count, classes))[index] -= 1
            p *= g / count
            return (p,)

    return -picked / count, pullback
