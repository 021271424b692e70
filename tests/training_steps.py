"""Training steps, captured or not, and the bits of everything that they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import microgradnd as mg
import nn

OPTIMIZERS: dict[str, Callable[[Any], nn.Optimizer]] = {
    "sgd": lambda p: nn.SGD(p, 0.05),
    "momentum": lambda p: nn.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: nn.Adam(p, 1e-2, weight_decay=0.01),
    "adamw": lambda p: nn.AdamW(p, 1e-2),
    "rmsprop": lambda p: nn.RMSprop(p, 1e-3, momentum=0.5, centered=True),
}


def bits(*values: Any) -> list[bytes]:
    """The bytes of arrays, on a device or not, and tensors, so that NaN equals NaN and 0.0 differs from -0.0."""
    arrays = [x.data if isinstance(x, mg.Tensor) else x for x in values]
    return [np.asarray(x.get() if hasattr(x, "get") else x).tobytes() for x in arrays]


def mlp(seed: int = 0) -> nn.Module:
    return nn.MLP([6, 8, 3], rng=seed)


def batches(count: int, rows: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((rows, 6), np.float32), rng.integers(0, 3, rows)) for _ in range(count)]


def training_step(model: nn.Module, optimizer: nn.Optimizer, max_norm: float | None = None) -> Callable[..., Any]:
    def step(X: Any, y: Any) -> mg.Tensor:
        optimizer.zero_grad()
        loss = nn.cross_entropy(model(X), y)
        loss.backward()
        if max_norm is not None:
            nn.clip_grad_norm(model.parameters(), max_norm)
        optimizer.step()
        return loss

    return step


def step_that_branches(x: Any, w: mg.Tensor) -> mg.Tensor:
    """One that goes another way where the loss is negative."""
    w.zero_grad()
    loss = (w * x).sum()
    if loss > 0:
        loss = loss * 2
    loss.backward()
    w.data -= 0.1 * w.grad.data  # type: ignore[union-attr]
    return loss


def state(model: nn.Module, optimizer: nn.Optimizer) -> list[bytes]:
    """Everything that training changes."""
    found = bits(*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None))
    for slot in optimizer.state_dict()["state"]:
        found += [name.encode() for name in slot] + bits(*slot.values())
    return found + [str(generator.bit_generator.state).encode() for _, generator in model.named_generators()]


def assert_same_training(
    make: Callable[[], nn.Module], optimizer: str, data: list[Any], max_norm: float | None = None
) -> Any:
    """Train with and without capture: the same losses and the same state at every step. Returns the captured one."""
    pairs = []
    for _ in range(2):
        model = make()
        pairs.append((model, OPTIMIZERS[optimizer](model.parameters())))
    plain, captured = (training_step(*pair, max_norm) for pair in pairs)
    captured = mg.capture(captured)
    for i, (X, y) in enumerate(data):
        assert bits(plain(X, y)) == bits(captured(X, y)), i
        assert state(*pairs[0]) == state(*pairs[1]), i
    return captured


def replays(captured: Any) -> int:
    return sum(recording.calls for recording in captured.recordings)


def warm(step: Any, *args: Any, count: int = 4) -> None:
    for _ in range(count):
        step(*args)


Case = tuple[Callable[[Any], Any], Callable[[], Any]]  # a step, and a change that makes it another one


def changed_in_time(step: Callable[[Any], Any], change: Callable[[], Any]) -> None:
    """A captured step is another one from the first call on in which the step itself is."""
    x = np.arange(1.0, 4.0)
    captured = mg.capture(step)
    warm(captured, x)
    before = np.asarray(step(x))
    change()
    after = np.asarray(step(x))
    assert not np.array_equal(before, after)
    for _ in range(3):
        np.testing.assert_array_equal(captured(x), after)
    assert replays(captured) > 2
