"""mg.capture: a step whose outcome depends on what can't be looked at before a replay, such as what it changes."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import os
import random
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.recording.instructions import CaptureError
from tests.training_steps import replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)
CACHE: dict[int, Any] = {}


def refused(step: Callable[..., Any], *args: Any) -> str:
    """The message with which a captured step is refused within some calls."""
    captured: Any = mg.capture(step)
    for _ in range(14):
        try:
            captured(*args)
        except CaptureError as error:
            return str(error)
    raise AssertionError("nothing was refused")


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


def test_steps_of_one_factory_know_nothing_of_each_other() -> None:
    def make(seed: int) -> Any:
        model = nn.MLP([3, 4, 2], rng=seed)
        optimizer = nn.Adam(model.parameters(), 1e-2)

        def step(x: Any) -> mg.Tensor:
            optimizer.zero_grad()
            loss = (model(x) ** 2).sum()
            loss.backward()
            optimizer.step()
            return loss

        return model, step

    rows = np.ones((2, 3), np.float32)
    pairs = [(make(seed), make(seed)) for seed in range(5)]
    captured = [mg.capture(one[1]) for one, _ in pairs]
    for _ in range(6):
        for step, (_, (_, plain)) in zip(captured, pairs, strict=True):
            assert step(rows).item() == plain(rows).item()
    conditions = {len(step.recordings[0].watch.conditions) for step in captured}
    assert len(conditions) == 1
    assert all(replays(step) == 4 for step in captured)


step = data = rng = loss = None  # global variables with the names of attributes


def test_attributes_are_not_taken_for_global_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)
    optimizer = nn.SGD([weight], 0.1)

    @mg.capture
    def train(x: Any) -> None:
        optimizer.zero_grad()
        (weight * x).sum().backward()
        weight.grad.data[0] = 0  # type: ignore[union-attr]
        optimizer.step()

    for i in range(8):
        monkeypatch.setitem(globals(), "step", i)
        monkeypatch.setitem(globals(), "data", [i])
        train(X)
    assert replays(train) == 6


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


def test_one_hot_labels() -> None:
    captured = mg.capture(lambda y: mg.tensor(nn.one_hot(y, 3)).sum(axis=0) + mg.tensor(np.eye(3))[y])
    for _ in range(5):
        labels = np.random.default_rng(0).integers(0, 3, 4)
        assert captured(labels).numpy().tolist() == (np.eye(3)[labels].sum(axis=0) + np.eye(3)[labels]).tolist()
    assert replays(captured) == 3


def test_what_a_replay_would_not_do_again_is_refused() -> None:
    def printing(x: Any) -> Any:
        print("a step")
        return x * 2

    def asking(x: Any) -> Any:
        return x * 2 if os.environ.get("NOTHING") else x

    assert "calls print" in refused(printing, X)
    assert "calls os." in refused(asking, X)
    assert "calls time.time" in refused(lambda x: x * time.time(), X)


def test_calls_that_mostly_go_another_way_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    captured = mg.capture(lambda x, rng: mg.tensor(x) * float(rng.beta(1.0, 1.0)))
    with pytest.warns(RuntimeWarning, match="another way"):
        warm(captured, X, rng, count=80)


def test_random_numbers_of_modules_are_refused() -> None:
    assert "random generator of a module" in refused(lambda x: x if random.random() < 2 else -x, X)
    assert "random generator of a module" in refused(lambda x: x + np.random.rand(), X)  # noqa: NPY002


def test_caught_errors_are_refused() -> None:
    def step(a: Any) -> Any:
        try:
            return np.linalg.cholesky(a)
        except np.linalg.LinAlgError:
            return np.linalg.cholesky(a + 10 * np.eye(2))

    assert "catches an error" in refused(step, np.array([[1.0, 5.0], [5.0, 1.0]]))

    def swallowing(x: Any) -> Any:
        try:
            return mg.tensor(x).sum().item()
        except Exception:
            return 0.0

    assert "return the tensor" in refused(swallowing, X)


def test_changes_of_arguments_other_than_arrays_are_refused() -> None:
    def fill(x: Any, metrics: dict[str, Any]) -> None:
        metrics["loss"] = mg.tensor(x).sum()

    def assign(x: Any, hidden: mg.Tensor) -> None:
        hidden.data = hidden.data + x

    assert "among its arguments" in refused(fill, X, {})
    assert "among its arguments" in refused(assign, X, mg.tensor(X))


def test_other_things_that_are_refused() -> None:
    assert "returns a" in refused(lambda x: types.SimpleNamespace(loss=mg.tensor(x)), X)
    assert "handed to a function" in refused(lambda x: np.apply_along_axis(np.sum, 0, x), X)
    assert "np.asarray" in refused(lambda x: x.sum(), np.ma.masked_array(X, X > 2))
    layer = nn.Dropout(0.5, 0)
    assert "mg.checkpoint" in refused(lambda x: mg.checkpoint(layer)(mg.tensor(x)), X)


def test_calls_that_are_never_alike_run_without_capture() -> None:
    step = mg.capture(lambda x, i: mg.tensor(x) * i, max_recordings=2)
    for i in range(5):
        assert step(X, i).numpy().tolist() == (X * i).tolist()
    with pytest.warns(RuntimeWarning, match="unlike all before"):
        step(X, 5)
    for i in range(6, 20):
        assert step(X, i).numpy().tolist() == (X * i).tolist()
    assert len(step.recordings) == 2


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


def test_other_threads_go_on_while_a_step_is_recorded() -> None:
    layer, problems = nn.Dropout(0.5, 0), []
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                w = mg.tensor(np.ones(4), requires_grad=True)
                (layer(w * 2).sum() + mg.softmax(w)[0]).backward()
                assert type(w.grad.data) is np.ndarray  # type: ignore[union-attr]
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(1, 8):
        model = nn.MLP([3, 4, 2], rng=0)
        step = mg.capture(lambda x, model=model: (model(x) ** 2).sum())
        warm(step, np.ones((n, 3), np.float32))
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems


def test_the_first_calls_from_many_threads() -> None:
    model = nn.MLP([3, 4, 2], rng=0)
    rows = np.ones((2, 3), np.float32)
    expected = model(rows).numpy().tobytes()
    step = mg.capture(lambda x: model(x))
    found: list[Any] = []

    def work() -> None:
        for _ in range(10):
            try:
                found.append(step(rows).numpy().tobytes())
            except Exception as error:
                found.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 80


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


def test_results_put_into_a_queue_are_refused_and_stay_arrays() -> None:
    history: collections.deque[Any] = collections.deque()

    @mg.capture
    def step(x: Any) -> None:
        history.append(x * 2)

    with pytest.raises(CaptureError, match="history changes"):
        warm(step, X, count=14)
    assert all(type(x) is np.ndarray for x in history)


def test_functions_that_write_into_their_arguments() -> None:
    def plain(x: Any) -> Any:
        out = np.zeros(3, like=x)
        np.copyto(out, x, where=x > 1)
        np.put(out, [0], x[1])
        np.add.at(out, [1, 1], x[:2])
        full = np.full_like(np.zeros((2, 3), like=x), x)
        return out, full + x, np.linalg.qr(np.outer(x, x) + np.eye(3)).R

    step = mg.capture(plain)
    for i in range(5):
        for found, expected in zip(step(X + i), plain(X + i), strict=True):
            assert found.tobytes() == expected.tobytes()
    assert replays(step) == 3


def test_keywords_of_any_name() -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step(**arrays: Any) -> mg.Tensor:
        weight.zero_grad()
        loss = (weight * sum(arrays.values())).sum()
        loss.backward()
        return loss

    held = []
    for i in range(8):
        names = {"a b": X * i, "array": X, "kernels": X, "value_0": X}
        assert step(**names).item() == 6.0 * (i + 3)
        held.append(weight.grad.data)  # type: ignore[union-attr]
    assert [x.tolist() for x in held] == [(X * (i + 3)).tolist() for i in range(8)]
    assert replays(step) == 6


def test_a_class_attribute_that_is_a_tuple_of_arrays() -> None:
    class Model:
        scales = (np.ones(3), np.full(3, 2.0))

    model = Model()
    step = mg.capture(lambda x: mg.tensor(x) * model.scales[1])
    for _ in range(4):
        assert step(X).numpy().tolist() == (2 * X).tolist()
    Model.scales[1][:] = 5.0
    assert step(X).numpy().tolist() == (5 * X).tolist()


def test_a_shallow_copy_has_a_captured_step_of_its_own() -> None:
    class Model:
        factor = 2.0

        @mg.capture
        def step(self, x: Any) -> mg.Tensor:
            return mg.tensor(x) * self.factor

    model = Model()
    warm(model.step, X)
    other = copy.copy(model)
    other.factor = 3.0
    assert other.step(X).numpy().tolist() == (3 * X).tolist()
    assert model.step(X).numpy().tolist() == (2 * X).tolist()


def test_replays_that_fail_are_recorded_anew() -> None:
    @mg.capture
    def step(a: Any) -> Any:
        try:
            return np.linalg.inv(a)
        except np.linalg.LinAlgError:
            return a * 0

    regular, singular = np.eye(2) * 2, np.ones((2, 2))
    for _ in range(4):
        assert step(regular).tolist() == [[0.5, 0.0], [0.0, 0.5]]
    with pytest.warns(RuntimeWarning, match="recorded anew"):
        assert step(singular).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert step(regular).tolist() == [[0.5, 0.0], [0.0, 0.5]]


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


def test_steps_of_a_module_without_a_name() -> None:
    scope: dict[str, Any] = {"mg": mg, "np": np, "k": 2.0}
    exec("step = mg.capture(lambda x: mg.tensor(x) * k)", scope)
    warm(scope["step"], X)
    scope["k"] = 3.0
    assert scope["step"](X).numpy().tolist() == (3 * X).tolist()


def test_an_import_within_the_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs while a module is imported does not run again: it is not looked at, but what is used of it is."""
    (tmp_path / "imported_late.py").write_text(
        "FACTOR, TABLE = 2.0, list(range(1000))\n"
        "def table():\n    return TABLE\n"
        "def scale(x):\n    return x * FACTOR\n"
        "LENGTH = len(table())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "imported_late", sys)  # so that whatever is there is gone when the test ends
    del sys.modules["imported_late"]

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        import imported_late

        scaled: mg.Tensor = imported_late.scale(mg.tensor(x))
        return scaled

    warm(step, X)
    assert replays(step) > 0
    assert len(step.recordings[0].watch.conditions) < 100  # of a table of 1,000 numbers none
    monkeypatch.setattr("imported_late.FACTOR", 5.0)
    np.testing.assert_array_equal(step(X).numpy(), X * 5)
