"""mg.capture: whatever a step may look at is looked at before a replay, and used as it is by then."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import gc
import pickle
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import changed_in_time, replays, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)
SCALE = 2.0
TABLE = np.ones(3)
COLLECTED: list[int] = []


class Scaled(nn.Module):
    k = 1.0

    def forward(self, x: Any) -> mg.Tensor:
        return mg.tensor(x) * SCALE * self.k * TABLE


def helper(x: Any, factor: float = 3.0) -> mg.Tensor:
    return mg.tensor(x) * factor


def test_globals_and_class_attributes_that_methods_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Scaled()
    step = mg.capture(lambda x: model(x).sum())
    warm(step, X)
    for name, owner, value in [("SCALE", None, 3.0), ("k", Scaled, 5.0), ("TABLE", None, np.full(3, 2.0))]:
        if owner is None:
            monkeypatch.setitem(globals(), name, value)
        else:
            monkeypatch.setattr(owner, name, value)
        assert step(X).item() == model(X).sum().item(), name
    TABLE[0] = 7.0
    assert step(X).item() == model(X).sum().item()
    monkeypatch.setattr(Scaled, "forward", lambda self, x: mg.tensor(x))
    assert step(X).item() == 6.0


def test_a_captured_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3, rng=0), nn.Dropout(0.9, 0))
    step = mg.capture(model)
    rows = np.ones((2, 3), np.float32)
    warm(step, rows)
    model.eval()
    assert step(rows).numpy().tolist() == model(rows).numpy().tolist()
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})
    assert step(rows).numpy().tolist() == model(rows).numpy().tolist()


def test_closures_that_the_library_makes() -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)
    value = mg.value_and_grad(lambda v: (v * weight).sum())
    again = mg.checkpoint(lambda v: mg.tensor(v) * weight)
    steps = [mg.capture(lambda v: value(v)[0]), mg.capture(lambda v: again(v).sum())]
    for step in steps:
        warm(step, X)
    weight.data = np.full(3, 5.0)
    assert [step(X).item() for step in steps] == [30.0, 30.0]


def test_objects_of_many_kinds_in_reach() -> None:
    namespace, partial = types.SimpleNamespace(k=2.0), functools.partial(helper, factor=2.0)
    names, queue = {"a"}, collections.deque([1.0, 2.0])
    arrays = (np.ones(3), np.ones(3))
    strings = np.array(["a", "b"])
    step = mg.capture(
        lambda x: mg.tensor(x) * namespace.k * len(names) * queue[0] + partial(x) + arrays[1] * (strings[0] == "a")
    )
    expected = lambda: X * namespace.k * len(names) * queue[0] + partial(X).numpy() + arrays[1] * (strings[0] == "a")  # noqa: E731

    def change(what: str) -> None:
        if what == "namespace":
            namespace.k = 3.0
        elif what == "set":
            names.add("b")
        elif what == "queue":
            queue[0] = 5.0
        elif what == "array in a tuple":
            arrays[1][:] = 4.0
        elif what == "keywords":
            partial.keywords["factor"] = 9.0
        else:
            strings[0] = "b"

    for what in ("", "namespace", "set", "queue", "array in a tuple", "keywords", "strings"):
        change(what)
        for _ in range(4):
            np.testing.assert_array_equal(step(X).numpy(), expected(), what)
    assert replays(step) >= 8


def test_models_and_objects_among_the_arguments() -> None:
    def train(model: nn.Module, rows: Any) -> mg.Tensor:
        model.zero_grad()
        loss = (model(rows) ** 2).sum()
        loss.backward()
        return loss

    models = [nn.Linear(3, 2, rng=i) for i in range(2)]
    step = mg.capture(train)
    rng = np.random.default_rng(0)
    for i in range(12):
        model, rows = models[i // 3 % 2], rng.standard_normal((4, 3), np.float32)
        expected = [train(model, rows).item(), model.weight.grad.numpy().tobytes()]  # type: ignore[union-attr]
        assert [step(model, rows).item(), model.weight.grad.numpy().tobytes()] == expected  # type: ignore[union-attr]
        assert isinstance(model.weight.grad.data, np.ndarray)  # type: ignore[union-attr]
    assert replays(step) >= 4

    @dataclasses.dataclass
    class Batch:
        rows: Any

    batch = Batch(np.ones(3))
    total = mg.capture(lambda batch: mg.tensor(batch.rows).sum())
    warm(total, batch)
    batch.rows = np.full(3, 4.0)
    assert total(batch).item() == 12.0


@pytest.mark.parametrize("kind", [np.float64, np.float32, float])
def test_learning_rates_of_numpy(kind: Any) -> None:
    weights = [mg.tensor(np.ones(3, np.float32), requires_grad=True) for _ in range(2)]
    optimizers = [nn.AdamW([weight], lr=0.1) for weight in weights]

    def train(weight: mg.Tensor, optimizer: nn.Optimizer, x: Any) -> None:
        optimizer.zero_grad()
        (weight * x).sum().backward()
        optimizer.step()

    step = mg.capture(lambda x: train(weights[0], optimizers[0], x))
    for i in range(8):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = kind(0.1 * np.cos(i / 10))
        x = (X / (i + 1)).astype(np.float32)
        step(x)
        train(weights[1], optimizers[1], x)
        assert weights[0].data.tobytes() == weights[1].data.tobytes(), i
    assert replays(step) >= 5


def test_a_graph_made_before_the_arrays_were_replaced_and_changed() -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step(x: Any) -> None:
        weight.data -= 0.1 * x

    warm(step, X)
    weight.data = np.full(3, 2.0)
    step(X)
    loss = (weight * weight).sum()
    step(X)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_two_optimisers_of_one_parameter() -> None:
    results = []
    for captured in (False, True):
        weight = mg.tensor(np.ones(3, np.float32), requires_grad=True)
        optimizers = [nn.Adam([weight], 0.1), nn.SGD([weight], 0.1, momentum=0.9)]

        def step(x: Any, weight: mg.Tensor = weight, optimizers: list[Any] = optimizers) -> None:
            for optimizer in optimizers:
                weight.zero_grad()
                (weight * x).sum().backward()
                optimizer.step()

        run: Any = mg.capture(step) if captured else step
        found = []
        for i in range(6):
            run((X * i).astype(np.float32))
            found.append(weight.data.tobytes())
        results.append(found)
    assert results[0] == results[1]


AVERAGE = mg.tensor(np.ones(3))


class Garbage:
    """In a cycle, so that the collector finds it, whoever runs then: it changes what a step reads."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        COLLECTED.append(len(COLLECTED))
        AVERAGE.data = AVERAGE.data * 0.5


