"""mg.capture: what can't be repeated is refused (random draws, effects on the world outside); NumPy's errors."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import queue
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.training_steps import replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


def refusal(step: Callable[[Any], Any], calls: int = 12) -> str:
    captured = mg.capture(step)
    with pytest.raises(mg.CaptureError) as caught:
        warm(captured, X, count=calls)
    return str(caught.value)


@pytest.mark.parametrize(
    "draw",
    [
        random.Random(0).random,
        np.random.RandomState(0).random_sample,
        np.random.default_rng(0).random,
        functools.partial(lambda pair: pair[0].random(), (np.random.default_rng(0), 1)),
    ],
)
def test_random_generators_that_get_no_handle(draw: Callable[[], float]) -> None:
    assert "draws from a random generator" in refusal(lambda x: mg.tensor(x) if draw() < 2 else -x)


def test_a_draw_of_numpys_own_generator_that_was_kept_from_the_last_one() -> None:
    """It draws normal numbers in pairs: every second one moves nothing but what is kept."""
    np.random.seed(0)  # noqa: NPY002
    for before in range(2):
        np.random.normal(size=before)  # noqa: NPY002
        assert "draws from a random generator" in refusal(lambda x: (np.random.normal(), x)[1])  # noqa: NPY002


def counting() -> Any:
    n = 1.0
    while True:
        yield n
        n += 1


def test_iterators_that_a_step_goes_on_with() -> None:
    generator = counting()
    next(generator)
    assert "a generator that was there before, counting" in refusal(lambda x: mg.tensor(x) * generator.send(None))
    numbers = iter([1.0] * 20)
    assert "numbers changes" in refusal(lambda x: mg.tensor(x) * numbers.__next__())
    inner = mg.capture(lambda x: mg.tensor(x) * sum(itertools.islice(counting(), 3)))  # one that the step makes
    warm(inner, X)
    assert replays(inner) == 2


def test_effects_on_the_world_outside() -> None:
    results: Any = queue.SimpleQueue()
    assert "SimpleQueue.put" in refusal(lambda x: results.put(mg.tensor(x).sum()))
    file, logger = io.StringIO(), logging.getLogger("microgradnd.tests")
    assert "StringIO.write" in refusal(lambda x: file.write("called"))
    assert "logging.warning" in refusal(lambda x: logger.warning("called"))
    quiet = mg.capture(lambda x: logger.debug("called") or mg.tensor(x) * 2)  # of a level that is off
    warm(quiet, X)
    assert replays(quiet) == 2


def test_numpy_errors_that_the_step_ignores() -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step(x: Any) -> Any:
        with np.errstate(divide="ignore"):
            return mg.log(mg.tensor(x - 1.0) * weight)

    with np.errstate(all="raise"):
        for _ in range(5):
            assert step(X).numpy()[0] == -np.inf
    assert replays(step) == 3

    def raising(x: Any) -> Any:
        with np.errstate(divide="raise"):
            return mg.tensor(x) / 2

    assert "np.errstate within the step" in refusal(raising)
