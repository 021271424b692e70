"""mg.capture: what changes without a meaning for the step doesn't keep it from being replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import bits, replays

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


def test_an_equal_tuple_is_no_change() -> None:
    class Layer:
        shape: tuple[int, ...] = ()
        limits = (0.5, 2.0)

        def __call__(self, x: Any) -> Any:
            self.shape = x.shape
            return mg.clip(mg.tensor(x), *self.limits)

    layer = Layer()
    step = mg.capture(lambda x: layer(x))
    for n in (3, 3, 3, 3, 2, 2, 2, 2, 3):
        layer.limits = tuple(map(float, ("0.5", "2.0")))
        np.testing.assert_array_equal(step(X[:n]).data, X[:n].clip(0.5, 2))
        assert layer.shape == (n,)
    assert replays(step) > 3


def test_attributes_and_histories_that_no_function_names() -> None:
    class Trainer:
        history: list[float] = []  # noqa: RUF012  # of all trainers
        calls = 0

        def __init__(self) -> None:
            self.weight = mg.tensor(np.ones(3), requires_grad=True)

        def step(self, x: Any) -> Any:
            return self.weight * x

    trainer = Trainer()
    step = mg.capture(trainer.step)
    for i in range(12):
        trainer.history.append(i)
        Trainer.calls += 1
        setattr(trainer, f"result_{i}", step(X))
    assert replays(step) == 10


def ordinary(step: Callable[[Any], Any], between: Callable[[int], Any], calls: int = 14) -> None:
    captured = mg.capture(step)
    for i in range(calls):
        captured(X)
        between(i)
    assert replays(captured) >= calls - 3


def test_histories_beside_attributes_that_are_asked_for_by_strings() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.history: list[int] = []
            self.weight = mg.tensor(np.ones(3), requires_grad=True)

        def step(self, x: Any) -> Any:
            setattr(self, "latest", 3)  # noqa: B010
            return self.weight * x if hasattr(self, "scheduler") or hasattr(x, "size") else x

    trainer = Trainer()
    ordinary(trainer.step, trainer.history.append)


def test_what_methods_use_that_do_not_run() -> None:
    made: list[int] = []

    class Trainer:
        def __init__(self) -> None:
            made.append(0)
            self.weight = mg.tensor(np.ones(3), requires_grad=True)

        @property
        def count(self) -> int:
            return len(made)

        def step(self, x: Any) -> Any:
            return self.weight * x

    trainer = Trainer()
    ordinary(trainer.step, made.append)


def test_attributes_of_what_is_derived_from_containers() -> None:
    class Meter(list):  # type: ignore[type-arg]
        total = 0

        def add(self, x: int) -> None:
            self.total += x

    meter = Meter([1.0, 2.0])
    ordinary(lambda x: mg.tensor(x) * len(meter), meter.add)


def test_two_optimisers_that_take_turns() -> None:
    def outcome(decorate: Callable[..., Any]) -> list[bytes]:
        a, b = (mg.tensor(np.full(3, v), requires_grad=True) for v in (1.0, 2.0))
        first, second = nn.Adam([a], lr=0.1), nn.Adam([b], lr=0.1)

        def one(x: Any) -> None:
            first.zero_grad(), second.zero_grad()
            (a * b * x).sum().backward()
            first.step()

        def other(x: Any) -> None:
            first.zero_grad(), second.zero_grad()
            (a * b * x).sum().backward()
            second.step()

        steps: list[Any] = [decorate(one), decorate(other)]
        for _ in range(9):
            for step in reversed(steps):
                step(X)
        if decorate is mg.capture:
            assert all(replays(step) >= 5 for step in steps)
        return bits(a, b)

    assert outcome(mg.capture) == outcome(lambda step: step)


def test_weights_that_are_swapped_between_steps() -> None:
    layer, plain = nn.Linear(3, 2, rng=0), nn.Linear(3, 2, rng=0)
    optimizers = [nn.Adam(x.parameters(), 0.1) for x in (layer, plain)]

    def step(layer: nn.Module, optimizer: nn.Optimizer) -> Any:
        optimizer.zero_grad()
        loss = layer(mg.tensor(np.ones((1, 3), np.float32))).sum()
        loss.backward()
        optimizer.step()
        return loss

    captured = mg.capture(lambda: step(layer, optimizers[0]))
    for i in range(20):
        assert bits(captured()) == bits(step(plain, optimizers[1]))
        if i % 5 == 4:
            for model in (layer, plain):
                model.load_state_dict({name: x * 0.9 for name, x in model.state_dict().items()})
    assert len(captured.recordings) == 1
    assert replays(captured) >= 14
