"""mg.capture: an optimiser's state that is loaded between calls, alone, is what the next replay goes on from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import OPTIMIZERS, batches, bits, mlp, replays, state, training_step

pytestmark = pytest.mark.usefixtures("numpy_kernels")


def trained(wrap: Callable[[Any], Any], optimizer: str, saved_at: int, loaded_at: int) -> tuple[list[Any], Any]:
    """Losses and everything that training changes, call by call; the step."""
    model = mlp()
    optim = OPTIMIZERS[optimizer](model.parameters())
    step, found = wrap(training_step(model, optim)), []
    for i, (X, y) in enumerate(batches(14)):
        if i == saved_at:
            saved = optim.state_dict()
        if i == loaded_at:
            optim.load_state_dict(saved)
        loss = step(X, y)
        found.append(bits(loss))
    return [*found, state(model, optim)], step


@pytest.mark.parametrize("saved_at", [0, 5])  # 0: before the first step there is no state
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_that_is_loaded(optimizer: str, saved_at: int) -> None:
    expected, _ = trained(lambda step: step, optimizer, saved_at, 9)
    found, step = trained(mg.capture, optimizer, saved_at, 9)
    assert found == expected
    assert replays(step) >= 7
    if saved_at:
        assert len(step.recordings) == 1


def test_numbers_and_more_in_a_state() -> None:
    class Scaled(nn.Optimizer):
        limits = {"lr": float("inf")}  # noqa: RUF012

        def _update(self, group: Any, work: Any) -> None:
            for p, g, own in work:
                p -= group["lr"] * own.setdefault("scale", 1.0) * g
                if "momentum" in own:
                    p -= own["momentum"]

    def losses(wrap: Callable[[Any], Any]) -> list[float]:
        w = mg.tensor(np.zeros(2), requires_grad=True)
        optim = Scaled([w], lr=1.0)

        @wrap
        def step(x: Any) -> Any:
            w.zero_grad()
            (w * x).sum().backward()
            optim.step()

        found = []
        for i in range(15):
            changed = optim.state_dict()
            if i == 5:
                changed["state"][0]["scale"] = 0.5
            if i == 10:
                changed["state"][0]["momentum"] = np.full(2, 100.0)
            optim.load_state_dict(changed)  # in other calls what it is
            step(np.ones(2))
            found.append(w.data[0])
        return found

    assert losses(mg.capture) == losses(lambda step: step)


def test_what_a_program_keeps_of_a_state_is_not_written_into() -> None:
    class Keeping(nn.Optimizer):
        limits = {"lr": float("inf")}  # noqa: RUF012

        def _update(self, group: Any, work: Any) -> None:
            for p, g, own in work:
                own["latest"] = own["again"] = g
                own.setdefault("history", [np.zeros_like(g)])
                own.setdefault("step", np.ones_like(g))  # of another kind than Adam's
                p -= group["lr"] * g

    def values(wrap: Callable[[Any], Any]) -> list[Any]:
        w = mg.tensor(np.zeros(2), requires_grad=True)
        optim = Keeping([w], lr=1.0)

        @wrap
        def step(x: Any) -> Any:
            w.zero_grad()
            (w * x).sum().backward()
            optim.step()

        step(np.ones(2))
        saved, found = optim.state_dict(), []
        for i in range(8):
            step(np.full(2, i + 2.0))
            optim.load_state_dict({**saved, "state": [{**saved["state"][0], "latest": np.full(2, 100.0)}]})
            found += [w.grad.data.tolist(), w.data.tolist()]  # type: ignore[union-attr]
            found += [optim.state_dict()["state"][0][name].tolist() for name in ("latest", "again", "step")]
        return found

    expected = values(lambda step: step)
    assert expected[:5] == [[2, 2], [-3, -3], [100, 100], [1, 1], [1, 1]]
    assert values(mg.capture) == expected


@pytest.mark.parametrize("loaded_at", [(1, 2), (4, 5)])
def test_weights_that_are_loaded_in_two_calls_in_a_row_are_not_copied_for_ever(loaded_at: tuple[int, ...]) -> None:
    model = mlp()
    optimizer = nn.Adam(model.parameters())
    step = mg.capture(training_step(model, optimizer))
    saved = model.state_dict()
    for i, (X, y) in enumerate(batches(14)):
        if i in loaded_at:
            model.load_state_dict(saved)
        if i == 8:
            held = [parameter.data for parameter in model.parameters()]
        step(X, y)
    assert all(parameter.data is x for parameter, x in zip(model.parameters(), held, strict=True))
    assert replays(step) >= 7


def test_arrays_that_the_step_replaces_itself_are_copied_in_each_replay() -> None:
    """The optimiser then copies each time, which is what the step does."""

    def train(wrap: Callable[[Any], Any]) -> tuple[list[Any], Any]:
        w = mg.tensor(np.ones(3), requires_grad=True)
        optimizer = nn.SGD([w], 0.1)

        def plain(x: Any) -> mg.Tensor:
            loss = (w * x).sum()
            optimizer.zero_grad()
            loss.backward()
            w.data = w.data * 0.5
            optimizer.step()
            return loss

        step = wrap(plain)
        return [(step(np.arange(3.0)).item(), w.data.tolist()) for _ in range(8)], step

    found, step = train(mg.capture)
    assert found == train(lambda step: step)[0]
    assert replays(step) >= 5
