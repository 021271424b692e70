"""mg.capture: arguments and results of many kinds and dtypes; shapes and branches that depend on values."""

from __future__ import annotations

import collections
import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import microgradnd as mg
from tests.training_steps import bits, replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


def test_an_argument_that_is_a_parameter_once_is_none_later() -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)
    step = mg.capture(lambda x: (weight * x).sum())
    warm(step, weight.data)
    assert step(X * 10).item() == 60.0


def test_generators_among_the_arguments() -> None:
    step = mg.capture(lambda x, rng: mg.dropout(x, 0.5, rng=rng) + rng.normal(size=3))
    rngs = [np.random.default_rng(0) for _ in range(2)]
    for i in range(6):
        expected = mg.dropout(X, 0.5, rng=rngs[0]) + rngs[0].normal(size=3)
        assert step(X, rngs[1]).numpy().tobytes() == expected.numpy().tobytes(), i
    other = np.random.default_rng(7)
    assert step(X, other).numpy().tobytes() != step(X, rngs[1]).numpy().tobytes()
    assert replays(step) >= 5


def test_results_and_arguments_of_many_kinds() -> None:
    class Pair(NamedTuple):
        first: Any
        second: Any

    step = mg.capture(lambda pair: Pair(mg.tensor(pair.first) * 2, collections.OrderedDict(sum=pair.second.sum(), k=3)))
    for i in range(5):
        result = step(Pair(X + i, X))
        assert type(result) is Pair
        assert result.first.numpy().tolist() == (2 * (X + i)).tolist()
        assert type(result.second) is collections.OrderedDict
        assert result.second["sum"] == 6.0
        assert result.second["k"] == 3
    assert replays(step) == 3


def test_shapes_that_depend_on_values() -> None:
    def plain(x: Any) -> Any:
        chosen = x[x > 0]
        return chosen * 2, chosen.sum() / chosen.size, np.flatnonzero(x > 1), np.unique(x)

    step = mg.capture(plain)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.integers(-3, 4, 4).astype(float)
        x[0] = 1.0
        for found, expected in zip(step(x), plain(x), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "count",
    [
        lambda x: np.size(np.flatnonzero(x > 1)),
        lambda x: np.shape(x[x > 1])[0],
        lambda x: (x[x > 1] * 2).size,
        lambda x: len(mg.exp(mg.tensor(x)[x > 1]) + 1),
        lambda x: sum(1 for _ in x[x > 1] - 1),
        lambda x: np.concatenate([x[x > 1], x]).nbytes,
        lambda x: np.outer(x[x > 1], x).sum(axis=1).shape[0],
        lambda x: np.ones_like(x[x > 1]).sum(),
        lambda x: mg.zeros_like(mg.tensor(x[x > 1])).size,
        lambda x: np.full_like(x[x > 1], 2.0).shape[0],
        lambda x: np.squeeze(x[x > 1]).ndim,
        lambda x: np.ndim(x[x > 1].squeeze()),
        lambda x: np.outer(x[x > 1], x).strides[1] + np.outer(x, x[x > 1]).strides[0],
        lambda x: 1 if np.outer(x[x > 1], x).T.flags.c_contiguous else 2,
    ],
)
def test_shapes_that_depend_on_values_and_are_asked_for_alone(count: Any) -> None:
    """Where the values themselves are not used: of what is selected, of what is computed from it, in every way."""
    step = mg.capture(lambda x: x * count(x))
    for numbers in ((1, 2, 3), (0, 2, 4), (1, 5, 6), (1, 7, 8), (1, 1, 3), (2, 3, 4), (0, 0, 2), (0, 9, 9)):
        x = np.array(numbers, float)
        assert bits(step(x)) == bits(x * count(x)), numbers
    assert replays(step) >= 2


