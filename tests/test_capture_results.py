"""mg.capture: gradients and results are nobody else's."""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import batches, bits, mlp, replays, training_step

pytestmark = pytest.mark.usefixtures("numpy_kernels")


# Gradients, results and aliases


def test_gradients_that_somebody_holds_stay_what_they_are() -> None:
    model = mlp()
    step = mg.capture(training_step(model, nn.SGD(model.parameters(), 0.1)))
    held, copies = [], []
    for i, (X, y) in enumerate(batches(12)):
        step(X, y)
        if i % 3 == 2:
            gradients = [p.grad for p in model.parameters()]
            held += [gradients[0], gradients[1].data, gradients[2].data[0]]  # type: ignore[union-attr]
            copies += [np.array(x.numpy() if isinstance(x, mg.Tensor) else x) for x in held[-3:]]
    assert bits(*held) == bits(*copies)
    assert replays(step) >= 9


@pytest.mark.parametrize("clears_before", [True, False])
def test_gradients_and_states_of_earlier_calls_leave_memory(clears_before: bool) -> None:
    weight = mg.tensor(np.eye(4), requires_grad=True)
    state = {"hidden": np.ones((3, 4))}

    def step(x: Any) -> None:
        if clears_before:
            weight.zero_grad()
        hidden = mg.tanh(x @ weight + state["hidden"])
        hidden.sum().backward()
        state["hidden"] = hidden.detach().data
        if not clears_before:
            weight.data -= 0.1 * weight.grad.data  # type: ignore[union-attr]
            weight.zero_grad()

    step = mg.capture(step)
    seen: list[Any] = []
    for i in range(6):
        step(np.full((3, 4), float(i)))
        seen.append([weakref.ref(x) for x in (weight._node.grad, state["hidden"]) if x is not None])  # type: ignore[union-attr]
    gc.collect()
    assert replays(step) >= 3
    now = [weight._node.grad, state["hidden"]]  # type: ignore[union-attr]
    for ref in itertools.chain(*seen):
        assert ref() is None or any(ref() is x for x in now)


def test_a_state_that_shares_memory_with_a_parameter_and_parts_from_it() -> None:
    def trained(capture: bool) -> list[Any]:
        base = np.arange(3.0)
        parameter, state = mg.tensor(np.ones(3)), {"v": base}
        parameter.data = base

        def step(x: Any) -> None:
            y = state["v"] * 1.0
            parameter.data += x
            state["v"] = y + x

        called = mg.capture(step) if capture else step
        for i in range(9):
            called(np.full(3, i + 1.0))
            if i < 3:
                state["v"] = base
        assert not capture or replays(called) >= 3
        return [parameter, state["v"]]

    assert bits(*trained(True)) == bits(*trained(False))


@pytest.mark.parametrize("swaps", [True, False])
def test_backward_refuses_a_graph_of_what_a_replay_changes_and_takes_away(swaps: bool) -> None:
    a, b = mg.tensor(np.ones(3)), mg.tensor(np.full(3, 2.0))
    weight = mg.tensor(np.ones(3), requires_grad=True)

    def step(x: Any) -> None:
        a.data += x
        if swaps:
            a.data, b.data = b.data, a.data
        else:
            a.data = a.data * 0.5

    step = mg.capture(step)
    for i in range(8):
        loss = (weight * a).sum()
        step(np.full(3, i + 1.0))
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()
    assert replays(step) >= 4


def test_backward_refuses_a_graph_of_what_shared_memory_with_a_state() -> None:
    base = np.arange(3.0)
    parameter, weight = mg.tensor(np.ones(3)), mg.tensor(np.ones(3), requires_grad=True)
    parameter.data, state = base, {"v": base}

    @mg.capture
    def step(x: Any) -> None:
        state["v"] = np.zeros(3) + x
        parameter.data += x

    for i in range(6):
        loss = (weight * parameter).sum()
        step(np.full(3, i + 1.0))
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()
        state["v"] = base
    assert replays(step) >= 3


def test_states_that_share_memory_and_change_in_place() -> None:
    whole = np.ones((3, 4))
    state = {"whole": whole, "part": whole[1:]}

    @mg.capture
    def step(x: Any) -> None:
        state["part"] += x[1:]
        state["whole"] = state["whole"] + 1
        state["part"] = state["whole"][1:]

    step(np.ones((3, 4)))
    with pytest.raises(mg.CaptureError, match="shares memory"):
        step(np.ones((3, 4)))


@pytest.mark.parametrize("size", [3, 1 << 17])
def test_results_are_nobody_elses(size: int) -> None:
    """Small ones are copied from a buffer, large ones made anew."""
    weight = mg.tensor(np.ones(size), requires_grad=True)

    def returned(x: Any) -> Any:
        y = weight * x
        return {"all": [y, (y * x - 1, weight.sum(), y[1:] + x[1:])], "text": "as it is", "none": None}

    step = mg.capture(returned)
    results = [step(np.full(size, float(i))) for i in range(5)]
    for i, result in enumerate(results):
        y, (z, total, part) = result["all"]
        for array, value in ((y, i), (z, i * i - 1), (part, 2 * i)):
            assert not array.requires_grad
            assert (array.numpy() == value).all()
        assert total.item() == size
        assert result["text"] == "as it is"
        assert result["none"] is None
    assert replays(step) == 3
    assert ("copy()" in step.source) is (size == 3)


