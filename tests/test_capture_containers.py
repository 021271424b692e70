"""mg.capture: what is behind views of dicts, weak containers, iterators, caches and other objects of Python's own."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import Case, bits, changed_in_time, replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


class Key:
    pass


def product(x: Any, factors: Any) -> mg.Tensor:
    out = mg.tensor(x)
    for factor in factors:
        out = out * factor
    return out


def value_in_a_view_of_values() -> Case:
    factors = {"a": 2.0, "b": 3.0}
    view = factors.values()
    return lambda x: product(x, view), lambda: factors.update(b=5.0)


def array_in_a_view_of_items() -> Case:
    factors = {"a": mg.tensor(np.ones(3))}
    view = factors.items()
    return lambda x: product(x, [v for _, v in view]), lambda: setattr(factors["a"], "data", np.full(3, 7.0))


def new_key_in_a_view_of_keys() -> Case:
    factors = {2.0: "a"}
    view = factors.keys()
    return lambda x: product(x, view), lambda: factors.update({4.0: "b"})


def value_of_a_weak_key() -> Case:
    key = Key()
    factors = weakref.WeakKeyDictionary({key: 2.0})
    return lambda x: mg.tensor(x) * factors[key], lambda: factors.__setitem__(key, 3.0)


def tensor_of_a_weak_value() -> Case:
    factor = mg.tensor(np.ones(3))
    factors = weakref.WeakValueDictionary({"a": factor})
    return lambda x: mg.tensor(x) * factors["a"], lambda: setattr(factor, "data", np.full(3, 7.0))


def attribute_of_a_weak_value() -> Case:
    key = Key()
    key.factor = 2.0  # type: ignore[attr-defined]
    factors = weakref.WeakValueDictionary({"a": key})
    return lambda x: mg.tensor(x) * factors["a"].factor, lambda: setattr(key, "factor", 5.0)  # type: ignore[attr-defined]


def another_weak_value() -> Case:
    keys = [mg.tensor(np.full(3, 2.0)), mg.tensor(np.full(3, 3.0))]
    factors = weakref.WeakValueDictionary({"a": keys[0]})
    return lambda x: mg.tensor(x) * factors["a"], lambda: factors.__setitem__("a", keys[1])


def another_object_as_a_key() -> Case:
    factors = {mg.tensor(np.ones(3)): 2.0, mg.tensor(np.ones(3)): 3.0}

    def change() -> None:
        factors.popitem()
        factors[mg.tensor(np.full(3, 5.0))] = 3.0

    return lambda x: product(x, factors), change


def tensor_in_a_weak_set() -> Case:
    factor = mg.tensor(np.ones(3))
    factors = weakref.WeakSet([factor])
    return lambda x: product(x, factors), lambda: setattr(factor, "data", np.full(3, 4.0))


def another_one_in_a_weak_set() -> Case:
    keys = [mg.tensor(np.full(3, 2.0)), mg.tensor(np.full(3, 3.0))]
    factors = weakref.WeakSet(keys[:1])
    return lambda x: product(x, factors), lambda: factors.add(keys[1])


def view_of_memory() -> Case:
    memory = bytearray(b"\2\3")
    view = memoryview(memory)
    return lambda x: mg.tensor(x) * view[0], lambda: memory.__setitem__(0, 5)


def closure_of_a_comparison() -> Case:
    sign = [1.0]
    key = functools.cmp_to_key(lambda a, b: int((a - b) * sign[0]))
    return lambda x: mg.tensor(x) * sorted([2.0, 3.0], key=key)[0], lambda: sign.__setitem__(0, -1.0)


def cleared_cache() -> Case:
    w = np.ones(3)
    table = functools.cache(lambda: w * 2)

    def change() -> None:
        w[...] = 5.0
        table.cache_clear()

    return lambda x: mg.tensor(x) * table(), change


def cache_of_a_function_without_a_name() -> Case:
    table = functools.cache(functools.partial(np.full, 3, 2.0))
    w = [2.0]
    return lambda x: mg.tensor(x) * table() * w[0], lambda: w.__setitem__(0, 3.0)


CASES = (
    value_in_a_view_of_values, array_in_a_view_of_items, new_key_in_a_view_of_keys, value_of_a_weak_key,
    tensor_of_a_weak_value, attribute_of_a_weak_value, another_weak_value, another_object_as_a_key,
    tensor_in_a_weak_set, another_one_in_a_weak_set, view_of_memory, closure_of_a_comparison,
    cleared_cache, cache_of_a_function_without_a_name,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_behind_changes(case: Callable[[], Case]) -> None:
    changed_in_time(*case())


@pytest.mark.parametrize("make", [lambda v: zip(v, v, strict=True), enumerate, lambda v: map(abs, v), iter])
def test_iterators_that_a_step_goes_on_with(make: Callable[[list[float]], Any]) -> None:
    """They are no replay's to advance: the step runs itself, until it is refused."""
    values = [1.0] * 5 + [7.0] * 9

    def using(iterator: Any) -> Callable[[Any], Any]:
        def step(x: Any) -> Any:
            for value in iterator:
                return mg.tensor(x) * (value[-1] if isinstance(value, tuple) else value)
            return None

        return step

    plain, captured = using(make(values)), mg.capture(using(make(values)))
    with pytest.raises(mg.CaptureError, match=r"changes from call to call|iterator"):  # noqa: PT012
        for _ in range(12):
            assert bits(captured(X)) == bits(plain(X))


