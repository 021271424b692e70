"""Random models, optimisers and steps, changed from outside between calls: replays train as the step itself does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests import training_steps
from tests.training_steps import bits, replays

WIDTH, CLASSES, LENGTH = 8, 11, 4
SEEDS, CALLS = 6, 14

Generator = np.random.Generator


@mg.primitive(x=lambda g, x: 3 * g * x * x)
def cube(xp: Any, x: Any) -> Any:
    return x * x * x


class Residual(nn.Module):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        out: mg.Tensor = x + self.inner(x)
        return out


class Twice(nn.Module):
    """One layer's parameters, used two times."""

    def __init__(self, rng: Generator) -> None:
        self.inner = nn.Linear(WIDTH, WIDTH, rng=rng)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        out: mg.Tensor = self.inner(mg.tanh(self.inner(x)))
        return out


class Gate(nn.Module):
    def __init__(self, rng: Generator) -> None:
        self.scale = mg.tensor(rng.standard_normal(WIDTH, np.float32), requires_grad=True)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        return x * mg.sigmoid(self.scale) + mg.where(x > 0, x, 0.1 * x)


class Recomputed(nn.Module):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        out: mg.Tensor = mg.checkpoint(self.inner)(x)
        return out


def halves(x: mg.Tensor) -> mg.Tensor:
    a, b = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
    return mg.concatenate([b * mg.sigmoid(a), a], axis=-1)


def centred(x: mg.Tensor) -> mg.Tensor:
    return x - x.mean(axis=-1, keepdims=True) + x.detach().max(axis=-1, keepdims=True)


LAYERS: list[Callable[[Generator], Any]] = [
    lambda rng: nn.Linear(WIDTH, WIDTH, rng=rng),
    lambda rng: nn.ReLU(),
    lambda rng: nn.GELU("tanh" if rng.random() < 0.5 else "none"),
    lambda rng: nn.SiLU(),
    lambda rng: nn.LayerNorm(WIDTH),
    lambda rng: nn.RMSNorm(WIDTH),
    lambda rng: nn.Dropout(0.3, int(rng.integers(100))),
    lambda rng: nn.MLP([WIDTH, 5, WIDTH], rng=rng),
    lambda rng: cube if rng.random() < 0.5 else mg.tanh,
    lambda rng: halves if rng.random() < 0.5 else centred,
    Gate,
    Twice,
    lambda rng: nn.FeedForward(WIDTH, 16, nn.SiLU, 0.2, gated=bool(rng.random() < 0.5), rng=int(rng.integers(100))),
    lambda rng: nn.TransformerBlock(WIDTH, 2, d_ff=16, causal=bool(rng.random() < 0.5), rng=int(rng.integers(100))),
]


def layer(rng: Generator) -> Any:
    kind = rng.random()
    if kind < 0.1:
        return Residual(layer(rng))
    if kind < 0.15:
        return Recomputed(nn.MLP([WIDTH, 6, WIDTH], nn.GELU, rng=rng))
    return LAYERS[rng.integers(len(LAYERS))](rng)


class Model(nn.Module):
    def __init__(self, rng: Generator) -> None:
        self.embedding = nn.Embedding(CLASSES, WIDTH, rng=rng)
        self.layers = [layer(rng) for _ in range(rng.integers(1, 6))]
        self.head = None if rng.random() < 0.3 else nn.Linear(WIDTH, CLASSES, rng=rng)  # None: the embedding's weight

    def forward(self, tokens: Any) -> mg.Tensor:
        x = self.embedding(tokens)
        for inner in self.layers:
            x = inner(x)
        out: mg.Tensor = x @ self.embedding.weight.T if self.head is None else self.head(x)
        return out


OPTIMIZERS: list[Callable[[Any], nn.Optimizer]] = [
    *training_steps.OPTIMIZERS.values(),
    lambda params: nn.AdamW([{"params": params[:2], "lr": 0.02}, {"params": params[2:]}], 0.01),
]


