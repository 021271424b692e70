"""mg.capture: what can't be recorded (values as numbers, raw arrays, iterators) is refused; errors change nothing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import batches, bits, mlp, replays, training_step

pytestmark = pytest.mark.usefixtures("numpy_kernels")


# Refused


@pytest.mark.parametrize(
    "use",
    [
        lambda loss: loss.item(),
        float,
        lambda loss: f"{loss:.3f}",
        repr,
        lambda loss: f"{loss}",
        lambda loss: np.array_repr(loss.data),
        lambda loss: str(loss.data),
        lambda loss: f"{[loss.data]}",
        lambda loss: np.asarray(loss.detach()),
        lambda loss: loss.numpy().tolist(),
        lambda loss: [1, 2, 3][loss.astype(int)],
    ],
)
def test_values_as_python_numbers_are_refused(use: Callable[[Any], Any]) -> None:
    weight = mg.tensor(np.ones(2), requires_grad=True)

    @mg.capture
    def step(x: Any) -> Any:
        return use((weight * x).sum())

    step(np.ones(2))
    with pytest.raises(mg.CaptureError, match="return the tensor from the step"):
        step(np.ones(2))
    assert isinstance(weight.data, np.ndarray)


@pytest.mark.parametrize("n", [np.int64(3), np.float32(3)])
@pytest.mark.parametrize("use", [int, float, round, lambda n: f"{n:.1f}"])
def test_values_of_numpys_numbers_among_the_arguments_are_refused(n: Any, use: Callable[[Any], Any]) -> None:
    step = mg.capture(lambda x, n: (x * n, use(n))[0])
    step(np.ones(2), n)
    with pytest.raises(mg.CaptureError, match=r"the value of n was asked for, a .* hand over int\(n\) or float\(n\)"):
        step(np.ones(2), n)


def test_whose_memory_an_array_shares_is_refused() -> None:
    whole = np.ones(6)
    part = whole[:3]
    step = mg.capture(lambda x: x * part.base[4])
    step(np.ones(2))
    with pytest.raises(mg.CaptureError, match="base of part is asked for"):
        step(np.ones(2))


def test_an_iterator_is_refused() -> None:
    data = itertools.cycle(np.arange(8.0).reshape(4, 2))
    step = mg.capture(lambda: mg.tensor(next(data)).sum())
    assert step().item() == 1.0
    with pytest.raises(mg.CaptureError, match="calls next"):
        step()


def test_random_numbers_from_nowhere_are_refused() -> None:
    step = mg.capture(lambda x: mg.dropout(x, 0.5))
    for _ in range(2):
        step(np.ones(100))
    with pytest.raises(mg.CaptureError, match="differ in the result"):
        step(np.ones(100))


def test_random_numbers_from_a_generator_in_a_closure_are_drawn_anew() -> None:
    rngs = [np.random.default_rng(0) for _ in range(2)]
    rng = rngs[0]
    step = mg.capture(lambda x: x + rng.normal(size=3) + rng.integers(0, 5, 3))
    for _ in range(5):
        assert bits(step(np.ones(3))) == bits(1.0 + rngs[1].normal(size=3) + rngs[1].integers(0, 5, 3))
    assert replays(step) == 3


def test_work_on_raw_arrays_is_seen() -> None:
    """Weight decay and momentum written with NumPy on parameters' arrays."""
    results = []
    for capture in (False, True):
        model = mlp()
        velocity = [np.zeros_like(p.data) for p in model.parameters()]

        def step(X: Any, y: Any, model: nn.Module = model, velocity: list[Any] = velocity) -> mg.Tensor:
            model.zero_grad()
            loss = nn.cross_entropy(model(X), y)
            loss.backward()
            for p, v in zip(model.parameters(), velocity, strict=True):
                array = p.data
                array *= 0.999
                v *= 0.9
                np.add(v, p.grad.data, out=v)  # type: ignore[union-attr]
                p.data = p.data - 0.1 * v
            return loss

        if capture:
            step = mg.capture(step)
        results.append([bits(step(X, y), *model.parameters(), *velocity) for X, y in batches(8)])
    assert results[0] == results[1]
    assert replays(step) >= 5


def test_work_on_arrays_that_are_out_of_reach_is_refused() -> None:
    weight = mg.tensor(np.ones(2), requires_grad=True)
    hidden = itertools.cycle([weight.data])
    weight.data += 0.0

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        for array in hidden:
            array *= 0.5
            break
        return (weight * x).sum()

    for _ in range(2):
        step(np.ones(2))
    with pytest.raises(mg.CaptureError, match="differ in the result, weight"):
        step(np.ones(2))
    assert weight.data.tolist() == [0.125, 0.125]  # that of the step itself


def test_a_counter_is_refused_by_its_name() -> None:
    count = 0

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        nonlocal count
        count += 1
        return mg.tensor(x) * count

    for i in range(9):
        assert step(np.ones(1)).item() == i + 1
    with pytest.raises(mg.CaptureError, match="count changes from call to call"):
        step(np.ones(1))
    assert count == 9


def test_calls_that_raise_the_steps_own_error_are_no_reason_to_refuse() -> None:
    offset = 0.0

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = mg.tensor(x).sum() + offset
        if not mg.isfinite(loss):
            raise FloatingPointError("skipped")
        return loss

    for _ in range(4):
        step(np.ones(2))
    offset = 1.0
    for _ in range(10):
        with pytest.raises(FloatingPointError, match="skipped"):
            step(np.full(2, np.nan))
    assert [step(np.ones(2)).item() for _ in range(4)] == [3.0] * 4


