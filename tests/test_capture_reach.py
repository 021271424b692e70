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
from typing import Any, NamedTuple

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


def test_keywords_in_another_order_and_defaults() -> None:
    step = mg.capture(lambda x, y=1.0, *, z: mg.tensor(x) - y * z)
    for _ in range(3):
        warm(lambda: step(x=X, y=0.5, z=2.0))
        assert step(z=np.ones(3), x=X).numpy().tolist() == (X - 1).tolist()
        assert step(z=np.ones(3) * 2, y=X, x=X).numpy().tolist() == (-X).tolist()
        assert step(y=X, x=X, z=np.ones(3) * 2).numpy().tolist() == (-X).tolist()


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
