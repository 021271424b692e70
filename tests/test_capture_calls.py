"""mg.capture: calls by keyword, with other dtypes and numbers than before, and interrupted ones."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import bits, replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


def test_keywords_are_told_apart() -> None:
    def step(x: Any, scale: Any = None, shift: Any = None) -> mg.Tensor:
        y = mg.tensor(x).sum()
        y = y if scale is None else y * scale
        return y if shift is None else y + shift

    captured = mg.capture(step)
    for _ in range(4):
        captured(np.ones(3), scale=None)
    assert captured(np.ones(3), shift=5.0).item() == 8.0
    assert captured(np.ones(3), scale=5.0).item() == 15.0
    with pytest.raises(TypeError, match="sclae"):
        captured(np.ones(3), sclae=None)  # type: ignore[call-arg]
    assert captured(np.ones(3), scale=None).item() == 3.0


@pytest.mark.parametrize("replacement", [np.zeros(3), np.zeros(3, int), np.zeros((2, 3), np.float32)], ids=str)
def test_an_array_that_the_step_replaces_has_another_dtype(replacement: Any) -> None:
    class Averages:
        latest = np.zeros(3, np.float32)

    ours, plain = Averages(), Averages()
    x = np.full(3, 0.5, np.float32)

    def step(o: Averages, x: Any) -> Any:
        o.latest = o.latest * 0.9 + x
        return o.latest * 2

    captured = mg.capture(lambda x: step(ours, x))
    for _ in range(4):
        np.testing.assert_array_equal(captured(x), step(plain, x))
    ours.latest = plain.latest = replacement
    for _ in range(3):
        found, expected = captured(x), step(plain, x)
        assert found.dtype == expected.dtype
        assert ours.latest.dtype == plain.latest.dtype
        np.testing.assert_array_equal(found, expected)


def test_the_order_of_any_keywords_counts() -> None:
    def step(x: Any, **terms: float) -> Any:
        for name, value in terms.items():
            x = x * value if name == "scale" else x + value
        return x

    captured = mg.capture(step)
    orders = [{"shift": 1.0, "scale": 3.0}, {"scale": 3.0, "shift": 1.0}]
    for i in range(16):
        terms = orders[i // 2 % 2 if i < 8 else i % 2]
        np.testing.assert_array_equal(captured(X + i, **terms), step(X + i, **terms))
    assert replays(captured) >= 8

    @functools.wraps(lambda x, scale, shift: x)
    def wrapper(x: Any, **terms: float) -> Any:
        return step(x, **terms)

    captured = mg.capture(wrapper)
    for i in range(12):
        np.testing.assert_array_equal(captured(X + i, **orders[i % 2]), step(X + i, **orders[i % 2]))
    named = mg.capture(lambda x, scale, shift: x * scale + shift)
    for i in range(12):
        np.testing.assert_array_equal(named(X, **orders[i % 2]), X * 3 + 1)
    assert len(named.recordings) == 1


@pytest.mark.parametrize(
    "step",
    [
        lambda x, v: mg.tensor(v).sum() * x,
        lambda x, v: x * np.array(v).sum(),
        lambda x, v: x * np.float32(v[0]),
        lambda x, v: mg.tensor(x) * np.asarray(v)[0],
        lambda x, v: x + np.full(3, v[1]),
        lambda x, v: np.stack([x, x]).T @ np.array([v, v])[0],
    ],
)
def test_arrays_made_of_lists_of_numbers(step: Callable[..., Any]) -> None:
    captured = mg.capture(step)
    for i in range(9):
        found, expected = captured(X, [1.0 + i // 3, 2.0]), step(X, [1.0 + i // 3, 2.0])
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_wrong_class_indices_after_the_first_of_two_updates() -> None:
    """The error is the step's own, and what it did before is done, step counts included."""
    model = nn.Linear(3, 4, rng=0)
    optimizer = nn.Adam(model.parameters(), 0.1)
    x, y, wrong = np.ones((5, 3), np.float32), np.arange(5) % 4, np.array([0, 1, 7, 2, 3])

    @mg.capture
    def step(x: Any, *labels: Any) -> mg.Tensor:
        for y in labels:
            loss = nn.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss

    for i in range(6):
        if i in (1, 2, 4):  # recorded, compared, replayed
            before = model.weight.numpy().copy()
            with pytest.raises(IndexError, match="cross_entropy: class indices must lie in 0 to 3, got 0 to 7"):
                step(x, y, wrong)
            assert not np.array_equal(before, model.weight.numpy())
        step(x, y, y)
    assert [state["step"] for state in optimizer.state_dict()["state"]] == [6 * 2 + 3] * 2


