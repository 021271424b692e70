"""mg.capture: a name that means something else than in the recording, wherever the step looks it up."""

from __future__ import annotations

import array
import collections
import contextvars
import enum
import functools
import importlib
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.recording.recording import Recording
from tests.training_steps import Case, changed_in_time, replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)  # as in changed_in_time


class Base:
    scale = 2.0

    def act(self, x: Any) -> Any:
        return x * self.scale


class Slotted:
    __slots__ = ("other", "scale")

    def __init__(self) -> None:
        self.scale = 2.0


def hidden_class_attribute() -> Case:
    o = Base()
    return lambda x: mg.tensor(x) * o.scale, lambda: setattr(o, "scale", 3.0)


def method_of_one_object() -> Case:
    o = Base()
    return lambda x: o.act(mg.tensor(x)), lambda: setattr(o, "act", lambda x: x * 3.0)


def attribute_of_a_base() -> Case:
    base = type("Base", (), {"scale": 2.0})
    derived = type("Derived", (base,), {})
    return lambda x: mg.tensor(x) * derived.scale, lambda: setattr(base, "scale", 3.0)


def attribute_that_hides_that_of_a_base() -> Case:
    derived = type("Derived", (Base,), {})
    return lambda x: mg.tensor(x) * derived.scale, lambda: setattr(derived, "scale", 3.0)


def another_class() -> Case:
    o = Base()
    other = type("Other", (Base,), {"scale": 3.0})
    return lambda x: mg.tensor(x) * o.scale, lambda: setattr(o, "__class__", other)


def settings_of_a_layer() -> Case:
    class Layer(nn.Module):
        def __init__(self) -> None:
            self.settings = Base()

        def forward(self, x: Any) -> Any:
            return mg.tensor(x) * self.settings.scale

    layer = Layer()
    return layer, lambda: setattr(layer.settings, "scale", 3.0)


def slot_that_was_empty() -> Case:
    o = Slotted()
    return lambda x: mg.tensor(x) * getattr(o, "other", o.scale), lambda: setattr(o, "other", 3.0)


def attribute_that_was_not_there() -> Case:
    o = types.SimpleNamespace()

    def step(x: Any) -> Any:
        try:
            return mg.tensor(x) * o.scale
        except AttributeError:
            return mg.tensor(x)

    return step, lambda: setattr(o, "scale", 3.0)


def function_attribute() -> Case:
    def helper(x: Any) -> Any:
        return x * helper.k  # type: ignore[attr-defined]

    helper.k = 2.0  # type: ignore[attr-defined]
    return lambda x: helper(mg.tensor(x)), lambda: setattr(helper, "k", 3.0)


def code_of_a_function() -> Case:
    def helper(x: Any) -> Any:
        return x * 2.0

    def edited(x: Any) -> Any:
        return x * 3.0

    return lambda x: helper(mg.tensor(x)), lambda: setattr(helper, "__code__", edited.__code__)


def order_of_a_dict() -> Case:
    layers = {"double": lambda x: x * 2.0, "add": lambda x: x + 1.0}

    def step(x: Any) -> Any:
        x = mg.tensor(x)
        for layer in layers.values():
            x = layer(x)
        return x

    return step, lambda: layers.update(double=layers.pop("double"))


def order_of_an_ordered_dict() -> Case:
    factors = collections.OrderedDict(a=2.0, b=3.0)

    def step(x: Any) -> Any:
        first, _ = factors.values()
        return mg.tensor(x) * first

    return step, lambda: factors.move_to_end("a")


def chain_of_dicts() -> Case:
    settings = collections.ChainMap({}, {"k": 2.0})
    return lambda x: mg.tensor(x) * settings["k"], lambda: settings.update(k=3.0)


def user_dict() -> Case:
    settings = collections.UserDict(k=2.0)
    return lambda x: mg.tensor(x) * settings["k"], lambda: settings.update(k=3.0)


def view_of_a_dict() -> Case:
    settings = {"k": 2.0}
    view = types.MappingProxyType(settings)
    return lambda x: mg.tensor(x) * view["k"], lambda: settings.update(k=3.0)


def array_of_python() -> Case:
    numbers = array.array("d", [2.0])
    return lambda x: mg.tensor(x) * numbers[0], lambda: numbers.__setitem__(0, 3.0)


def context_variable() -> Case:
    k = contextvars.ContextVar("k", default=2.0)
    return lambda x: mg.tensor(x) * k.get(), lambda: k.set(3.0)


def variable_of_a_thread() -> Case:
    mine = threading.local()
    mine.k = 2.0
    return lambda x: mg.tensor(x) * mine.k, lambda: setattr(mine, "k", 3.0)


