"""Kernels written in the array namespace: they serve every backend."""

from __future__ import annotations

from typing import Any

# Up to so many classes NumPy is faster with the classes along the first axis: reductions and broadcasts then
# run over the rows, many elements at a time. Measured: 0.25 to 0.8 of the time for 10 classes, 3 times for 64.
FEW_CLASSES = 32


def cross_entropy(xp: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
    """Mean cross-entropy of softmax(logits); one exp serves the loss and its gradient softmax(logits) - targets."""
    if targets.__class__ is int:
        targets = xp.asarray(targets)
    classes = logits.shape[-1]
    count = logits.size // max(classes, 1)
    if count == 0:
        raise ValueError("there are no rows to average over")
    axis = 0 if classes <= FEW_CLASSES else 1  # the axis of the classes in what follows
    z = _matrix(xp, logits, count, classes, axis)
    z = z - xp.max(z, axis=axis, keepdims=True)
    e = xp.exp(z)
    total = xp.sum(e, axis=axis, keepdims=True)
    if targets.shape == logits.shape:
        t = _matrix(xp, targets, count, classes, axis)
        picked = t * (z - xp.log(total))

        def gradient(g: Any) -> Any:
            p = e * (xp.sum(t, axis=axis).reshape(total.shape) / total)
            p -= t
            p *= g
            return p
    else:
        index = _flat_index(xp, logits, targets, count, classes, axis)
        picked = z.reshape(z.size)[index] - xp.log(total).reshape(count)

        def gradient(g: Any) -> Any:
            p = e * (g / total)
            p.reshape(p.size)[index] -= g
            return p

    def pullback(g: Any) -> tuple[Any, ...]:
        p = gradient(g / count)
        return ((p.T if axis == 0 else p).reshape(logits.shape),)

    return xp.sum(picked) / -count, pullback


def _matrix(xp: Any, x: Any, count: int, classes: int, axis: int) -> Any:
    """(..., classes) as a matrix in contiguous memory with the classes along ``axis``."""
    x = x if x.ndim == 2 else x.reshape((count, classes))
    return xp.ascontiguousarray(x.T if axis == 0 else x)


def _flat_index(xp: Any, logits: Any, targets: Any, count: int, classes: int, axis: int) -> Any:
    """Where each row's class lies in the flat matrix; refuses classes out of range, negative ones too."""
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets are either class indices of shape {logits.shape[:-1]} or rows of shape {logits.shape}, "
            f"got {targets.shape}"
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(f"class indices must be integers, got {targets.dtype}")
    rows, labels = xp.arange(count), targets.reshape(count)
    try:
        if axis == 0:
            return xp.ravel_multi_index((labels, rows), (classes, count))
        return xp.ravel_multi_index((rows, labels), (count, classes))
    except ValueError:
        raise IndexError(
            f"class indices must lie in 0 to {classes - 1}, got {targets.min()} to {targets.max()}"
        ) from None
