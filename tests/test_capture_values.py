"""mg.capture: arguments and results of many kinds and dtypes; branches that depend on values."""

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


@pytest.mark.parametrize(
    "use", [lambda v: math.copysign(1, v), lambda v: len(f"{v}"), lambda v: len(repr(v)), lambda v: math.atan2(v, -1.0)]
)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_of_both_signs_that_are_asked_for(use: Any, zero: float) -> None:
    step = mg.capture(lambda x, v: x * use(v))
    for v in (zero, zero, zero, -zero, zero, 1.0):
        assert bits(step(X, v)) == bits(X * use(v)), v
    assert replays(step) == 2


def test_arrays_in_several_places_that_become_one() -> None:
    held = {"a": np.ones(3), "b": np.ones(3)}
    step = mg.capture(lambda x: x * (2 if held["a"] is held["b"] else 3))
    warm(step, X)
    held["b"] = held["a"]
    assert [step(X).tolist() for _ in range(4)] == [(X * 2).tolist()] * 4
    held["b"] = np.ones(3)
    assert [step(X).tolist() for _ in range(4)] == [(X * 3).tolist()] * 4


def test_containers_with_ways_of_their_own() -> None:
    class Of(list[Any]):
        def __init__(self, *parts: Any) -> None:
            super().__init__(parts)

    step = mg.capture(
        lambda x, c: (x * c["a"], collections.Counter(n=len(x)), Of(x, x * 2), np.split(x, 3)[::-1] + [x])
    )
    for _ in range(5):
        product, count, parts, pieces = step(X, collections.Counter("aab"))
        assert product.tolist() == (X * 2).tolist()
        assert (count, type(count)) == ({"n": 3}, collections.Counter)
        assert ([x.tolist() for x in parts], type(parts)) == ([X.tolist(), (X * 2).tolist()], Of)
        assert [x.tolist() for x in pieces] == [[3.0], [2.0], [1.0], [1.0, 2.0, 3.0]]
    factories: Any = mg.capture(lambda x, d: x * len(str(d)))
    for factory in (int, int, int, list, int):
        d = collections.defaultdict(factory, a=1)
        assert factories(X, d).tolist() == (X * len(str(d))).tolist()


def test_containers_that_are_not_to_be_made_anew() -> None:
    class Closed(list[Any]):
        def append(self, x: Any) -> None:
            raise AssertionError

        extend = append  # type: ignore[assignment]

    step = mg.capture(lambda x, d: (Closed([x * 2]), x))
    for _ in range(6):
        found, _ = step(X, collections.defaultdict(lambda: 0, a=1))
        assert [x.tolist() for x in found] == [(X * 2).tolist()]
    assert replays(step) == 4


def test_whether_a_value_is_among_others() -> None:
    step = mg.capture(lambda x: x * 2 if 0.0 in x else x)
    for x in (np.eye(2), np.ones((2, 2)), np.eye(2), np.eye(2), np.ones((2, 2))):
        assert step(x).tolist() == (x * 2 if 0.0 in x else x).tolist()


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


@pytest.mark.parametrize("looked_at", [False, True])
def test_gradients_of_0d_parameters_that_add_up_are_replayed(looked_at: bool) -> None:
    def train(wrap: Any) -> tuple[list[Any], Any]:
        scale = mg.tensor(np.float32(2), requires_grad=True)

        @wrap
        def step(x: Any) -> mg.Tensor:
            loss = (x * scale).mean()
            loss.backward()
            return loss

        found = []
        for i in range(16):
            found.append(step(np.full((3, 2), i, np.float32)).item())
            if looked_at:
                found.append(scale.grad.item())  # type: ignore[union-attr]
        return [*found, bits(scale.grad)], step

    found, step = train(mg.capture)
    assert found == train(lambda step: step)[0]
    assert replays(step) >= 12