@pytest.mark.parametrize("fill", ["a copy", "zeros", "a view"])
def test_integers_that_the_step_changes_after_an_update_are_read_afterwards(fill: str) -> None:
    """Checks of class indices come first, but not before what they are of is there."""
    model = nn.Linear(3, 4, rng=0)
    optimizer = nn.SGD(model.parameters(), 0.1)

    def step(x: Any, y: Any) -> Any:
        loss = (model(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if fill == "zeros":
            z = np.zeros_like(y)
            z[:-1] = y[1:]
        else:
            z = y.copy()
            z[0] = z[1]
            z = z[::2] if fill == "a view" else z
        return nn.cross_entropy(model(x[: len(z)]), z % 4), z + 1

    captured = mg.capture(step)
    for i in range(9):
        y = np.arange(6) + i
        if i < 5:  # the calls with which it is compared
            y[0] = y[1]
        weights = model.state_dict()
        expected = step(np.ones((6, 3), np.float32), y)
        model.load_state_dict(weights)
        found = captured(np.ones((6, 3), np.float32), y)
        assert bits(*found) == bits(*expected)
    assert replays(captured) >= 3


def test_the_state_of_an_optimiser_is_loaded_after_every_call() -> None:
    """As in Reptile and in restarts: no recording is lost by it."""
    model = nn.Linear(3, 1, rng=0)
    optimizer = nn.Adam(model.parameters(), 0.1)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = (model(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    step(X.astype(np.float32))
    weights, state = model.state_dict(), optimizer.state_dict()
    losses = set()
    for _ in range(24):
        losses.add(step(X.astype(np.float32)).item())
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    assert len(losses) == 1
    assert replays(step) >= 18


def test_a_learning_rate_becomes_one_of_numpy() -> None:
    def weights_after(wrapped: Callable[..., Any]) -> bytes:
        weight = mg.tensor(np.linspace(0.1, 1, 7, dtype=np.float32), requires_grad=True)
        optimizer = nn.Adam([weight], lr=1)

        def step(x: Any) -> None:
            optimizer.zero_grad()
            (weight * weight * x).sum().backward()
            optimizer.step()

        optimizer.param_groups[0]["lr"] = 1
        step = wrapped(step)
        for rate in (1, 1, 1, 1, 0.1, np.float64(0.1), np.float32(0.1), 1):
            optimizer.param_groups[0]["lr"] = rate
            step(np.full(7, 0.3, np.float32))
        return weight.data.tobytes()

    assert weights_after(mg.capture) == weights_after(lambda step: step)


def interrupted(call: Callable[[], Any], at: str) -> None:
    """Ctrl-C as soon as a function of that name is called."""

    def trace(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code.co_name == at:
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("at", ["record_of", "attempt_function", "next_change", "differences"])
def test_an_interrupt_leaves_a_captured_step_usable(at: str) -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)
    optimizer = nn.SGD([weight], lr=0.1)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        optimizer.zero_grad()
        loss = (weight * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    step(np.ones(3)), step(np.ones(3))
    interrupted(lambda: step(np.ones(3)), at)
    before = weight.data.copy()
    for i in range(4):
        np.testing.assert_allclose(weight.data, before - 0.1 * i, rtol=1e-12)
        step(np.ones(3))
    assert replays(step) > 1


@pytest.mark.parametrize("at", ["next_change", "record_of"])
def test_an_interrupt_leaves_an_optimiser_usable(at: str) -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)
    optimizer = nn.SGD([weight], lr=0.1)
    weight.sum().backward()
    interrupted(optimizer.step, at)
    np.testing.assert_array_equal(weight.data, 1)
    optimizer.step()
    np.testing.assert_array_equal(weight.data, 1 - 0.1)


def test_keywords_in_another_order_and_defaults() -> None:
    step = mg.capture(lambda x, y=1.0, *, z: mg.tensor(x) - y * z)
    for _ in range(3):
        warm(lambda: step(x=X, y=0.5, z=2.0))
        assert step(z=np.ones(3), x=X).numpy().tolist() == (X - 1).tolist()
        assert step(z=np.ones(3) * 2, y=X, x=X).numpy().tolist() == (-X).tolist()
        assert step(y=X, x=X, z=np.ones(3) * 2).numpy().tolist() == (-X).tolist()
