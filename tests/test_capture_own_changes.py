"""mg.capture: a step that itself changes what its next call looks at, such as flags, counters, caches and arrays."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import replays

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)
CACHE: dict[int, Any] = {}


def test_state_that_a_step_changes_in_turns() -> None:
    flags = types.SimpleNamespace(turn=True, count=0)

    def step(x: Any) -> Any:
        flags.turn = not flags.turn
        flags.count = (flags.count + 1) % 3
        return mg.tensor(x) * (1.0 if flags.turn else 2.0) * (10.0 if flags.count == 0 else 1.0)

    plain = [step(X).numpy().tolist() for _ in range(30)]
    flags.turn, flags.count = True, 0
    captured = mg.capture(step)
    assert [captured(X).numpy().tolist() for _ in range(30)] == plain
    assert len(captured.recordings) == 6
    assert replays(captured) >= 20


def test_evaluation_and_training_that_set_the_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 2, rng=0), nn.Dropout(0.5, 0))
    rows = np.ones((4, 3), np.float32)

    @mg.capture
    def train(x: Any) -> mg.Tensor:
        model.train()
        return model(x).sum()

    @mg.capture
    def evaluate(x: Any) -> mg.Tensor:
        model.eval()
        with mg.no_grad():
            return model(x).sum()

    expected = model.eval()(rows).sum().item()
    for _ in range(8):
        for _ in range(3):
            train(rows)
        assert evaluate(rows).item() == expected
        assert not model.training
    assert replays(evaluate) == 6


def test_attributes_that_no_function_names_may_change() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.weight, self.history, self.count = mg.tensor(np.ones(3)), [], 0

        def fit(self) -> None:
            for _ in range(8):
                self.history.append(self.step(X))
                self.count += 1

        @mg.capture
        def step(self, x: Any) -> mg.Tensor:
            return (self.weight * x).sum()

    trainer = Trainer()
    trainer.fit()
    assert replays(trainer.step) == 6
    assert [x.item() for x in trainer.history] == [6.0] * 8


def test_parameters_that_get_gradients_in_turn() -> None:
    heads = [[mg.tensor(np.ones(3), requires_grad=True) for _ in range(2)] for _ in range(2)]
    optimizers = [nn.AdamW(head, 1e-2) for head in heads]

    def train(which: int, x: Any, task: int) -> mg.Tensor:
        optimizers[which].zero_grad()
        loss = (heads[which][task] * x).sum()
        loss.backward()
        optimizers[which].step()
        return loss

    captured = mg.capture(lambda x, task: train(0, x, task))
    for task in np.random.default_rng(0).integers(0, 2, 60).tolist():
        assert captured(X, task).item() == train(1, X, task).item()
    assert replays(captured) >= 40


def test_counters_of_optimisers_that_others_write() -> None:
    class Lookahead(nn.Optimizer):
        limits = {"lr": 10.0}  # noqa: RUF012

        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.5)

        def _update(self, group: dict[str, Any], work: list[Any]) -> None:
            for p, g, state in work:
                state["n"] = (state.get("n", 0) + 1) % 3
                p -= group["lr"] * g
                if state["n"] == 0:
                    p *= 0.5

    weights = [mg.tensor(np.ones(3), requires_grad=True) for _ in range(2)]
    optimizers = [Lookahead([weight]) for weight in weights]

    def train(which: int, x: Any) -> None:
        optimizers[which].zero_grad()
        (weights[which] * x).sum().backward()
        optimizers[which].step()

    captured = mg.capture(lambda x: train(0, x))
    for _ in range(20):
        captured(X)
        train(1, X)
        assert weights[0].data.tolist() == weights[1].data.tolist()
    assert replays(captured) >= 10


@pytest.mark.parametrize("steps", ["one", "two"])
def test_learning_rates_that_a_step_sets_itself(steps: str) -> None:
    """By a flag, by a default argument and by a whole number: replays set them too, for whoever reads them next."""

    def train(capture: Any) -> list[Any]:
        model = nn.Linear(3, 1, rng=0)
        optimizer = nn.SGD(model.parameters(), 0.5, momentum=0.5)
        group = optimizer.param_groups[0]

        def update(x: Any) -> mg.Tensor:
            loss = (model(x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        @capture
        def step(x: Any, warm: bool, momentum: float = 0.25, epoch: int = 0) -> mg.Tensor:
            group["lr"] = 0.001 if warm else 0.01 / (1 + epoch)
            loss = update(x)
            group["momentum"] = momentum
            return loss

        other = capture(update)
        found = []
        for i in range(24):
            found.append(step(X, i // 3 % 2 == 0, epoch=i // 12).item())
            found += [group["lr"], group["momentum"]]
            if steps == "two":
                found.append(other(X).item())
            group["lr"] = 0.005
        return found

    assert train(mg.capture) == train(lambda step: step)


def test_what_a_step_removes_and_what_is_frozen_is_put_back() -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen:
        mask: Any
        weight: Any

    frozen = Frozen(np.ones(3), mg.tensor(np.ones(3), requires_grad=True))
    holder = types.SimpleNamespace(weight=mg.tensor(np.ones(3)), buffer=np.ones(3))

    def step(x: Any) -> Any:
        buffer = holder.buffer
        del holder.buffer
        holder.buffer = buffer
        return (frozen.weight * frozen.mask * x + holder.weight * buffer).sum()

    captured = mg.capture(step)
    assert [captured(X).item() for _ in range(4)] == [9.0] * 4
    assert all(type(a) is np.ndarray for a in (frozen.mask, frozen.weight.data, holder.weight.data, holder.buffer))


def test_arrays_that_a_step_caches_stay_arrays() -> None:
    @functools.cache
    def mask(n: int) -> mg.Tensor:
        return mg.tensor(np.tri(n))

    def step(x: Any) -> Any:
        if len(x) not in CACHE:
            CACHE[len(x)] = np.ones(len(x))
        return (mask(len(x)) * x * CACHE[len(x)]).sum()

    captured = mg.capture(step)
    assert [captured(X).item() for _ in range(4)] == [10.0] * 4
    assert (mask(3) * 2).sum().item() == 12.0
    assert type(CACHE[3]) is np.ndarray


def test_arrays_in_tuples_that_a_step_changes() -> None:
    buffers = (np.zeros(4), np.ones(2))

    @mg.capture
    def step(x: Any) -> Any:
        array = buffers[0]
        array += x
        return mg.tensor(x).sum()

    for i in range(1, 7):
        step(np.full(4, 3.0))
        assert buffers[0].tolist() == [3.0 * i] * 4


def test_functions_that_write_into_their_arguments() -> None:
    def plain(x: Any) -> Any:
        out = np.zeros(3, like=x)
        np.copyto(out, x, where=x > 1)
        np.put(out, [0], x[1])
        np.copyto(src=x, dst=out, where=x > 2)
        np.add.at(out, [1, 1], x[:2])
        full = np.full_like(np.zeros((2, 3), like=x), x)
        return out, full + x, np.linalg.qr(np.outer(x, x) + np.eye(3)).R

    step = mg.capture(plain)
    for i in range(5):
        for found, expected in zip(step(X + i), plain(X + i), strict=True):
            assert found.tobytes() == expected.tobytes()
    assert replays(step) == 3
    kept = np.zeros(3)
    keep = mg.capture(lambda x: np.copyto(dst=kept, src=x))
    for i in range(5):
        keep(X + i)
        assert kept.tobytes() == (X + i).tobytes()
    refused = mg.capture(lambda x: np.copyto(dst=np.zeros(3), src=x))
    refused(X)
    with pytest.raises(mg.CaptureError, match=r"np\.copyto writes into an array that the recording does not know"):
        refused(X)


def test_one_hot_labels() -> None:
    captured = mg.capture(lambda y: mg.tensor(nn.one_hot(y, 3)).sum(axis=0) + mg.tensor(np.eye(3))[y])
    for _ in range(5):
        labels = np.random.default_rng(0).integers(0, 3, 4)
        assert captured(labels).numpy().tolist() == (np.eye(3)[labels].sum(axis=0) + np.eye(3)[labels]).tolist()
    assert replays(captured) == 3


def test_one_array_given_to_two_tensors_is_shared() -> None:
    def values(wrap: Any) -> list[Any]:
        p, q = mg.tensor(np.ones(2), requires_grad=True), mg.tensor(np.zeros(2))

        @wrap
        def step(x: float) -> None:
            p.data = p.data * x
            q.data = p.data

        found = []
        for _ in range(6):
            step(2.0)
            p.data += 1.0
            found.append((p.data[0], q.data[0]))
        return found

    assert values(mg.capture) == values(lambda step: step)


def test_checkpoints_notice_what_a_replay_assigns() -> None:
    w = mg.tensor(np.full(4, 2.0), requires_grad=True)

    @mg.capture
    def step(x: Any) -> None:
        w.data = w.data - x

    for _ in range(6):
        y = mg.checkpoint(lambda t: mg.exp(w * t))(mg.tensor(np.ones(4))).sum()
        step(np.full(4, 1e-4))
        with pytest.raises(RuntimeError, match="other values"):
            y.backward()
    assert replays(step) == 4
