"""mg.capture: what objects of Python's library hold for a step; and nothing of a recording stays in any of them."""

from __future__ import annotations

import collections
import contextvars
import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import Case, changed_in_time, replays, warm

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


def test_an_array_of_objects() -> None:
    names = np.array(["cat", "dog"], object)
    step = mg.capture(lambda x: mg.tensor(x) * len(names))
    warm(step, X)
    assert replays(step) == 2


def test_many_bytes_are_compared_as_bytes() -> None:
    letters = bytearray(b"ab" * 10)
    changed_in_time(lambda x: mg.tensor(x) * letters[0], lambda: letters.__setitem__(0, 7))
