"""A training run with everything that a checkpoint holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

import nn


class Run:
    """A small training run with everything in it that has a state."""

    def __init__(self, seed: int = 0, optimizer: Callable[..., nn.Optimizer] = nn.AdamW, width: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.model = nn.Transformer(11, width, 2, 2, 6, dropout=0.2, rng=self.rng)
        self.optimizer = optimizer(nn.decay_groups(self.model, 0.1), lr=0.01)
        self.schedule = nn.WarmupCosineLR(self.optimizer, 3, 50)

    def step(self) -> float:
        tokens = self.rng.integers(0, 11, (3, 7))
        loss = nn.cross_entropy(self.model(tokens[:, :-1]), tokens[:, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        nn.clip_grad_norm(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "rng": self.rng}

    def fingerprint(self) -> str:
        """Of all bits of the state."""
        digest = hashlib.sha256()
        for name, array in self.model.state_dict().items():
            digest.update(name.encode() + str(array.dtype).encode() + array.tobytes())
        for state in self.optimizer.state_dict()["state"]:
            for name, value in state.items():
                digest.update(name.encode() + np.asarray(value).tobytes())
        settings = [{**group, "params": None} for group in self.optimizer.param_groups]
        digest.update(repr((settings, self.schedule.state_dict(), self.rng.bit_generator.state)).encode())
        return digest.hexdigest()
