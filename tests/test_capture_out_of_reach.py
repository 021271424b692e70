"""mg.capture: what a replay would not do as the step does is refused, warned of, or left to the step itself."""

from __future__ import annotations

import collections
import os
import random
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


def refused(step: Callable[..., Any], *args: Any) -> str:
    """The message with which a captured step is refused within some calls."""
    captured: Any = mg.capture(step)
    for _ in range(14):
        try:
            captured(*args)
        except mg.CaptureError as error:
            return str(error)
    raise AssertionError("nothing was refused")


def test_what_a_replay_would_not_do_again_is_refused() -> None:
    def printing(x: Any) -> Any:
        print("a step")
        return x * 2

    def asking(x: Any) -> Any:
        return x * 2 if os.environ.get("NOTHING") else x

    assert "calls print" in refused(printing, X)
    assert "calls os." in refused(asking, X)
    assert "calls time.time" in refused(lambda x: x * time.time(), X)


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


def test_results_put_into_a_queue_are_refused_and_stay_arrays() -> None:
    history: collections.deque[Any] = collections.deque()

    @mg.capture
    def step(x: Any) -> None:
        history.append(x * 2)

    with pytest.raises(mg.CaptureError, match="history changes"):
        warm(step, X, count=14)
    assert all(type(x) is np.ndarray for x in history)


def test_calls_that_mostly_go_another_way_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    captured = mg.capture(lambda x, rng: mg.tensor(x) * float(rng.beta(1.0, 1.0)))
    with pytest.warns(RuntimeWarning, match="another way") as warned:
        warm(captured, X, rng, count=80)
    assert warned[0].filename == warm.__code__.co_filename  # the line that calls the step, not one of ours


def test_calls_that_go_another_way_after_a_replay_are_warned_of_where_they_are() -> None:
    captured = mg.capture(lambda x: x * 2 if x.sum() > 0 else -x)
    x = mg.tensor(X)
    warm(captured, x, count=4)
    assert replays(captured) == 2
    with pytest.warns(RuntimeWarning, match="another way") as warned:
        assert all(captured(-x).numpy().tolist() == X.tolist() for _ in range(50))
    assert warned[0].filename == __file__


def test_calls_that_are_never_alike_run_without_capture() -> None:
    step = mg.capture(lambda x, i: mg.tensor(x) * i, max_recordings=2)
    for i in range(5):
        assert step(X, i).numpy().tolist() == (X * i).tolist()
    with pytest.warns(RuntimeWarning, match="2 recordings were dropped for others"):
        step(X, 5)
    for i in range(6, 20):
        assert step(X, i).numpy().tolist() == (X * i).tolist()
    assert len(step.recordings) == 2


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


def test_graphs_from_outside_are_refused() -> None:
    w, frozen = mg.tensor([1.0, 2.0], requires_grad=True), mg.tensor([1.0, 2.0])
    outer = {"h": w * w, "constant": frozen * frozen}

    @mg.capture
    def step(x: Any, name: str) -> None:
        w.zero_grad()
        (w * outer[name] * x).sum().backward(retain_graph=True)

    warm(step, np.ones(2), "constant")
    assert replays(step) == 2
    with pytest.raises(mg.CaptureError, match="computed outside of the step"):
        step(np.ones(2), "h")
    outer["h"].sum().backward(retain_graph=True)  # the graph is what it was
    outer["h"] = outer["h"].detach()
    warm(step, np.ones(2), "h")
    assert w.grad.data.tolist() == [1.0, 4.0]  # type: ignore[union-attr]
