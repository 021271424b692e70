"""mg.capture: containers as arguments, results put into arguments, places that values choose, names that are none."""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import bits, replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")


class Axis(enum.IntEnum):
    ROWS = 0
    COLUMNS = 1


class Pad(enum.StrEnum):
    EDGE = "edge"


def test_places_that_values_choose() -> None:
    captured = mg.capture(lambda x: x.sum() / len(np.where(x > 0)[0]))
    for x in ([1.0, 2.0, -3.0, -4.0],) * 4 + ([1.0, -2.0, -3.0, -4.0], [1.0, 2.0, 3.0, -4.0]):
        assert captured(np.array(x)) == np.sum(x) / np.sum(np.array(x) > 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: x.max(0, w),
        lambda x, w: x.sum(0, None, w),
        lambda x, w: x[0].clip(1, 20, w),
        lambda x, w: x[0].round(0, w),
        lambda x, w: np.add.reduce(x, 0, None, w),
        lambda x, w: np.add.accumulate(x[0], out=w),
    ],
)
def test_results_put_into_an_array_by_position(call: Callable[..., Any]) -> None:
    def values(wrap: Any) -> list[list[bytes]]:
        w, found = np.zeros(3), []

        @wrap
        def step(x: Any) -> Any:
            call(x, w)
            return w * 2

        for i in range(8):
            found.append(bits(step(np.arange(6.0).reshape(2, 3) + max(0, i - 3) * 10.25), w))
        return found

    assert values(mg.capture) == values(lambda step: step)


def test_a_number_that_changes_before_a_branch() -> None:
    def rates(wrap: Any) -> list[float]:
        optimizer = nn.SGD([mg.tensor(np.ones(3), requires_grad=True)], lr=1.0)
        (group,) = optimizer.param_groups

        @wrap
        def step(x: Any) -> Any:
            group["lr"] = group["lr"] * 0.5
            optimizer.step()
            y = x * group["lr"]
            return y + 1 if y.sum() > 0 else y - 1

        found = []
        for sign in (1, 1, 1, 1, -1, 1, -1):
            step(np.full(3, float(sign)))
            found.append(group["lr"])
        return found

    assert rates(mg.capture) == rates(lambda step: step) == [0.5**i for i in range(1, 8)]


def test_members_of_enumerations() -> None:
    captured = mg.capture(lambda x: np.pad(x, 1, mode=Pad.EDGE).sum(axis=Axis.COLUMNS) + x[Axis.ROWS, 0])
    x = np.arange(6.0).reshape(2, 3)
    warm(captured, x)
    np.testing.assert_array_equal(captured(x + 1), np.pad(x + 1, 1, mode="edge").sum(axis=1) + 1)
    with pytest.raises(mg.CaptureError, match=r"float128|longdouble"):
        warm(mg.capture(lambda x: x * np.longdouble(0.1)), x)


@pytest.mark.parametrize("name", ["σ²", "x½", "µ", "ﬁ", "ℌ", "1", "", "a b", "class"])  # noqa: RUF001
def test_names_that_are_none_in_python(name: str) -> None:
    parameters = {name: mg.tensor(np.ones(3), requires_grad=True), "fi": mg.tensor(np.ones(3), requires_grad=True)}

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = sum((p * x).sum() * (i + 1.0) for i, p in enumerate(parameters.values()))
        for p in parameters.values():
            p.zero_grad()
        loss.backward()
        for p in parameters.values():
            p.data -= 0.1 * p.grad.data  # type: ignore[union-attr]
        return loss

    for i in range(5):
        assert step(np.ones(3)).item() == pytest.approx(9 - 1.5 * i)
    assert replays(step) == 3


def test_functions_of_numpy_in_other_places() -> None:
    windows = np.lib.stride_tricks.sliding_window_view
    captured = mg.capture(lambda x: windows(x, 2).sum(axis=1) + np.linalg.norm(x))
    x = np.arange(4.0)
    warm(captured, x)
    np.testing.assert_array_equal(captured(x + 1), windows(x + 1, 2).sum(axis=1) + np.linalg.norm(x + 1))
    root = mg.capture(lambda x: np.emath.sqrt(x))
    warm(root, np.full(2, 4.0))
    np.testing.assert_array_equal(root(np.full(2, -4.0)), [2j, 2j])


def test_what_is_joined_in_another_dtype() -> None:
    captured = mg.capture(lambda x: np.concatenate([x, x], dtype=np.float64) * 2 + np.reshape(x * 2, -1, "F").sum())
    x = np.ones(2, np.float32)
    warm(captured, x)
    assert captured(x * 3).tolist() == [18] * 4
    assert replays(captured) == 3