class Training:
    """A model, its optimiser, an average of its parameters, and a step with some of what steps do."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.model = Model(rng)
        self.params = self.model.parameters()
        self.optimizer = OPTIMIZERS[rng.integers(len(OPTIMIZERS))](self.params)
        self.average = [mg.tensor(p.data.copy()) for p in self.params]
        self.saved: Any = None
        self.clips, self.accumulates, self.averages, self.decays, self.measures = (rng.random(5) < 0.4).tolist()
        self.zeroes, self.loss = rng.integers(3), rng.integers(2)

    def losses(self, x: Any, y: Any) -> tuple[mg.Tensor, mg.Tensor]:
        out = self.model(x)
        if self.loss == 0:
            return out, nn.cross_entropy(out, y)
        return out, nn.mse_loss(out, nn.one_hot(y, CLASSES)) + 0.01 * mg.sum(self.params[0] ** 2)

    def step(self, x: Any, y: Any) -> list[mg.Tensor]:
        if self.zeroes == 0:
            self.optimizer.zero_grad()
        out, loss = self.losses(x, y)
        loss.backward()
        if self.accumulates:
            (self.losses(x[::-1], y[::-1])[1] * 0.5).backward()
        if self.clips:
            nn.clip_grad_norm(self.params, 0.5)
        if self.decays:
            for p in self.params:
                p.data = p.data * np.float32(0.999)
        self.optimizer.step()
        if self.zeroes == 1:
            self.model.zero_grad()
        if self.averages:
            for average, p in zip(self.average, self.params, strict=True):
                average.data = average.data * np.float32(0.9) + p.data * np.float32(0.1)
        return [loss, (out.argmax(axis=-1) == y).mean()] if self.measures else [loss]

    def arrays(self) -> list[Any]:
        """All that a step leaves."""
        states = [x for state in self.optimizer.state_dict()["state"] for _, x in sorted(state.items())]
        gradients = [np.zeros(0) if p.grad is None else p.grad.data for p in self.params]
        generators = [rng.bit_generator.state["state"]["state"] for _, rng in self.model.named_generators()]
        values = [x.data for x in (*self.params, *self.average)]
        return [*values, *gradients, *map(np.asarray, states), np.array([str(x) for x in generators])]


def load(training: Training, u: float) -> None:
    if training.saved is None or u < 0.5:
        training.saved = training.model.state_dict(), training.optimizer.state_dict()
    else:
        training.model.load_state_dict(training.saved[0])
        training.optimizer.load_state_dict(training.saved[1])


def set_rate(training: Training, u: float) -> None:
    training.optimizer.param_groups[0]["lr"] = 0.05 * u


def train_or_not(training: Training, u: float) -> None:
    training.model.train(u < 0.5)


def assign(training: Training, u: float) -> None:
    training.params[0].data = training.params[0].data * np.float32(u)


def change(training: Training, u: float) -> None:
    training.params[-1].data -= np.float32(u)


def set_gradient(training: Training, u: float) -> None:
    last = training.params[-1]
    last.grad = None if u < 0.5 else mg.tensor(np.full(last.shape, u, np.float32))


def add_layer(training: Training, u: float) -> None:
    layers = training.model.layers
    if layers[-1] is not layers[0]:  # once
        layers.append(layers[0])


def nothing(training: Training, u: float) -> None:
    pass


EVENTS = [load, load, set_rate, train_or_not, assign, change, set_gradient, add_layer, *[nothing] * 5]


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_random_training(kernels: str) -> None:
    if kernels == "numba" and importlib.util.find_spec("numba") is None:
        pytest.skip("Numba is not installed")
    total = 0
    for seed in range(SEEDS):
        with mg.kernels(kernels), np.errstate(all="ignore"):
            plain, captured = Training(seed), Training(seed)
            step = mg.capture(captured.step)
            rng, rows = np.random.default_rng(seed), 3
            held: list[tuple[Any, Any]] = []
            for call in range(CALLS):
                if call > 3:
                    event, u = EVENTS[rng.integers(len(EVENTS))], rng.random()
                    for training in (plain, captured):
                        event(training, u)
                    rows = rng.integers(2, 5) if rng.random() < 0.1 else rows
                x, y = rng.integers(0, CLASSES, (2, rows, LENGTH))
                expected, found = plain.step(x.copy(), y.copy()), step(x.copy(), y.copy())
                pairs = zip([*found, *captured.arrays()], [*expected, *plain.arrays()], strict=True)
                for ours, theirs in pairs:
                    if kernels == "numpy":
                        assert bits(ours) == bits(theirs), (seed, call)
                    elif np.asarray(ours.data).dtype.kind == "f":
                        np.testing.assert_allclose(ours.data, theirs.data, 2e-2, 2e-3, err_msg=f"{seed}, {call}")
                assert all(bits(x) == was for x, was in held), (seed, call)
                held += [(x, bits(x)) for x in found]
        total += replays(step)
    assert total > SEEDS * CALLS / 3