def test_training_over_a_view_of_parameters() -> None:
    def train(capture: Any) -> tuple[list[Any], Any]:
        model = {"w": mg.tensor(np.ones(3), requires_grad=True), "b": mg.tensor(0.5, requires_grad=True)}
        parameters = model.values()

        @capture
        def step(x: Any) -> mg.Tensor:
            loss = ((model["w"] * x).sum() + model["b"] - 1) ** 2
            for p in parameters:
                p.zero_grad()
            loss.backward()
            for p in parameters:
                p.data -= 0.01 * p.grad.data  # type: ignore[union-attr]
            return loss

        return [step(X).item() for _ in range(9)], step

    found, step = train(mg.capture)
    assert found == train(lambda step: step)[0]
    assert replays(step) >= 6


# Caches


def test_a_cache_keeps_the_arrays_that_recorded_calls_have_left_in_it() -> None:
    """Drawn once: in the call that is recorded too, and those of before stay."""

    def run(capture: Any) -> tuple[list[Any], Any]:
        rng = np.random.default_rng(0)
        noise = functools.cache(lambda n: rng.standard_normal(n))
        step = capture(lambda x: mg.tensor(x) * noise(len(x)))
        found = [step(np.ones(n)).numpy().tolist() for n in (3, 3, 3, 4, 4, 3, 4, 5, 5, 5, 3, 4, 5)]
        assert all(type(noise(n)) is np.ndarray for n in (3, 4, 5))
        return found, (noise.cache_info().currsize, rng.bit_generator.state)

    assert run(mg.capture) == run(lambda step: step)


