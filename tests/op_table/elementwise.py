"""Elementary functions, activations and dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .attention import dropped
from .rows import ELEMENTWISE, Op, elementwise, shapes, torch_functional


def _erf(x: Any) -> Any:
    """math.erf, with its derivative for the imaginary part of complex numbers that lie next to the real axis."""
    real = np.vectorize(math.erf, otypes=[float])(x.real)
    if not np.iscomplexobj(x):
        return real.astype(x.dtype)
    return real + 1j * x.imag * 2 / np.sqrt(np.pi) * np.exp(-(x.real**2))


def _tanh_form(x: Any) -> Any:
    return np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


def gelu(x: Any, approximate: str = "none") -> Any:
    return x * (1 + (_erf(x / np.sqrt(2)) if approximate == "none" else _tanh_form(x))) / 2


OPS = (
    elementwise("exp"),
    elementwise("log", low=0.2),
    elementwise("log1p", low=-0.8),
    elementwise("sqrt", low=0.2),
    elementwise("tanh"),
    elementwise("sin"),
    elementwise("cos"),
    elementwise("erf", _erf, low=-4.0, high=4.0),
    elementwise("relu", lambda x: np.maximum(x, 0)),
    elementwise("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    elementwise("silu", lambda x: x / (1 + np.exp(-x)), torch=torch_functional("silu")),
    Op(
        "leaky_relu",
        lambda x, negative_slope=0.01: np.maximum(x, negative_slope * x),
        (*ELEMENTWISE, shapes((3, 4), negative_slope=0.3)),
        torch=lambda torch, x, negative_slope=0.01: torch.nn.functional.leaky_relu(x, negative_slope),
    ),
    Op(
        "swiglu",
        lambda gate, x: gate / (1 + np.exp(-gate)) * x,
        (
            shapes((3, 4), (3, 4)),
            shapes((2, 3, 4), (4,)),
            shapes((), ()),
            shapes((0, 3), (0, 3)),
            shapes((3, 1), (1, 4)),
        ),
        differentiable=(0, 1),
        torch=lambda torch, gate, x: torch.nn.functional.silu(gate) * x,
    ),
    Op(
        "gelu",
        gelu,
        (*ELEMENTWISE, shapes((3, 4), approximate="tanh"), shapes((), approximate="tanh")),
        torch=lambda torch, x, approximate="none": torch.nn.functional.gelu(x, approximate=approximate),
    ),
    Op(
        "dropout",
        lambda x, p=0.5, rng=0, residual=0.0: (
            x * (np.random.default_rng(rng).random(x.shape, np.float32) >= p) / (1 - p) + residual
        ),
        (
            shapes((3, 4), p=0.5, rng=3),
            shapes((2, 3, 2), p=0.25, rng=5),
            shapes((3,), p=0.0, rng=0),
            shapes((3, 4), 0.5, 3, (3, 4)),
            shapes((2, 3), 0.5, 4, (3,)),
        ),
        on_gpu=lambda x, p=0.5, rng=0, residual=0.0: x * dropped(x.shape, p, rng) + residual,
        differentiable=(0, 3),
    ),
)
