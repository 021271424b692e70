"""mg.capture: what objects of Python's library hold for a step; and nothing of a recording stays in any of them."""

from __future__ import annotations

import collections
import contextvars
import copy
import functools
import io
import itertools
import logging
import pickle
import queue
import random
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import Case, bits, changed_in_time, replays, training_step, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


class Pair(NamedTuple):
    first: Any
    second: Any


class Settings:
    scale = 2.0
    __match_args__ = ("scale",)


class Scaled:
    """A decorator that is an object."""

    def __init__(self, function: Callable[[Any], Any], scale: float) -> None:
        functools.update_wrapper(self, function)
        self.function, self.scale = function, scale

    def __call__(self, x: Any) -> Any:
        return self.function(x) * self.scale


def decorator_that_is_an_object() -> Case:
    helper = Scaled(lambda x: x + 1, 2.0)
    return lambda x: helper(mg.tensor(x)), lambda: setattr(helper, "scale", 3.0)


def step_with_a_decorator_that_is_an_object() -> Case:
    step = Scaled(lambda x: mg.tensor(x) + 1, 2.0)
    return step, lambda: setattr(step, "scale", 3.0)


def result_of_a_cached_function() -> Case:
    @functools.cache
    def settings() -> Settings:
        return Settings()

    return lambda x: mg.tensor(x) * settings().scale, lambda: setattr(settings(), "scale", 3.0)


def property_and_its_closure() -> Case:
    table = [2.0]
    kind = type("Kind", (), {"scale": property(lambda self: table[0])})
    o: Any = kind()
    return lambda x: mg.tensor(x) * o.scale, lambda: table.__setitem__(0, 3.0)


def class_method_and_its_closure() -> Case:
    table = [2.0]
    kind: Any = type("Kind", (), {"scale": classmethod(lambda cls: table[0])})
    return lambda x: mg.tensor(x) * kind.scale(), lambda: table.__setitem__(0, 3.0)


def partial_method() -> Case:
    settings = Settings()

    class Kind:
        def of(self, settings: Any) -> Any:
            return settings.scale

        scale = functools.partialmethod(of, settings)

    o = Kind()
    return lambda x: mg.tensor(x) * o.scale(), lambda: setattr(settings, "scale", 3.0)  # type: ignore[call-arg]


def method_of_an_operator() -> Case:
    table = [2.0]
    kind = type("Kind", (), {"__getitem__": lambda self, i: table[i]})
    o: Any = kind()
    return lambda x: mg.tensor(x) * o[0], lambda: table.__setitem__(0, 3.0)


def weak_reference() -> Case:
    settings = Settings()
    child = type("Child", (), {})()
    child.parent, child.keeps = weakref.ref(settings), settings
    return lambda x: mg.tensor(x) * child.parent().scale, lambda: setattr(settings, "scale", 3.0)


def keyword_of_a_pattern() -> Case:
    settings = Settings()

    def step(x: Any) -> Any:
        match settings:
            case Settings(scale=k):
                return mg.tensor(x) * k

    return step, lambda: setattr(settings, "scale", 3.0)


def position_of_a_pattern() -> Case:
    settings = Settings()

    def step(x: Any) -> Any:
        match settings:
            case Settings(k):
                return mg.tensor(x) * k

    return step, lambda: setattr(settings, "scale", 3.0)


def array_in_a_named_tuple() -> Case:
    pair = Pair(np.ones(3), 2.0)
    return lambda x: mg.tensor(x) * pair.first.sum(), lambda: pair.first.__setitem__(0, 7.0)


def array_in_nested_tuples() -> Case:
    nested = ((np.ones(3), 1), 2)
    return lambda x: mg.tensor(x) * nested[0][0].sum(), lambda: nested[0][0].__setitem__(0, 7.0)


def array_in_a_deque() -> Case:
    latest = collections.deque([np.ones(3)], maxlen=2)
    return lambda x: mg.tensor(x) * latest[0].sum(), lambda: latest[0].__setitem__(0, 7.0)


def object_in_an_array() -> Case:
    settings = np.array([Settings()], object)
    return lambda x: mg.tensor(x) * settings[0].scale, lambda: setattr(settings[0], "scale", 3.0)


