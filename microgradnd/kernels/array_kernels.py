"""Kernels written in the array namespace: they serve every backend."""

from __future__ import annotations

from typing import Any


def cross_entropy(xp: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
    """Mean cross-entropy of softmax(logits); one exp serves the loss and its gradient softmax(logits) - targets."""
    logits = xp.ascontiguousarray(logits)  # reshape must give views below, not copies
    classes = logits.shape[-1]
    count = logits.size // max(classes, 1)
    if count == 0:
        raise ValueError("there are no rows to average over")
    one_hot = targets.shape == logits.shape
    if not one_hot:
        index = _flat_index(xp, logits, targets, count, classes)
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    e = xp.exp(shifted)
    total = xp.sum(e, axis=-1, keepdims=True)
    if one_hot:
        picked = targets * (shifted - xp.log(total))

        def pullback(g: Any) -> tuple[Any, ...]:
            p = e * (xp.sum(targets, axis=-1, keepdims=True) / total)
            p -= targets
            p *= g / count
            return (p,)
    else:
        picked = shifted.reshape(logits.size)[index] - xp.log(total).reshape(count)

        def pullback(g: Any) -> tuple[Any, ...]:
            p = e / total
            p.reshape(p.size)[index] -= 1
            p *= g / count
            return (p,)

    return xp.sum(picked) / -count, pullback


def _flat_index(xp: Any, logits: Any, targets: Any, count: int, classes: int) -> Any:
    """Where each row's class lies in the flat logits; refuses classes out of range, negative ones too."""
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets are either class indices of shape {logits.shape[:-1]} or rows of shape {logits.shape}, "
            f"got {targets.shape}"
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(f"class indices must be integers, got {targets.dtype}")
    try:
        return xp.ravel_multi_index((xp.arange(count), targets.reshape(count)), (count, classes))
    except ValueError:
        raise IndexError(
            f"class indices must lie in 0 to {classes - 1}, got {targets.min()} to {targets.max()}"
        ) from None
