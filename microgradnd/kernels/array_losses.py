"""Losses, in the array namespace: see array_kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import is_floating, is_narrow
from . import kernels_for
from .array_kernels import narrow, wide

# Up to so many classes NumPy is faster with the classes along the first axis: reductions and broadcasts then
# run over the rows, many elements at a time. Measured: 0.25 to 0.8 of the time for 10 classes, 3 times for 64.
FEW_CLASSES = 32


def cross_entropy(xp: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
    """Mean cross-entropy of softmax(logits); one exp serves the loss and its gradient softmax(logits) - targets."""
    if logits.ndim == 0:
        raise ValueError("logits must have at least one axis, that of the classes")
    if isinstance(targets, (int, np.integer)):
        if not 0 <= targets < logits.shape[-1]:
            raise IndexError(f"class indices must lie in 0 to {logits.shape[-1] - 1}, got {targets}")
        targets = xp.asarray(targets)
    if logits.size > xp.SMALL and targets.shape != logits.shape and (fast := kernels_for(logits)):
        _check_labels(logits, targets)
        if fast.TAKES_FLAT_INDEX:
            targets = _flat_index(xp, targets, logits.size // logits.shape[-1], logits.shape[-1], 1)
        return fast.cross_entropy(logits, targets)
    if logits.dtype.char not in "fd" and (logits.dtype.kind in "biu" or is_narrow(logits.dtype)):
        # Differences of integers may wrap around, and sums over thousands of rows are beyond the range of float16.
        loss, wide_pullback = cross_entropy(xp, wide(logits), targets)
        loss = narrow(loss, logits, targets if is_floating(targets.dtype) else None)
        return loss, lambda g: wide_pullback(wide(g))
    classes = logits.shape[-1]
    count = logits.size // max(classes, 1)
    if count == 0:
        raise ValueError(f"there are no {'rows to average over' if classes else 'classes'}")
    axis = 0 if classes <= FEW_CLASSES else 1  # the axis of the classes in what follows
    z = _matrix(xp, logits, count, classes, axis)
    z = z - xp.max(z, axis=axis, keepdims=True)
    e = xp.exp(z)
    total = xp.sum(e, axis=axis, keepdims=axis == 1)
    log_total = xp.log(total)
    if targets.shape == logits.shape:
        t = _matrix(xp, targets, count, classes, axis)
        t = t.astype(np.result_type(t.dtype, z.dtype), copy=False)  # sums of booleans and small integers are int64
        mass = xp.sum(t, axis=axis, keepdims=axis == 1)  # 1 in each row where the targets are probabilities
        loss = xp.vdot(mass, log_total) - xp.vdot(t, z)

        def gradient(g: Any) -> Any:
            p = e * (mass / total)
            p -= t
            p *= g
            return p
    else:
        _check_labels(logits, targets)
        index = _flat_index(xp, targets, count, classes, axis)
        loss = xp.sum(log_total.reshape(count) - z.reshape(z.size)[index])

        def gradient(g: Any) -> Any:
            p = e * (g / total)
            p.reshape(p.size)[index] -= g
            return p

    def pullback(g: Any) -> tuple[Any, ...]:
        p = gradient(g[()] / count)  # NumPy divides its scalars faster than 0-d arrays
        return ((p.T if axis == 0 else p).reshape(logits.shape),)

    return loss / count, pullback


def _matrix(xp: Any, x: Any, count: int, classes: int, axis: int) -> Any:
    """(..., classes) as a matrix in contiguous memory with the classes along ``axis``."""
    x = x if x.ndim == 2 else x.reshape((count, classes))
    return xp.ascontiguousarray(x.T if axis == 0 else x)


def _check_labels(logits: Any, targets: Any) -> None:
    """Refuse class indices of another shape, and what are no integers or lie on another device."""
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets are either class indices of shape {logits.shape[:-1]} or rows of shape {logits.shape}, "
            f"got {targets.shape}"
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(f"class indices must be integers, got {targets.dtype}")
    if targets.__class__ is not logits.__class__:
        raise TypeError("class indices and logits must be arrays of one library")


def _flat_index(xp: Any, targets: Any, count: int, classes: int, axis: int) -> Any:
    """Where each row's class lies in the flat matrix; refuses classes out of range, negative ones too."""
    rows, labels = xp.arange(count), targets.reshape(count)
    try:
        if xp.SMALL == 0 and not (targets.min() >= 0 and targets.max() < classes):
            raise ValueError  # CuPy would wrap them around; the kernels, which never wait, give NaN
        if axis == 0:
            return xp.ravel_multi_index((labels, rows), (classes, count))
        return xp.ravel_multi_index((rows, labels), (count, classes))
    except ValueError:
        found = getattr(targets, "value", targets)  # of an array that is being recorded, the array itself
        raise IndexError(f"class indices must lie in 0 to {classes - 1}, got {found.min()} to {found.max()}") from None
