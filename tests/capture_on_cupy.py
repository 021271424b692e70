"""Models and batches on CuPy arrays, and training with and without mg.capture side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import microgradnd as mg
import nn
from tests.training_steps import OPTIMIZERS, bits, state, training_step


def mlp() -> nn.Module:
    return nn.MLP([6, 8, 3], rng=0).to("cuda")


def transformer(dropout: float = 0.0, **options: Any) -> nn.Module:
    return nn.Transformer(7, 8, 2, 1, 6, dropout=dropout, rng=0, **options).to("cuda")


def rows(cupy: Any, count: int, seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    batches = [(rng.standard_normal((5, 6), np.float32), rng.integers(0, 3, 5)) for _ in range(count)]
    return [(cupy.asarray(X), cupy.asarray(y)) for X, y in batches]


def tokens(cupy: Any, count: int) -> list[Any]:
    rng = np.random.default_rng(1)
    return [tuple(cupy.asarray(rng.integers(0, 7, (3, 6))) for _ in "Xy") for _ in range(count)]


class Pair:
    """Two of a model, one trained by the step itself and one by a captured one: they are the same after each call."""

    def __init__(self, make: Callable[[], nn.Module], optimizer: str, max_norm: float | None = None) -> None:
        self.models = [make(), make()]
        self.optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in self.models]
        steps = [training_step(*both, max_norm) for both in zip(self.models, self.optimizers, strict=True)]
        self.plain, self.captured = steps[0], mg.capture(steps[1])

    def call(self, X: Any, y: Any, message: Any = None) -> None:
        assert bits(self.plain(X, y)) == bits(self.captured(X, y)), message
        states = [state(*both) for both in zip(self.models, self.optimizers, strict=True)]
        assert states[0] == states[1], message

    def change(self, change: Callable[[nn.Module, nn.Optimizer], Any]) -> None:
        for both in zip(self.models, self.optimizers, strict=True):
            change(*both)