def bound_method_of_a_dict() -> Case:
    settings = {"k": 2.0}
    get = settings.get
    return lambda x: mg.tensor(x) * get("k"), lambda: settings.update(k=3.0)


CASES = (
    decorator_that_is_an_object, step_with_a_decorator_that_is_an_object, result_of_a_cached_function,
    property_and_its_closure, class_method_and_its_closure, partial_method, method_of_an_operator, weak_reference,
    keyword_of_a_pattern, position_of_a_pattern, array_in_a_named_tuple, array_in_nested_tuples, array_in_a_deque,
    object_in_an_array, bound_method_of_a_dict,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_held_changes(case: Callable[[], Case]) -> None:
    changed_in_time(*case())


# Handles


def test_arrays_in_a_named_tuple_that_the_step_replaces() -> None:
    class Cell:
        def __init__(self) -> None:
            self.state = Pair(np.zeros(3), np.ones(3))

        def step(self, x: Any) -> Any:
            h = self.state.first * 0.5 + x
            self.state = Pair(h, self.state.second * 0.9 + h)
            return h + self.state.second

    ours, plain = Cell(), Cell()
    step = mg.capture(ours.step)
    for _ in range(8):
        np.testing.assert_array_equal(step(X), plain.step(X))
        assert all(type(x) is np.ndarray for x in ours.state)
    with pytest.raises(mg.CaptureError, match=r"self\.state.* changes from call to call"):
        warm(step, X)


def test_a_context_variable_that_the_step_sets() -> None:
    latest: contextvars.ContextVar[Any] = contextvars.ContextVar("latest", default=None)

    @mg.capture
    def step(x: Any) -> Any:
        latest.set(x * 2)
        return x * 3

    for _ in range(5):
        step(X)
        assert type(latest.get()) is np.ndarray


def test_a_global_variable_that_the_step_only_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "LENGTH", -1)

    @mg.capture
    def step(x: Any) -> Any:
        global LENGTH
        LENGTH = len(x)
        return mg.tensor(x) * 2

    for _ in range(6):
        monkeypatch.setitem(globals(), "LENGTH", -1)
        step(X)
        assert globals()["LENGTH"] == 3
    assert replays(step) > 2


def test_a_cache_keeps_what_is_in_it() -> None:
    @functools.cache
    def head(task: int) -> nn.Linear:
        return nn.Linear(3, 2, rng=task)

    rows = np.ones((2, 3), np.float32)
    first = head(0)
    first.weight.data = first.weight.data * 5

    @mg.capture
    def step(x: Any, task: int) -> mg.Tensor:
        return head(task)(x).sum()

    for task in (0, 0, 0, 0, 1, 1, 1, 1, 0, 1):
        assert step(rows, task).item() == head(task)(rows).sum().item()
    assert head(0) is first


# Plain values that a step sets


def test_a_class_attribute_that_the_step_changes() -> None:
    def results(decorate: Callable[..., Any]) -> list[Any]:
        class Kind:
            flag, count = False, 0

        def step(x: Any) -> Any:
            Kind.flag = not Kind.flag
            return mg.tensor(x) * (2.0 if Kind.flag else 3.0)

        step = decorate(step)
        return [(step(X).numpy().tolist(), Kind.flag) for _ in range(9)]

    assert results(mg.capture) == results(lambda step: step)


def test_an_equal_tuple_is_no_change() -> None:
    class Layer:
        shape: tuple[int, ...] = ()
        limits = (0.5, 2.0)

        def __call__(self, x: Any) -> Any:
            self.shape = x.shape
            return mg.clip(mg.tensor(x), *self.limits)

    layer = Layer()
    step = mg.capture(lambda x: layer(x))
    for n in (3, 3, 3, 3, 2, 2, 2, 2, 3):
        layer.limits = tuple(map(float, ("0.5", "2.0")))
        np.testing.assert_array_equal(step(X[:n]).data, X[:n].clip(0.5, 2))
        assert layer.shape == (n,)
    assert replays(step) > 3


