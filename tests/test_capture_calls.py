"""mg.capture: calls by keyword, with other dtypes and numbers than before, and interrupted ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import replays

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
