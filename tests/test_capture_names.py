"""mg.capture: the names that a step looks up, and steps beside each other: copies, of one factory, in threads."""

from __future__ import annotations

import cProfile
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)
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


def test_a_profiler_of_the_program_sees_the_calls_that_are_noted() -> None:
    seen: list[tuple[str, str]] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        seen.append((event, frame.f_code.co_name))

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        return mg.tensor(x) * 2.0

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        step(X)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(before)
    assert ("call", "step") in seen
    assert ("return", "step") in seen


def test_a_profiler_that_only_c_can_call_is_put_aside_while_calls_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    @mg.capture
    def step(x: Any) -> mg.Tensor:
        return mg.tensor(x) * 2.0

    def train() -> None:
        warm(step, X)
        str(X)

    with cProfile.Profile() as profiler:  # Python 3.11 gives it as sys.getprofile(), though it can't be called
        train()
    assert replays(step) > 0
    (entry,) = [entry for entry in profiler.getstats() if getattr(entry.code, "co_name", "") == "train"]
    assert any("str" in str(call.code) for call in entry.calls)  # it has gone on where it was

    monkeypatch.setattr(sys, "getprofile", lambda: "another one in C")
    with pytest.raises(mg.CaptureError, match="the profiler 'another one in C' can't be put aside"):
        mg.capture(lambda x: mg.tensor(x) * 2.0)(X)


def test_a_step_that_ends_a_profiler_is_refused() -> None:
    @mg.capture
    def step(x: Any) -> mg.Tensor:
        sys.setprofile(None)
        return mg.tensor(x) * 2.0

    step(X)
    with pytest.raises(mg.CaptureError, match="the step calls a profiler"):
        step(X)


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
