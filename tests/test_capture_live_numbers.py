"""mg.capture: numbers that replays read anew, such as learning rates, in other kinds of numbers too."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import replays

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


class Factor:
    """A number that replays read anew, in a dict that anything may be written into."""

    def __init__(self) -> None:
        self.live = {"factor": 0.1}

    def live_numbers(self) -> Iterator[tuple[dict[str, Any], str]]:
        yield self.live, "factor"


@pytest.mark.parametrize("value", [np.array([0.1]), None, enum.IntEnum("Rate", "LOW").LOW, np.longdouble(0.1)])
def test_a_live_number_that_is_no_number_any_more_is_refused(value: Any) -> None:
    w = mg.tensor(np.ones(3), requires_grad=True)
    factor = Factor()

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = (w * x).sum() * factor.live["factor"]
        loss.backward()
        factor.live["factor"] = value
        return loss

    with pytest.raises(mg.CaptureError, match="factor was a number, and is a"):  # noqa: PT012
        for _ in range(4):
            w.grad = None
            step(X)
            factor.live["factor"] = 0.1


@pytest.mark.parametrize("value", [np.float64(0.1), np.float16(0.1)])
def test_a_live_number_of_numpy_that_the_step_itself_reads(value: Any) -> None:
    """It computes in its own dtype, and a number of Python's does not."""
    w = mg.tensor(np.ones(3, np.float32), requires_grad=True)
    factor = Factor()

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        return (w * x).sum() * factor.live["factor"]

    for _ in range(4):
        step(X)
    factor.live["factor"] = value
    with pytest.raises(mg.CaptureError, match=r"factor is a float\d\d of NumPy, and the step itself names factor"):
        step(X)


@pytest.mark.parametrize("value", ["0.1", None])
def test_a_step_that_assigns_what_is_no_learning_rate(value: Any) -> None:
    w = mg.tensor(np.ones(3), requires_grad=True)
    optimizer = nn.SGD([w], 0.1)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = (w * x).sum()
        optimizer.param_groups[0]["lr"] = value
        return loss

    for _ in range(4):
        with pytest.raises(TypeError, match="SGD: lr must be a number, got"):
            step(X)
        assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("make", [nn.SGD, nn.Adam])
@pytest.mark.parametrize("rate", [np.float64(0.1), np.float16(0.1), np.longdouble(0.1), 1])
def test_a_learning_rate_of_another_kind_that_the_step_itself_reads(rate: Any, make: Any) -> None:
    """The optimiser makes a number of Python's of it, as it does without capture."""

    def train(capture: Any) -> list[Any]:
        w = mg.tensor(np.ones(3, np.float32), requires_grad=True)
        optimizer = make([w], 0.5)
        group = settings = optimizer.param_groups[0]  # found before the optimiser, or after it

        @capture
        def step(x: Any) -> Any:
            loss = (w * x).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            group["lr"] = settings["lr"] * 0.5 if isinstance(group["lr"], float | np.floating) else group["lr"]
            return loss, group["lr"]

        found = []
        for i in range(14):
            if i == 6:
                group["lr"] = rate
            loss, lr = step(X.astype(np.float32))
            found += [loss.item(), lr, type(lr), group["lr"], w.numpy().tolist()]
        return found

    assert train(mg.capture) == train(lambda step: step)


def test_a_whole_number_that_the_step_leaves_as_the_learning_rate() -> None:
    w = mg.tensor(np.ones(3), requires_grad=True)
    optimizer = nn.SGD([w], 0.1)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = (w * x).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0
        return loss

    for i in range(12):
        optimizer.param_groups[0]["lr"] = 0.1
        assert step(X).item() == pytest.approx(6 - 1.4 * i)
        assert optimizer.param_groups[0]["lr"] == 0
    assert replays(step) >= 8


def test_a_learning_rate_of_numpy_that_the_optimiser_alone_reads() -> None:
    def train(capture: Any) -> list[Any]:
        w = mg.tensor(np.ones(3, np.float32), requires_grad=True)
        optimizer = nn.Adam([w], 0.5)

        @capture
        def step(x: Any) -> mg.Tensor:
            loss = (w * x).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        found = []
        for i in range(14):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 + np.cos(i)) if i > 4 else 0.1
            found.append(step(X.astype(np.float32)).item())
        return found

    assert train(mg.capture) == train(lambda step: step)
