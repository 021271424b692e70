"""mg.capture: random generators as arguments, that are one or several, branches and errors after numbers were drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import bits, replays, training_step, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.ones(3)


def seeds(*numbers: int) -> list[np.random.Generator]:
    return [np.random.default_rng(n) for n in numbers]


def alike(first: list[np.random.Generator], second: list[np.random.Generator]) -> bool:
    return [x.bit_generator.state for x in first] == [x.bit_generator.state for x in second]


def two(x: Any, first: np.random.Generator, second: np.random.Generator) -> Any:
    return x * first.random(3) + 10 * second.random(3)


def test_two_generators_that_were_one() -> None:
    captured = mg.capture(two)
    warm(captured, X, *seeds(0) * 2)
    for numbers in ((1, 2), (3, 4), (5, 6), (7, 8)):
        ours, expected = seeds(*numbers), seeds(*numbers)
        np.testing.assert_array_equal(captured(X, *ours), two(X, *expected))
        assert alike(ours, expected)
    one, expected = seeds(9), seeds(9)
    np.testing.assert_array_equal(captured(X, *one * 2), two(X, *expected * 2))
    assert len(captured.recordings) == 2
    assert all(recording.calls > 1 for recording in captured.recordings)


def test_a_generator_that_is_that_of_a_layer() -> None:
    rngs = seeds(0, 0)
    ours, plain = (nn.Dropout(0.5, rng) for rng in rngs)
    captured = mg.capture(lambda x, rng: ours(mg.tensor(x)) * rng.random(3))
    warm(captured, X, rngs[0])
    warm(lambda x, rng: plain(mg.tensor(x)) * rng.random(3), X, rngs[1])
    for i in range(4):
        (first,), (second,) = seeds(i), seeds(i)
        expected = plain(mg.tensor(X)) * second.random(3)
        np.testing.assert_array_equal(captured(X, first).data, expected.data)
        assert alike([first, ours.rng], [second, plain.rng])


def test_a_new_generator_in_each_call() -> None:
    captured = mg.capture(two)
    for i in range(8):
        ours, expected = seeds(i, i + 100), seeds(i, i + 100)
        np.testing.assert_array_equal(captured(X, *ours), two(X, *expected))
        assert alike(ours, expected)
    assert replays(captured) == 6


def test_a_generator_is_put_back_where_a_branch_goes_another_way() -> None:
    def step(x: Any, rng: np.random.Generator) -> mg.Tensor:
        total = mg.tensor(x * rng.random(3)).sum()
        return total * 2 if total > 10 else total

    captured = mg.capture(step)
    warm(captured, X, *seeds(0))
    for i in range(3):
        ours, expected = seeds(i), seeds(i)
        assert captured(X * 100, *ours).item() == step(X * 100, *expected).item()
        assert alike(ours, expected)


def test_an_error_after_random_numbers_were_drawn() -> None:
    def outcome(decorate: Callable[..., Any]) -> list[Any]:
        model = nn.Sequential(nn.Linear(6, 8, rng=0), nn.Dropout(0.3, 5), nn.Linear(8, 3, rng=1))
        dropout: Any = list(model.modules())[2]
        step = decorate(training_step(model, nn.SGD(model.parameters(), 0.1)))
        rows, labels = np.ones((4, 6), np.float32), np.array([0, 1, 2, 1])
        found = []
        for i in range(9):
            wrong = i in (5, 7)
            try:
                step(rows, np.array([0, 1, 9, 1]) if wrong else labels)
                assert not wrong
            except IndexError:
                assert wrong
            found.append((bits(*[p.data for p in model.parameters()]), dropout.rng.bit_generator.state))
        return found

    assert outcome(mg.capture) == outcome(lambda step: step)