@pytest.mark.parametrize("use", [lambda v: math.copysign(1, v), lambda v: len(f"{v}"), lambda v: math.atan2(v, -1.0)])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_of_both_signs_that_are_asked_for(use: Any, zero: float) -> None:
    step = mg.capture(lambda x, v: x * use(v))
    for v in (zero, zero, zero, -zero, zero, 1.0):
        assert bits(step(X, v)) == bits(X * use(v)), v
    assert replays(step) == 2


def test_conditions_joined_by_and() -> None:
    step = mg.capture(lambda x: mg.tensor(x) * ((x.sum() > 0) & np.logical_and(x.max() < 5, x.min() > -5)))
    warm(step, X)
    assert step(X + 10).numpy().tolist() == [0.0, 0.0, 0.0]
    assert step(X - 10).numpy().tolist() == [0.0, 0.0, 0.0]
    assert replays(step) >= 3


def test_a_value_asked_for_again_after_a_change() -> None:
    def plain(x: Any) -> Any:
        x = x * 1.0
        total = x[:1]
        first = 1.0 if total > 0 else 2.0
        total -= 5.0
        return x.sum() * first * (3.0 if total > 0 else 4.0)

    step = mg.capture(plain)
    for start in (1.0, 1.0, 1.0, 1.0, 9.0, -1.0, 1.0, 9.0):
        assert step(np.array([start, 1.0])) == plain(np.array([start, 1.0]))


def test_accumulated_gradients_and_a_branch() -> None:
    weights = [mg.tensor(np.ones(3), requires_grad=True) for _ in range(2)]

    def accumulate(weight: mg.Tensor, x: Any) -> mg.Tensor:
        loss = (weight * x).sum()
        loss.backward()
        return loss * 2 if loss > 10 else loss

    step = mg.capture(lambda x: accumulate(weights[0], x))
    for factor in (1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 5.0, 1.0):
        assert step(X * factor).item() == accumulate(weights[1], X * factor).item()
        assert weights[0].grad.numpy().tolist() == weights[1].grad.numpy().tolist()  # type: ignore[union-attr]


def test_functions_that_change_their_argument() -> None:
    def plain(x: Any) -> Any:
        np.nan_to_num(x, copy=False)
        a = np.zeros((3, 3), like=x)
        a += np.eye(3)
        a @= np.eye(3) * x[0]
        return mg.tensor(x).sum() + a.sum()

    step = mg.capture(plain)
    for x in (X, X, X, X, np.array([np.nan, 1.0, 2.0]), X):
        assert step(x.copy()).item() == plain(x.copy()).item()
    assert replays(step) >= 3


def test_dtypes_in_which_numpy_computes_otherwise() -> None:
    def plain(x: Any, y: Any) -> Any:
        return x**2.0, x**0.5, y.mean(axis=0), y.sum(axis=1), y.T.reshape(-1, order="F"), y.flatten("F")

    step = mg.capture(plain)
    for _ in range(4):
        arguments = np.array([200, 3], np.uint8), np.full((30, 4), 4000.0, np.float16)
        for found, expected in zip(step(*arguments), plain(*arguments), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
    assert replays(step) == 2


def test_what_is_asked_of_arrays_and_numbers() -> None:
    def plain(x: Any, rate: float) -> Any:
        right = isinstance(x, np.ndarray) and isinstance(rate, float)
        return (x * rate, f"{rate:.2f}", right)

    step = mg.capture(plain)
    for rate in (0.5, 0.5, 0.5, 0.5, 0.25, 0.125):
        assert step(X, rate)[0].tolist() == (X * rate).tolist()
        assert step(X, rate)[1:] == (f"{rate:.2f}", True)


def test_constant_results_are_new_in_every_call() -> None:
    step = mg.capture(lambda x: (mg.tensor([0.0, 1.0]), np.arange(3), mg.tensor(x)))
    for _ in range(5):
        constants, numbers, _ = step(X)
        assert (constants.numpy().tolist(), numbers.tolist()) == ([0.0, 1.0], [0, 1, 2])
        constants.data += 5
        numbers += 5
