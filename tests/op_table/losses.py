"""Losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from .reductions import softmax
from .rows import Op, Sample


def _cross_entropy(logits: Any, targets: Any) -> Any:
    p = softmax(logits)
    if np.shape(targets) != np.shape(logits):
        targets = np.eye(logits.shape[-1])[targets]
    return -np.sum(targets * np.log(p)) / (logits.size // logits.shape[-1])


def _torch_cross_entropy(torch: Any, logits: Any, targets: Any) -> Any:
    rows = targets.reshape(-1) if targets.ndim < logits.ndim else targets.reshape(-1, targets.shape[-1])
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows)


OPS = (
    Op(
        "cross_entropy",
        _cross_entropy,
        (
            Sample(((5, 3), np.array([0, 2, 1, 1, 0]))),
            Sample(((3, 40), np.array([0, 39, 7]))),
            Sample(((2, 40), np.abs(np.random.default_rng(4).standard_normal((2, 40))))),
            Sample(((2, 3, 4), np.array([[0, 3, 1], [2, 2, 0]]))),
            Sample(((3,), np.array(1))),
            Sample(((5, 3), np.abs(np.random.default_rng(3).standard_normal((5, 3))))),
            Sample(((2, 2, 3), np.eye(3)[[[0, 1], [2, 2]]])),
        ),
        differentiable=(0, 1),
        torch=_torch_cross_entropy,
    ),
)