def test_attributes_and_histories_that_no_function_names() -> None:
    class Trainer:
        history: list[float] = []  # noqa: RUF012  # of all trainers
        calls = 0

        def __init__(self) -> None:
            self.weight = mg.tensor(np.ones(3), requires_grad=True)

        def step(self, x: Any) -> Any:
            return self.weight * x

    trainer = Trainer()
    step = mg.capture(trainer.step)
    for i in range(12):
        trainer.history.append(i)
        Trainer.calls += 1
        setattr(trainer, f"result_{i}", step(X))
    assert replays(step) == 10


# What can't be repeated


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


# Errors


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


def test_an_array_of_objects() -> None:
    names = np.array(["cat", "dog"], object)
    step = mg.capture(lambda x: mg.tensor(x) * len(names))
    warm(step, X)
    assert replays(step) == 2


# What changes without a meaning for the step


def ordinary(step: Callable[[Any], Any], between: Callable[[int], Any], calls: int = 14) -> None:
    captured = mg.capture(step)
    for i in range(calls):
        captured(X)
        between(i)
    assert replays(captured) >= calls - 3


def test_histories_beside_attributes_that_are_asked_for_by_strings() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.history: list[int] = []
            self.weight = mg.tensor(np.ones(3), requires_grad=True)

        def step(self, x: Any) -> Any:
            setattr(self, "latest", 3)  # noqa: B010
            return self.weight * x if hasattr(self, "scheduler") or hasattr(x, "size") else x

    trainer = Trainer()
    ordinary(trainer.step, trainer.history.append)


def test_what_methods_use_that_do_not_run() -> None:
    made: list[int] = []

    class Trainer:
        def __init__(self) -> None:
            made.append(0)
            self.weight = mg.tensor(np.ones(3), requires_grad=True)

        @property
        def count(self) -> int:
            return len(made)

        def step(self, x: Any) -> Any:
            return self.weight * x

    trainer = Trainer()
    ordinary(trainer.step, made.append)


def test_attributes_of_what_is_derived_from_containers() -> None:
    class Meter(list):  # type: ignore[type-arg]
        total = 0

        def add(self, x: int) -> None:
            self.total += x

    meter = Meter([1.0, 2.0])
    ordinary(lambda x: mg.tensor(x) * len(meter), meter.add)


def test_two_optimisers_that_take_turns() -> None:
    def outcome(decorate: Callable[..., Any]) -> list[bytes]:
        a, b = (mg.tensor(np.full(3, v), requires_grad=True) for v in (1.0, 2.0))
        first, second = nn.Adam([a], lr=0.1), nn.Adam([b], lr=0.1)

        def one(x: Any) -> None:
            first.zero_grad(), second.zero_grad()
            (a * b * x).sum().backward()
            first.step()

        def other(x: Any) -> None:
            first.zero_grad(), second.zero_grad()
            (a * b * x).sum().backward()
            second.step()

        steps: list[Any] = [decorate(one), decorate(other)]
        for _ in range(9):
            for step in reversed(steps):
                step(X)
        if decorate is mg.capture:
            assert all(replays(step) >= 5 for step in steps)
        return bits(a, b)

    assert outcome(mg.capture) == outcome(lambda step: step)


def test_weights_that_are_swapped_between_steps() -> None:
    layer, plain = nn.Linear(3, 2, rng=0), nn.Linear(3, 2, rng=0)
    optimizers = [nn.Adam(x.parameters(), 0.1) for x in (layer, plain)]

    def step(layer: nn.Module, optimizer: nn.Optimizer) -> Any:
        optimizer.zero_grad()
        loss = layer(mg.tensor(np.ones((1, 3), np.float32))).sum()
        loss.backward()
        optimizer.step()
        return loss

    captured = mg.capture(lambda: step(layer, optimizers[0]))
    for i in range(20):
        assert bits(captured()) == bits(step(plain, optimizers[1]))
        if i % 5 == 4:
            for model in (layer, plain):
                model.load_state_dict({name: x * 0.9 for name, x in model.state_dict().items()})
    assert len(captured.recordings) == 1
    assert replays(captured) >= 14


def test_many_bytes_are_compared_as_bytes() -> None:
    letters = bytearray(b"ab" * 10)
    changed_in_time(lambda x: mg.tensor(x) * letters[0], lambda: letters.__setitem__(0, 7))