def test_a_step_that_calls_itself() -> None:
    @mg.capture
    def power(x: Any, n: int) -> Any:
        return x if n == 0 else power(x * 2, n - 1)

    for _ in range(5):
        assert power(np.ones(1), 3).tolist() == [8]


@pytest.mark.parametrize("save", [np.save, np.savetxt])
def test_files_are_refused(save: Any, tmp_path: Any) -> None:
    @mg.capture
    def step(x: Any) -> Any:
        save(tmp_path / "x", x)
        return x * 2

    step(np.ones(2))
    with pytest.raises(mg.CaptureError, match=f"np.{save.__name__} writes a file, which a replay would not do again"):
        step(np.ones(2))


def test_containers_with_attributes_are_refused() -> None:
    class Batch(dict[str, Any]):
        def __init__(self, **parts: Any) -> None:
            super().__init__(parts)
            self.__dict__ = self

    captured = mg.capture(lambda batch: batch.x * 2)
    captured(Batch(x=np.ones(2)))
    with pytest.raises(mg.CaptureError, match="batch is a Batch with arrays in attributes, which are not recorded"):
        captured(Batch(x=np.ones(2)))


def test_more_kinds_of_calls_than_recordings() -> None:
    step = mg.capture(lambda x: mg.tensor(x) * 2, max_recordings=2)
    for i in range(5):
        step(np.ones(1 + i % 3))
    with pytest.warns(RuntimeWarning, match="2 recordings were dropped for others, since 2 are kept"):
        step(np.ones(3))
    for i in range(60):
        n = 1 + i % 3
        assert step(np.ones(n)).shape == (n,)
    assert step._dropped == 2
    assert replays(step) > 30
    for _ in range(6):  # this one stays
        step(np.ones(9))
    assert step.recordings[0].calls == 3


def test_settings_that_change_among_many_kinds_of_calls() -> None:
    net, rng = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Dropout(0.1, rng=0)), np.random.default_rng(0)
    step = mg.capture(lambda x: net(x).sum())
    with pytest.warns(RuntimeWarning, match="or by settings such as model.training"):  # noqa: PT031
        for mode in (True, False) * 4:
            net.train(mode)
            for _ in range(60):
                step(np.ones((1 + int(rng.integers(10)), 3), np.float32))
    assert replays(step) > 100


def test_a_number_read_before_a_branch_is_there_when_a_later_one_fails() -> None:
    w = mg.tensor(np.ones(3), requires_grad=True)
    optimizer = nn.SGD([w], lr=1.0)
    (group,) = optimizer.param_groups

    @mg.capture
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        group["lr"] = group["lr"] * 0.5
        y = x * group["lr"]
        if y.sum() > 1000:
            y = y + 1
        w.data -= 0.1 * y
        return np.divide(1.0, x)

    with np.errstate(all="raise"):
        warm(step, np.ones(3), count=5)
        with pytest.raises(FloatingPointError):
            step(np.array([1.0, 0.0, 2.0]))
    assert group["lr"] == 0.5**6


def test_selections_that_nobody_uses() -> None:
    model = nn.Linear(3, 2, rng=0)
    optimizer = nn.Adam(model.parameters(), lr=0.1)

    @mg.capture
    def step(x: Any) -> Any:
        x[x[:, 0] > 0]
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        np.diff(model.weight.data)
        return loss

    rng = np.random.default_rng(0)
    for _ in range(20):
        step(rng.standard_normal((4, 3), np.float32))
    assert replays(step) >= 17


def test_attributes_of_containers() -> None:
    class Batch(dict[str, Any]):
        scale = 1.0

    step = mg.capture(lambda batch: batch["x"] * batch.scale)
    batch = Batch(x=np.ones(2))
    batch.scale = 2.0
    warm(step, batch)
    assert replays(step) == 2
    batch.scale = 3.0
    assert step(batch).tolist() == [3, 3]


@pytest.mark.parametrize("call", [lambda h: h.clip(1, 3, h), lambda h: h.round(0, h)])
def test_a_result_put_into_the_array_itself(call: Callable[..., Any]) -> None:
    def step(x: Any) -> Any:
        h = x * 2.25
        call(h)
        return h + 1

    captured = mg.capture(step)
    for x in (np.arange(3.0), np.arange(3.0) + 0.25) * 3:
        assert bits(captured(x)) == bits(step(x))


def test_modules_are_looked_at_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("a_module_of_settings")
    module.scale, module.history = 2.0, []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    step = mg.capture(lambda x: x * getattr(module, "scale"))  # noqa: B009
    for _ in range(14):
        assert step(np.ones(1)) == 2
        module.history.append(1)
    module.scale = 3.0  # type: ignore[attr-defined]
    assert step(np.ones(1)) == 3
    assert replays(step) == 12