CASES = (
    hidden_class_attribute, method_of_one_object, attribute_of_a_base, attribute_that_hides_that_of_a_base,
    another_class, settings_of_a_layer, slot_that_was_empty, attribute_that_was_not_there, function_attribute,
    code_of_a_function, order_of_a_dict, order_of_an_ordered_dict, chain_of_dicts, user_dict, view_of_a_dict,
    array_of_python, context_variable, variable_of_a_thread,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_name_that_means_something_else(case: Callable[[], Case]) -> None:
    changed_in_time(*case())


def test_a_name_of_python_that_the_program_redefines(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_in_time(
        lambda x: mg.tensor(x) * abs(-2.0),
        lambda: monkeypatch.setitem(globals(), "abs", lambda x: 3.0),
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "looked_up").mkdir()
    (tmp_path / "looked_up" / "__init__.py").write_text("")
    (tmp_path / "looked_up" / "settings.py").write_text("SCALE = 2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("looked_up.settings")
    for name in ("looked_up", "looked_up.settings"):
        sys.modules.pop(name)


def test_a_module_in_a_package(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "looked_up", sys.modules["looked_up"])
    changed_in_time(
        lambda x: mg.tensor(x) * looked_up.settings.SCALE,  # type: ignore[name-defined]  # noqa: F821
        lambda: setattr(package, "SCALE", 3.0),
    )


def test_a_module_in_a_variable_of_an_outer_function(package: Any) -> None:
    changed_in_time(lambda x: mg.tensor(x) * package.SCALE, lambda: setattr(package, "SCALE", 3.0))


def test_a_module_that_a_function_imports(package: Any) -> None:
    def whole(x: Any) -> Any:
        import looked_up.settings

        return mg.tensor(x) * looked_up.settings.SCALE

    def part(x: Any) -> Any:
        from looked_up.settings import SCALE

        return mg.tensor(x) * SCALE

    changed_in_time(whole, lambda: setattr(package, "SCALE", 3.0))
    changed_in_time(part, lambda: setattr(package, "SCALE", 4.0))


def test_predictions_of_a_model_in_a_package(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package.model = nn.Linear(3, 2, rng=0)
    monkeypatch.setitem(globals(), "looked_up", sys.modules["looked_up"])
    optimizer = nn.SGD(package.model.parameters(), lr=0.1)
    rows = np.ones((2, 3), np.float32)

    def predict(x: Any) -> Any:
        return looked_up.settings.model(x)  # type: ignore[name-defined]  # noqa: F821

    def train() -> None:
        predict(rows).sum().backward()
        optimizer.step()

    captured = mg.capture(predict)
    warm(captured, rows)
    for _ in range(3):
        train()
        np.testing.assert_array_equal(captured(rows), predict(rows).numpy())


def test_globals_by_function_are_refused() -> None:
    step = mg.capture(lambda x: mg.tensor(x) * len(globals()["X"]))
    step(X)
    with pytest.raises(mg.CaptureError, match="the step calls globals"):
        step(X)


def test_attributes_that_nobody_names_may_change() -> None:
    o = Base()

    @mg.capture
    def step(x: Any) -> Any:
        return mg.tensor(x) * o.scale

    o.calls = 0  # type: ignore[attr-defined]
    for _ in range(6):
        o.calls += 1  # type: ignore[attr-defined]
        step(X)
    assert replays(step) == 4


def test_functions_with_a_cache() -> None:
    """What they keep is computed outside of recordings: no cache has handles in it when a call has ended."""

    @functools.lru_cache
    def positions(n: int) -> mg.Tensor:
        return mg.exp(mg.tensor(np.arange(float(n))) * -0.1)

    w = mg.tensor(2.0, requires_grad=True)

    def step(x: Any) -> mg.Tensor:
        return (w * x * positions(len(x))).sum()

    captured = mg.capture(step)
    for n in (4, 5, 6):
        x = np.ones(n)
        for _ in range(5):
            assert captured(x).item() == step(x).item()
            assert type(positions(n).data) is np.ndarray
    assert replays(captured) > 3


@pytest.mark.parametrize("value", [100_000, "a longer string of words", enum.IntEnum("Kind", "ONE").ONE])
def test_values_of_context_variables_are_compared_by_the_fast_conditions(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    variable.set(value)
    step = mg.capture(lambda x: x * (2.0 if variable.get() == value else 3.0))
    x = np.arange(3.0)
    warm(step, x)
    why_not, looked = Recording.why_not, []
    monkeypatch.setattr(Recording, "why_not", lambda *args: looked.append(args) or why_not(*args))
    np.testing.assert_array_equal(step(x), x * 2)
    assert looked == []
    variable.set(0)
    np.testing.assert_array_equal(step(x), x * 3)
    assert len(looked) == 1