@pytest.mark.parametrize("calls", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2), range(20)], ids=str)
def test_finalizers_of_garbage_are_not_the_steps(calls: Iterable[int]) -> None:
    AVERAGE.data = np.ones(3)
    COLLECTED.clear()
    gc.collect(0)

    def step(x: Any) -> mg.Tensor:
        for_the_collector = [[] for _ in range(2 * gc.get_threshold()[0])]  # type: ignore[var-annotated]
        return (AVERAGE * x).sum() + float(len(for_the_collector) == 0)

    captured: Any = mg.capture(step)
    for i in range(20):
        if i in calls:
            Garbage()
        before = AVERAGE.numpy()
        assert captured(X).item() == (before * X).sum()
        assert gc.isenabled()
        gc.collect(0)
    assert len(COLLECTED) == len(tuple(calls))
    assert replays(captured) >= 16


def test_copies_and_pickles_of_captured_functions() -> None:
    assert pickle.loads(pickle.dumps(mg.capture(helper)))(X).numpy().tolist() == (3 * X).tolist()
    model = Scaled()
    model.step = mg.capture(model.forward)
    warm(model.step, X)
    other = copy.deepcopy(model)
    other.k = 4.0
    assert other.step(X).numpy().tolist() == (X * 8).tolist()
    assert model.step(X).numpy().tolist() == (X * 2).tolist()


def test_what_primitives_find_in_closures() -> None:
    strength, config = 1.0, {"levels": 4.0}

    @mg.primitive(x=lambda g, x: -strength * g)  # reverses the gradient
    def reverse(xp: Any, x: Any) -> Any:
        return xp.positive(x)

    @mg.primitive(x=lambda g, x: g)  # a gradient straight through
    def quantize(xp: Any, x: Any) -> Any:
        return xp.round(x * config["levels"]) / config["levels"]

    w = mg.tensor([0.3, 0.6], requires_grad=True)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = (quantize(reverse(w)) * x).sum()
        w.zero_grad()
        loss.backward()
        return loss

    warm(step, np.ones(2))
    assert step(np.ones(2)).item() == 0.75
    assert w.grad.data.tolist() == [-1, -1]  # type: ignore[union-attr]
    strength = 5.0
    warm(step, np.ones(2))
    assert w.grad.data.tolist() == [-5, -5]  # type: ignore[union-attr]
    config["levels"] = 64.0
    warm(step, np.ones(2))
    assert step(np.ones(2)).item() == (19 + 38) / 64
    assert replays(step) > 8


def test_numbers_in_objects_of_numpy() -> None:
    rate = np.poly1d([1.0, 0.0])

    def step(x: Any) -> Any:
        return x * rate(0.5)

    def change() -> None:
        rate[0] = 100.0

    changed_in_time(step, change)


def test_functions_with_an_attribute_of_the_name_that_operations_use() -> None:
    factor = 2.0

    def multiplied(x: Any) -> Any:
        return x * factor

    multiplied.operation = "double"  # type: ignore[attr-defined]

    def change() -> None:
        nonlocal factor
        factor = 3.0

    changed_in_time(lambda x: multiplied(x), change)