@pytest.mark.parametrize("change", ["eval", "freeze", "replace"])
def test_one_change_is_no_reason_to_refuse_calls_of_many_kinds(change: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.Dropout(0.1, rng=1), nn.Linear(4, 1, rng=2))
    model.scale = 1.0
    step = mg.capture(lambda x: model(x).sum() * model.scale, max_recordings=12)
    kinds = [np.ones((n, 3), np.float32) for n in range(2, 14)]
    for turn in range(8):
        if turn == 4:
            model.eval()
            if change == "freeze":
                model.layers[0].weight.requires_grad = False
            elif change == "replace":
                model.scale = np.ones(())
        for x in kinds:
            found = step(x)
            if turn > 3:
                assert found.item() == (model(x).sum() * model.scale).item()
    assert all(recording.calls > 1 for recording in step.recordings)
    assert len(step.recordings) == 12


def test_results_put_into_a_list_are_refused_by_its_name() -> None:
    losses: list[Any] = []

    @mg.capture
    def step(x: Any) -> None:
        losses.append(mg.tensor(x).sum())

    for _ in range(9):
        step(np.ones(2))
    with pytest.raises(mg.CaptureError, match="losses"):
        step(np.ones(2))
    assert all(isinstance(loss.data, np.ndarray) and loss.item() == 2.0 for loss in losses)


def test_a_branch_after_an_update_is_refused() -> None:
    weight = mg.tensor(np.ones(2), requires_grad=True)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        weight.data *= x
        return weight.sum() if weight.sum() > 1 else weight.mean()

    step(np.full(2, 0.5))
    with pytest.raises(mg.CaptureError, match="Branch before"):
        step(np.full(2, 0.5))
    assert weight.data.tolist() == [0.25, 0.25]


def test_arguments_with_gradients_are_refused() -> None:
    step = mg.capture(lambda x: x.sum())
    step(mg.tensor([1.0], requires_grad=True))
    with pytest.raises(mg.CaptureError, match="requires a gradient"):
        step(mg.tensor([1.0], requires_grad=True))


def test_arrays_kept_from_a_recording_are_refused() -> None:
    kept: Any = ({},)  # a mapping that is out of reach: in a generator
    holder: Iterator[Any]

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        for mapping in holder:
            mapping["array"] = mg.tensor(x) * 2
        return mg.tensor(x) * 3

    holder = (x for x in ())
    step(np.ones(2))
    holder = (x for x in kept)
    step(np.ones(2))
    with pytest.raises(mg.CaptureError, match="was recorded before"):
        kept[0]["array"] * 2


def test_a_decorator_with_settings() -> None:
    @mg.capture(max_recordings=2)
    def step(x: Any) -> Any:
        return x + 1

    assert step.max_recordings == 2
    assert [step(np.full(n, 1.0)).size for n in (1, 2, 3, 1)] == [1, 2, 3, 1]
    with pytest.raises(ValueError, match="at least 1"):
        mg.capture(max_recordings=0)(len)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a function"):
        mg.capture(3)  # type: ignore[arg-type]

    class Yielding:
        def __call__(self) -> Any:
            yield 1

    for step in (lambda: (yield), functools.partial(lambda x: (yield x), 1), Yielding()):
        with pytest.raises(TypeError, match="generator or coroutine"):
            mg.capture(step)
    with pytest.raises(ValueError, match="at least 1"):
        mg.capture(len, max_recordings=0)
    with pytest.raises(TypeError, match=r"max_recordings must be an integer, got 2\.5"):
        mg.capture(len, max_recordings=2.5)  # type: ignore[call-overload]
    captured = mg.capture(lambda: mg.tensor(1.0) * 2)
    for calls in range(2):
        with pytest.raises(mg.CaptureError, match="nothing has been recorded yet; call the step twice first"):
            captured.source  # noqa: B018
        captured()
        assert len(captured.recordings) == calls
    assert "def step" in captured.source


# Errors


def test_errors_are_those_of_the_step_and_change_nothing() -> None:
    model = mlp()
    optimizer = nn.Adam(model.parameters(), 0.1)
    step = mg.capture(training_step(model, optimizer))
    data = batches(6)
    for X, y in data[:5]:
        step(X, y)
    before = bits(*model.parameters())
    with pytest.raises(IndexError, match="class indices must lie in 0 to 2, got"):
        step(data[5][0], np.full(5, 7))
    assert bits(*model.parameters()) == before
    step(*data[5])
    with pytest.raises(TypeError):
        step(data[0][0])


def test_an_error_in_the_recording_leaves_everything_whole() -> None:
    model = mlp()
    optimizer = nn.Adam(model.parameters(), 0.1)
    step = mg.capture(training_step(model, optimizer))
    with pytest.raises(ValueError, match="cross_entropy"):
        step(np.ones((5, 6), np.float32), np.zeros(4, int))
    assert all(isinstance(p.data, np.ndarray) for p in model.parameters())
    losses = [step(X, y).item() for X, y in batches(5)]
    assert np.isfinite(losses).all()
    assert (mg.tensor([1.0, 2.0]) * 2).numpy().tolist() == [2.0, 4.0]