@pytest.mark.parametrize("size", [5, 300])
def test_results_lie_in_memory_as_those_of_the_step(size: int) -> None:
    """What is computed from them next, such as a sum, may depend on it in its last bits."""
    constant = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 2)))

    def results(x: Any) -> list[Any]:
        y = mg.tanh(x)
        return [y.T, y[:, ::-1].T, np.zeros_like(x.data.T), np.full_like(x.data.T, 3.0) * x.data[0, 0], y, y[1:, 1:],
                mg.transpose(y[None], (2, 0, 1)), constant]  # fmt: skip

    captured = mg.capture(results)
    for seed in range(4):
        x = mg.tensor(np.random.default_rng(seed).standard_normal((size, size + 1)).astype(np.float32))
        for found, expected in zip(captured(x), results(x), strict=True):
            a, b = (t.data if isinstance(t, mg.Tensor) else t for t in (found, expected))
            assert bits(a.sum(axis=0), a.ravel("K")) == bits(b.sum(axis=0), b.ravel("K"))
    assert replays(captured) == 2


@pytest.mark.parametrize("size", [4, 1 << 17])
def test_results_of_one_call_share_no_memory(size: int) -> None:
    def results(x: Any) -> Any:
        y, z = x * 2, x + 1
        return [y[1:], y, y, y.reshape(2, -1), z[:2], z[-1], (x - 1).reshape(2, -1)]

    captured = mg.capture(results)
    for seed in range(4):
        x = mg.tensor(np.random.default_rng(seed).standard_normal(size))
        found = captured(x)
        assert bits(*found) == bits(*results(x))
    arrays = [r.data for r in found]
    for i, array in enumerate(arrays):
        assert not any(np.shares_memory(array, other) for other in arrays[:i])
        assert array.base is None or array.base.size == array.size, "a part that keeps all of another array"
    assert "np.add(x, 1, add)" in captured.source  # into a buffer, of which parts are handed out
    assert captured.source.count("copy()") == (6 if size == 4 else 4)


def test_backward_refuses_a_graph_whose_parameters_a_replay_has_changed() -> None:
    model = mlp()
    step = mg.capture(training_step(model, nn.SGD(model.parameters(), 0.1)))
    data = batches(5)
    for X, y in data[:4]:
        step(X, y)
    loss = nn.cross_entropy(model(data[4][0]), data[4][1])
    step(*data[4])
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_gradients_accumulate_over_calls() -> None:
    weights = [mg.tensor(np.ones(2), requires_grad=True) for _ in range(2)]

    def add(weight: mg.Tensor, x: Any) -> None:
        (weight * x).sum().backward()

    captured = mg.capture(lambda x: add(weights[1], x))
    for i in range(8):
        x = np.array([1.0, i])
        add(weights[0], x)
        captured(x)
        if i == 5:
            for weight in weights:
                weight.zero_grad()
        assert (weights[0].grad is None) == (weights[1].grad is None)
        if weights[0].grad is not None:
            assert bits(weights[0].grad) == bits(weights[1].grad)
    assert replays(captured) >= 4


@pytest.mark.parametrize("clear", ["the parameter", "the optimiser", "None"])
def test_micro_batches_add_up_where_gradients_are_cleared_outside(clear: str) -> None:
    """Nobody looks at the gradients between two calls: what a replay left there is to be added to."""

    def train(capture: Any) -> list[Any]:
        w = mg.tensor(np.ones(3), requires_grad=True)
        optimizer = nn.SGD([w], 0.01)

        @capture
        def micro(x: Any) -> mg.Tensor:
            loss = (x * w).sum()
            loss.backward()
            return loss

        found = []
        for i in range(8):
            for k in range(2 + i % 2):
                micro(np.full(3, 10.0**k))
            optimizer.step()
            found.append(w.numpy().tolist())
            {"the parameter": w.zero_grad, "the optimiser": optimizer.zero_grad}.get(clear, lambda: None)()
            if clear == "None":
                w.grad = None
        return found

    assert train(mg.capture) == train(lambda step: step)


def test_a_step_that_clears_gradients_after_itself_and_one_that_does_not() -> None:
    def train(capture: Any) -> tuple[list[Any], Any]:
        w = mg.tensor(np.ones(3), requires_grad=True)

        @capture
        def step(x: Any, clear: bool) -> mg.Tensor:
            loss = (x * w * w).sum()
            loss.backward()
            w.data -= 0.1 * w.grad.data  # type: ignore[union-attr]
            if clear:
                w.zero_grad()
            return loss

        return [step(X, i % 3 == 2).item() for i in range(24)], step

    X = np.arange(1.0, 4.0)
    found, step = train(mg.capture)
    assert found == train(lambda step: step)[0]
    assert replays(step) >= 12


