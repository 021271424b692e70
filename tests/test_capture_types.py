"""mg.capture: what a step asks of the objects themselves: their types, whether they have an attribute, copies."""

from __future__ import annotations

import builtins
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import replays

pytestmark = pytest.mark.usefixtures("numpy_kernels")

BY_COLUMNS = np.asfortranarray(np.arange(6.0).reshape(2, 3))

TYPES: dict[str, Callable[[Any, Any], bool]] = {
    "is": lambda x, k: type(x) is np.ndarray,
    "name": lambda x, k: type(x).__name__ == "ndarray",
    "subclass": lambda x, k: issubclass(type(x), np.ndarray),
    "number among": lambda x, k: type(k) in (int, float),
    "as another's": lambda x, k: type(k) is type(2 * 0.5),
    "of types": lambda x, k: type(float) is type and isinstance(float, type) and issubclass(type, object),
    "made": lambda x, k: type("Made", (), {"a": 1}).a == 1,
    "written": lambda x, k: (
        type[int] == builtins.type[int] and type.__name__ == "type" and repr(type) == repr(type(int))
    ),
    "no attribute": lambda x, k: not hasattr(x, "unheard_of") and not hasattr(k, "flat"),
    "order of a copy": lambda x, k: (
        copy.copy(BY_COLUMNS).flags.f_contiguous and copy.deepcopy(BY_COLUMNS.T).flags.c_contiguous
    ),
}


def different_from_the_fifth_on(question: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    """A step whose way is seen in late calls alone, when the recording has been compared with it."""

    def step(x: Any, k: float) -> Any:
        if question(x, k) and (x > 3).any():
            return x * k
        return x * 2

    return step


@pytest.mark.parametrize("asked", TYPES)
def test_a_step_asks_for_types(asked: str) -> None:
    step = different_from_the_fifth_on(TYPES[asked])
    captured = mg.capture(step)
    for i in range(8):
        np.testing.assert_array_equal(captured(np.full(2, float(i)), 0.5), step(np.full(2, float(i)), 0.5))
    assert replays(captured) > 1
    assert "type" not in globals()


def test_a_function_that_runs_first_in_a_recorded_call() -> None:
    def doubled(x: Any) -> Any:
        return x * 2 if type(x) is np.ndarray else x * 3

    captured = mg.capture(lambda x, n: doubled(x) if n > 0 else x)
    for n in range(5):
        assert captured(np.ones(2), n).tolist() == ([2, 2] if n > 0 else [1, 1])


@pytest.mark.parametrize("attribute", ["flat", "real", "ctypes", "put"])
def test_attributes_that_are_not_recorded_are_refused(attribute: str) -> None:
    captured = mg.capture(different_from_the_fifth_on(lambda x, k: hasattr(x, attribute)))
    captured(np.ones(2), 1.0)
    with pytest.raises(mg.CaptureError, match=f"{attribute} of x is asked for, which is not recorded"):
        captured(np.ones(2), 1.0)


def test_methods_of_numbers_are_refused() -> None:
    captured = mg.capture(different_from_the_fifth_on(lambda x, k: k.is_integer()))
    captured(np.ones(2), 1.0)
    with pytest.raises(mg.CaptureError, match="is_integer of k is asked for, which is not recorded"):
        captured(np.ones(2), 1.0)


@pytest.mark.parametrize("asks", [lambda rng: type(rng) is np.random.Generator,
                                  lambda rng: isinstance(rng, np.random.Generator),
                                  lambda rng: hasattr(rng, "normal") and not hasattr(rng, "randn")])  # fmt: skip
def test_a_step_asks_what_a_generator_is(asks: Callable[[Any], bool]) -> None:
    def make() -> Callable[..., Any]:
        rng = np.random.default_rng(0)
        return lambda x: x + rng.random(2) if asks(rng) else x

    step, captured = make(), mg.capture(make())
    for i in range(6):
        np.testing.assert_array_equal(captured(np.full(2, float(i))), step(np.full(2, float(i))))
    assert replays(captured) > 1


def test_copies() -> None:
    model = nn.Linear(2, 3, rng=0)

    def step(x: Any, k: float) -> Any:
        weights = copy.deepcopy(model.state_dict())
        again = copy.copy(x)
        again += 1
        return again @ weights["weight"] * copy.deepcopy(k) + copy.copy(x).sum()

    captured = mg.capture(step)
    for i in range(6):
        x = np.full((1, 2), float(i))
        np.testing.assert_array_equal(captured(x, 0.5), step(x, 0.5))
        assert (x == i).all()
    assert replays(captured) > 1


def test_writing_through_windows() -> None:
    """Between an array and its windows NumPy puts an object that is no array."""

    def make() -> Callable[..., Any]:
        kept = np.arange(4.0)

        def step(x: Any) -> Any:
            windows = np.lib.stride_tricks.sliding_window_view(kept, 2, writeable=True)
            windows[0] += x
            return kept * 1

        return step

    step, captured = make(), mg.capture(make())
    for i in range(7):
        x = np.array([0.0 if i < 4 else 10.0])  # without an effect until the recording has been compared
        np.testing.assert_array_equal(captured(x), step(x))
    assert replays(captured) > 1
