"""mg.capture: methods, their copies and pickles; steps in threads, and within each other."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import batches, bits, mlp, replays, training_step, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


class Doubling:
    def __init__(self) -> None:
        self.weight = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step(self, x: Any) -> mg.Tensor:
        return (self.weight * x).sum()

    @classmethod
    @mg.capture
    def of_class(cls, x: Any) -> mg.Tensor:
        return mg.tensor(x) * cls.__name__.count("D")


class Quadrupling(Doubling):
    @mg.capture
    def step(self, x: Any) -> mg.Tensor:
        return super().step(x) * 2


@mg.capture
def step_of_the_module(x: Any) -> mg.Tensor:
    return mg.tensor(x) * 2


def test_methods_that_were_given_to_a_class() -> None:
    class Given:
        def double(self, x: Any) -> Any:
            return mg.tensor(x) * 2

        def triple(self, x: Any) -> Any:
            return mg.tensor(x) * 3

    kind: Any = Given
    kind.double, kind.triple = mg.capture(kind.double), mg.capture(kind.triple)
    given = kind()
    for o in (given, copy.deepcopy(given)):
        for _ in range(4):
            np.testing.assert_array_equal(o.double(X).data, 2 * X)
            np.testing.assert_array_equal(o.triple(X).data, 3 * X)


def test_a_method_that_calls_that_of_its_base() -> None:
    derived = Quadrupling()
    assert [derived.step(X).item() for _ in range(5)] == [12.0] * 5
    assert replays(derived.step) == 3


def test_a_method_of_a_class() -> None:
    for _ in range(5):
        np.testing.assert_array_equal(Doubling.of_class(X).data, X)
        np.testing.assert_array_equal(Quadrupling.of_class(X).data, 0 * X)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_have_captured_steps_of_their_own(copied: Any) -> None:
    ours = Doubling()
    warm(ours.step, X)
    other = copied(ours)
    other.weight = mg.tensor(np.full(3, 2.0), requires_grad=True)
    for _ in range(4):
        assert (ours.step(X).item(), other.step(X).item()) == (6.0, 12.0)
    assert other.step is not ours.step
    assert pickle.loads(pickle.dumps(ours.step))(X).item() == 6.0


def test_a_decorated_function_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(step_of_the_module)) is step_of_the_module
    wrapped = pickle.loads(pickle.dumps(mg.capture(np.cumsum, max_recordings=2)))
    assert wrapped.max_recordings == 2


def test_a_shallow_copy_has_a_captured_step_of_its_own() -> None:
    class Model:
        factor = 2.0

        @mg.capture
        def step(self, x: Any) -> mg.Tensor:
            return mg.tensor(x) * self.factor

    model = Model()
    warm(model.step, X)
    other = copy.copy(model)
    other.factor = 3.0
    assert other.step(X).numpy().tolist() == (3 * X).tolist()
    assert model.step(X).numpy().tolist() == (2 * X).tolist()


def test_methods_are_captured_for_each_object() -> None:
    class Trainer:
        def __init__(self, seed: int) -> None:
            self.model = mlp(seed)
            self.optimizer = nn.Adam(self.model.parameters())

        @mg.capture
        def step(self, X: Any, y: Any) -> mg.Tensor:
            self.optimizer.zero_grad()
            loss = nn.cross_entropy(self.model(X), y)
            loss.backward()
            self.optimizer.step()
            return loss

    trainers = [Trainer(0), Trainer(1)]
    plain = [mlp(0), mlp(1)]
    steps = [training_step(model, nn.Adam(model.parameters())) for model in plain]
    for X, y in batches(6):
        for trainer, step in zip(trainers, steps, strict=True):
            assert bits(trainer.step(X, y)) == bits(step(X, y))
    assert all(replays(trainer.step) == 4 for trainer in trainers)


def test_threads_take_turns() -> None:
    weight = mg.tensor(np.ones((50, 50)), requires_grad=True)
    step = mg.capture(lambda x: mg.tanh(weight * x).sum())
    expected = {n: step(np.full((50, 50), n / 10)).item() for n in range(8)}
    found: dict[int, set[float]] = {n: set() for n in range(8)}

    def work(n: int) -> None:
        for _ in range(50):
            found[n].add(step(np.full((50, 50), n / 10)).item())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: {value} for n, value in expected.items()}


def test_a_captured_step_within_another() -> None:
    weight = mg.tensor(np.ones(2), requires_grad=True)
    inner = mg.capture(lambda x: weight * x)
    outer = mg.capture(lambda x: inner(x).sum() + 1)
    assert [outer(np.full(2, i)).item() for i in range(4)] == [1.0, 3.0, 5.0, 7.0]
    assert replays(outer) == 2


def test_the_result_of_a_captured_step_within_another_is_a_constant() -> None:
    def weights_after(wrapped: Callable[..., Any]) -> list[float]:
        weight = mg.tensor(np.ones(2), requires_grad=True)
        optimizer = nn.SGD([weight], lr=0.1)
        inner = mg.capture(lambda x: weight * x)

        def step(x: Any) -> mg.Tensor:
            optimizer.zero_grad()
            loss = (inner(x) * weight).sum()
            loss.backward()
            optimizer.step()
            return loss

        step = wrapped(step)
        for _ in range(5):
            step(np.array([1.0, 2.0]))
        return weight.data.tolist()

    assert weights_after(mg.capture) == weights_after(lambda step: step)


class Once:
    def __init__(self) -> None:
        self.weight = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step(self, x: Any) -> Any:
        return self.weight * x


class Twice(Once):
    @mg.capture
    def step(self, x: Any) -> Any:
        return super().step(x) + 1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_an_object_whose_captured_method_overrides_another(copied: Any) -> None:
    ours = Twice()
    warm(ours.step, X)
    other = copied(ours)
    for _ in range(4):
        np.testing.assert_array_equal(other.step(X).data, X + 1)


def test_equal_objects_have_captured_steps_of_their_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Model:
        name: str
        factor: float = dataclasses.field(compare=False)

        @mg.capture
        def step(self, x: Any) -> mg.Tensor:
            return mg.tensor(x) * self.factor

    models = [Model("m", 2.0), Model("m", 5.0)]
    for _ in range(4):
        assert [model.step(X).numpy().tolist() for model in models] == [(2 * X).tolist(), (5 * X).tolist()]

    class Slots:
        __slots__ = ()

        @mg.capture
        def step(self, x: Any) -> Any:
            return x

    with pytest.raises(TypeError, match="no attributes"):
        Slots().step(X)