def test_weights_that_a_cache_keeps_from_the_beginning_of_a_task() -> None:
    def train(capture: Any) -> list[float]:
        model = nn.Linear(3, 2, rng=0)
        optimizer = nn.SGD(model.parameters(), 0.05)
        start = functools.cache(lambda task: model.weight.data.copy())

        @capture
        def step(x: Any, task: str) -> mg.Tensor:
            loss = (model(x) ** 2).mean() + ((model.weight - start(task)) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return [step(X.astype(np.float32) * i, task).item() for i, task in enumerate("aaaabbbbaaccaab")]

    assert train(mg.capture) == train(lambda step: step)


def test_a_cache_of_limited_size_that_is_cleared() -> None:
    number = ctypes.c_double(2.0)  # which nothing looks at
    table = functools.lru_cache(4)(lambda: np.full(3, number.value))
    step = mg.capture(lambda x: mg.tensor(x) * table())
    warm(step, X)
    number.value = 5.0
    np.testing.assert_array_equal(step(X).data, X * 2)
    table.cache_clear()
    np.testing.assert_array_equal(step(X).data, X * 5)


@pytest.mark.parametrize("cached", [functools.cache, functools.lru_cache(8)])
@pytest.mark.parametrize("refill", [False, True])
def test_a_cache_that_is_cleared_several_times(cached: Any, refill: bool) -> None:
    number = ctypes.c_double(1.0)
    table = cached(lambda: np.full(3, number.value))
    step = mg.capture(lambda x: mg.tensor(x) * table())
    for i in range(24):
        if i % 4 == 0:
            number.value += 1.0
            table.cache_clear()
            if refill:
                table()
        np.testing.assert_array_equal(step(X).data, X * number.value)
    assert replays(step) >= 6


def test_keys_that_are_tuples_may_be_other_ones_that_are_equal() -> None:
    factors = {(0, 1): 2.0, (1, 2): 3.0}
    step = mg.capture(lambda x: product(x, factors.values()))
    for _ in range(14):
        factors.clear()
        factors.update({(i, i + 1): 2.0 + i for i in range(2)})
        np.testing.assert_array_equal(step(X).data, X * 6)
    assert replays(step) >= 8


@pytest.mark.parametrize("cached", [functools.cache, functools.lru_cache(64)])
def test_caches_that_grow_leave_recordings_as_they_are(cached: Any) -> None:
    positions = cached(lambda n: np.arange(float(n)))
    step = mg.capture(lambda x: (mg.tensor(x) * positions(len(x))).sum(), max_recordings=32)
    rng = np.random.default_rng(0)
    for n in rng.integers(1, 16, 200).tolist():
        assert step(np.ones(n)).item() == n * (n - 1) / 2
        positions(int(rng.integers(1, 40)))
    assert replays(step) >= 140


def test_all_that_is_looked_at_is_known_to_the_fast_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [functools.cache(lambda: 2.0), functools.lru_cache(4)(lambda: 3.0)]
    keys = {mg.tensor(1.0): 1.0, mg.tensor(2.0): 2.0}
    view, settings = memoryview(bytearray(200_000)), weakref.WeakSet([tables[0]])
    step = mg.capture(lambda x: x * (tables[0]() + tables[1]() + len(keys) + view[0] + len(settings)))
    warm(step, X)
    monkeypatch.setattr(type(step), "_search", lambda *args: pytest.fail("the conditions do not hold"))
    np.testing.assert_array_equal(step(X), X * 8)


def test_a_view_of_memory_that_changes_and_is_released() -> None:
    memory = bytearray(200_000)
    view = memoryview(memory)
    step = mg.capture(lambda x: mg.tensor(x) + float(view[0] if view.nbytes else 0))
    warm(step, X)
    memory[0] = 7
    np.testing.assert_array_equal(step(X).data, X + 7)
    view.release()
    with pytest.raises(ValueError, match="released memoryview"):
        step(X)


def test_a_view_of_memory_that_has_been_released() -> None:
    memory = memoryview(bytearray(b"12"))
    memory.release()
    step = mg.capture(lambda x: mg.tensor(x) * (2.0 if memory is not None else 3.0))
    warm(step, X)
    assert replays(step) >= 2


def test_a_cache_of_limited_size_that_can_not_be_put_back_is_named() -> None:
    w = np.ones(3)
    table = functools.lru_cache(8)(lambda n: w * n)
    step = mg.capture(lambda x, n: mg.tensor(x) * table(n))
    warm(step, X, 2)
    with pytest.raises(mg.CaptureError, match="kept an array of the step while a call was recorded"):
        step(X, 3)
    for n in (2, 3):
        table(n)
    for i in range(8):
        n = 2 + i % 2
        np.testing.assert_array_equal(step(X, n).data, X * n)
    assert type(table(3)) is np.ndarray