def test_the_same_array_twice_and_two_arrays() -> None:
    step = mg.capture(lambda x, y: (x * 2 + y, y.copy()))
    x, y = np.arange(3.0), np.ones(3)
    for a, b in [(x, x), (x, x), (x, y), (y, x), (y, y), (x, x)]:
        first, second = step(a, b)
        assert bits(first, second) == bits(a * 2 + b, b)


def test_arguments_that_are_changed_in_place() -> None:
    def step(x: Any) -> Any:
        x -= x.mean()
        x[0] = 5
        return (mg.tensor(x) * 2).sum()

    captured = mg.capture(step)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.standard_normal(4)
        y = x.copy()
        assert bits(captured(x), x) == bits(step(y), y)
    assert replays(captured) == 3


def test_results_take_the_memory_of_what_is_read_through_a_view() -> None:
    """Where the view lies in memory as the result does."""

    def step(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        a = (x * 2).reshape(6, 4) + y
        b = (a * 3)[::-1] + y  # from the end: not there
        c = (b * 2).reshape(4, 6).swapaxes(0, 1) * b.reshape(6, 4)  # two arrays, one of which lies otherwise
        return c + 1

    captured = mg.capture(step)
    x, y = mg.tensor(np.arange(24.0).reshape(2, 12)), mg.tensor(np.arange(24.0).reshape(6, 4))
    for _ in range(4):
        np.testing.assert_array_equal(captured(x, y).data, step(x, y).data)
        x = x + 1
    places = dict(re.findall(r"^(\w+) = np.ndarray\(.*?, memory, (\d+)", captured.source, re.MULTILINE))
    assert places["add"] == places["multiply"]
    assert places["add_1"] != places["multiply_1"]


@pytest.mark.parametrize("reduction", ["sum", "mean", "prod"])
def test_reductions_of_what_lies_backwards(reduction: str) -> None:
    """Which NumPy 2.0 does in another order where it is told where to put the result."""

    def step(x: Any) -> Any:
        y = x * 2
        return [getattr(y[::-1], reduction)(axis=0), getattr(np, reduction)(y[:, ::-1], axis=1), np.add.reduce(y[::-1])]

    captured = mg.capture(step)
    for seed in range(4):
        x = np.random.default_rng(seed).uniform(0.4, 0.6, (300, 64)).astype(np.float32)
        assert bits(*captured(x)) == bits(*step(x))
    assert replays(captured) == 2


def test_arrays_without_elements_of_two_dtypes() -> None:
    def step(x: Any) -> Any:
        sums = [np.zeros((0, 3), dtype=dtype, like=x).sum() for dtype in (np.float32, np.float64, np.float32)]
        return [x * (total + 0.1) for total in sums]

    captured = mg.capture(step)
    for seed in range(4):
        x = np.random.default_rng(seed).standard_normal(3, np.float32)
        assert bits(*captured(x)) == bits(*step(x))
    assert captured.source.count("np.zeros((0, 3)") == 2


def test_an_argument_called_as_a_buffer_in_another_shape_would_be() -> None:
    captured = mg.capture(lambda x, reshape_as_4_3: (x.T.reshape(12) * 2).sum() + reshape_as_4_3.sum())
    for seed in range(4):
        x, y = np.random.default_rng(seed).standard_normal((2, 3, 4))
        assert captured(x, y) == pytest.approx((x * 2).sum() + y.sum())
    assert "reshape_as_4_3_1 = reshape.reshape((4, 3))" in captured.source


def test_in_place_work_on_views_of_results() -> None:
    def step(x: Any) -> Any:
        out = np.zeros((3, 4), like=x)
        out[1:] += x[:2] * 2
        out.T[0] = 7
        flat = out.reshape(-1)
        flat[::5] *= -1
        flat[[1, 1, 2]] += 1
        np.maximum(out, 0.5, out=out)
        out[out > 6] = 6
        return out, flat.sum(), out[::-1].copy()

    captured = mg.capture(step)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x = rng.standard_normal((3, 4))
        assert bits(*captured(x)) == bits(*step(x))
    assert replays(captured) == 3


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_views_of_gradients_that_somebody_holds(axes: tuple[int, ...]) -> None:
    w = mg.tensor(np.ones((4, 3, 2)).transpose(axes), requires_grad=True)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = ((w * x) ** 2).sum()
        loss.backward()
        return loss

    kept = []
    for i in range(8):
        w.zero_grad()
        step(np.full((4, 3, 2), i + 1.0).transpose(axes))
        kept.append(w.grad.data[0])  # type: ignore[union-attr]
    assert [row.min() for row in kept] == [row.max() for row in kept] == [2.0 * (i + 1) ** 2 for i in range(8)]
    assert replays(step) == 6
