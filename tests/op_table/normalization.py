"""Normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rows import Op, shapes


def _layer_norm(x: Any, weight: Any = 1.0, bias: Any = 0.0, eps: float = 1e-5, residual: Any = 0.0) -> Any:
    x = x + residual
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def _rms_norm(x: Any, weight: Any = 1.0, eps: float = 1e-6, residual: Any = 0.0) -> Any:
    x = x + residual
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


OPS = (
    Op(
        "layer_norm",
        _layer_norm,
        (
            shapes((3, 4), (4,), (4,)),
            shapes((2, 3, 5), (5,), (5,), eps=0.1),
            shapes((4,), (4,), (4,)),
            shapes((2, 1, 4)),
            shapes((3, 4), (4,)),
            shapes((0, 4), (4,), (4,)),
            shapes((2, 3, 4), (4,), (4,), 1e-5, (2, 3, 4)),
        ),
        differentiable=(0, 1, 2, 4),
        torch=lambda torch, x, weight=None, bias=None, eps=1e-5, residual=0.0: torch.nn.functional.layer_norm(
            x + residual, x.shape[-1:], weight, bias, eps
        ),
    ),
    Op(
        "rms_norm",
        _rms_norm,
        (
            shapes((3, 4), (4,)),
            shapes((2, 3, 5), (5,), eps=0.1),
            shapes((4,), (4,)),
            shapes((2, 1, 4)),
            shapes((0, 4), (4,)),
            shapes((2, 3, 4), (4,), 1e-6, (2, 3, 4)),
        ),
        differentiable=(0, 1, 3),
        torch=lambda torch, x, weight=None, eps=1e-6, residual=0.0: torch.nn.functional.rms_norm(
            x + residual, x.shape[-1:], weight, eps
        ),
    ),
)
