"""mg.capture: replays leave and return the bits that the step itself does, or nothing is replayed."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.kernels import attention
from microgradnd.recording.instructions import CaptureError

OPTIMIZERS: dict[str, Callable[[Any], nn.Optimizer]] = {
    "sgd": lambda p: nn.SGD(p, 0.05),
    "momentum": lambda p: nn.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: nn.Adam(p, 1e-2, weight_decay=0.01),
    "adamw": lambda p: nn.AdamW(p, 1e-2),
    "rmsprop": lambda p: nn.RMSprop(p, 1e-3, momentum=0.5, centered=True),
}


@pytest.fixture(autouse=True)
def _numpy_kernels() -> Iterator[None]:
    with mg.kernels("numpy"):
        yield


def bits(*values: Any) -> list[bytes]:
    """The bytes of arrays and tensors, so that NaN equals NaN and 0.0 differs from -0.0."""
    return [np.asarray(x.numpy() if isinstance(x, mg.Tensor) else x).tobytes() for x in values]


def mlp(seed: int = 0) -> nn.Module:
    return nn.MLP([6, 8, 3], rng=seed)


def batches(count: int, rows: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((rows, 6), np.float32), rng.integers(0, 3, rows)) for _ in range(count)]


def training_step(model: nn.Module, optimizer: nn.Optimizer, max_norm: float | None = None) -> Callable[..., Any]:
    def step(X: Any, y: Any) -> mg.Tensor:
        optimizer.zero_grad()
        loss = nn.cross_entropy(model(X), y)
        loss.backward()
        if max_norm is not None:
            nn.clip_grad_norm(model.parameters(), max_norm)
        optimizer.step()
        return loss

    return step


def state(model: nn.Module, optimizer: nn.Optimizer) -> list[bytes]:
    """Everything that training changes."""
    found = bits(*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None))
    for slot in optimizer.state_dict()["state"]:
        found += [name.encode() for name in slot] + bits(*slot.values())
    return found + [str(generator.bit_generator.state).encode() for _, generator in model.named_generators()]


def assert_same_training(
    make: Callable[[], nn.Module], optimizer: str, data: list[Any], max_norm: float | None = None
) -> Any:
    """Train with and without capture: the same losses and the same state at every step. Returns the captured one."""
    pairs = []
    for _ in range(2):
        model = make()
        pairs.append((model, OPTIMIZERS[optimizer](model.parameters())))
    plain, captured = (training_step(*pair, max_norm) for pair in pairs)
    captured = mg.capture(captured)
    for i, (X, y) in enumerate(data):
        assert bits(plain(X, y)) == bits(captured(X, y)), i
        assert state(*pairs[0]) == state(*pairs[1]), i
    return captured


def replays(captured: Any) -> int:
    return sum(recording.calls for recording in captured.recordings)


# Equality


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_thousand_steps_leave_the_bits_of_the_step_itself(optimizer: str) -> None:
    captured = assert_same_training(mlp, optimizer, batches(1000))
    assert replays(captured) >= 990


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_transformers_with_dropout_and_clipping(optimizer: str, positions: str) -> None:
    def make() -> nn.Module:
        return nn.Transformer(7, 8, 2, 2, 6, positions=positions, dropout=0.2, rng=0)

    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 7, (3, 6)), rng.integers(0, 7, (3, 6))) for _ in range(6)]
    assert replays(assert_same_training(make, optimizer, data, max_norm=0.5)) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"gated": True, "activation": nn.SiLU},
        {"norm": nn.RMSNorm, "num_kv_heads": 1},
        {"activation": nn.Tanh, "tie_weights": False, "bias": False},
    ],
    ids=str,
)
def test_other_transformers(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 7, (2, 5)), rng.integers(0, 7, (2, 5))) for _ in range(5)]
    assert replays(assert_same_training(lambda: nn.Transformer(7, 8, 2, 1, 6, rng=0, **options), "adamw", data)) == 3


def test_attention_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK", 40)
    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 7, (2, 5)), rng.integers(0, 7, (2, 5))) for _ in range(5)]
    make = lambda: nn.Transformer(7, 8, 2, 1, 6, dropout=0.1, rng=0)  # noqa: E731
    assert replays(assert_same_training(make, "adamw", data)) == 3


def test_checkpointed_parts() -> None:
    model, other = mlp(), mlp()
    steps = []
    for m in (model, other):
        f = mg.checkpoint(m)

        def step(X: Any, f: Any = f, m: nn.Module = m) -> mg.Tensor:
            m.zero_grad()
            loss = (f(X) ** 2).mean()
            loss.backward()
            return loss

        steps.append(step)
    captured = mg.capture(steps[1])
    for X, _ in batches(5):
        assert bits(steps[0](X), *(p.grad for p in model.parameters())) == bits(
            captured(X), *(p.grad for p in other.parameters())
        )
    assert replays(captured) == 3


UNARY = [
    mg.exp, mg.tanh, mg.sigmoid, mg.relu, mg.gelu, mg.silu, mg.softmax, mg.log_softmax, mg.sin, mg.absolute, mg.erf,
    lambda x: x**2, lambda x: (x * x + 0.5) ** 0.5, lambda x: x[..., ::-1] + x[:, :1], lambda x: mg.concatenate([x, x]),
    lambda x: x.T.reshape(x.shape), lambda x: x.sum(axis=0, keepdims=True) + x, lambda x: mg.where(x > 0, x, 0.1 * x),
    lambda x: x.max(axis=1, keepdims=True) - x, lambda x: x - x.mean(), lambda x: x[[0, 0, -1]], lambda x: x.var() * x,
    lambda x: mg.maximum(x, -x), lambda x: mg.clip(x, -0.5, 0.5) * x, lambda x: mg.einsum("ij,kj->ik", x, x) @ x,
    lambda x: mg.logsumexp(x, axis=0) * x, lambda x: 1.0 / (1.0 + x * x), lambda x: -x % 0.7,
    lambda x: mg.stack([x, x])[1],
]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_random_functions(seed: int) -> None:
    """Values and gradients of random compositions, in float32 and float64."""
    rng = np.random.default_rng(seed)
    chosen = [UNARY[i] for i in rng.integers(0, len(UNARY), 5)]
    dtype = [np.float32, np.float64][seed % 2]
    weight = mg.tensor(rng.standard_normal((4, 3)).astype(dtype), requires_grad=True)

    def step(x: Any) -> tuple[mg.Tensor, mg.Tensor]:
        weight.zero_grad()
        z = weight * x
        skip = z
        for f in chosen:
            z = mg.tanh(f(z))
            skip = skip + z.mean()
        skip.sum().backward()
        return z, skip

    captured = mg.capture(step)
    for _ in range(5):
        x = rng.standard_normal((4, 3)).astype(dtype)
        expected = bits(*step(x), weight.grad)
        assert bits(*captured(x), weight.grad) == expected
    assert replays(captured) >= 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-42, 3e38])
def test_values_at_the_edge_of_the_range(value: float) -> None:
    data = batches(5)
    data[3][0][1, 2] = value
    with np.errstate(all="ignore"):
        assert_same_training(mlp, "adam", data)


def test_compiled_kernels() -> None:
    pytest.importorskip("numba")

    def make() -> nn.Module:
        return nn.Transformer(11, 64, 2, 1, 64, dropout=0.1, rng=0)

    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 11, (8, 64)), rng.integers(0, 11, (8, 64))) for _ in range(5)]
    with mg.kernels("numba"):
        first, captured = (assert_same_training(make, "adamw", data, max_norm=1.0) for _ in range(2))
    assert replays(first) >= 2  # one less where the step is the first to need a kernel
    assert replays(captured) == 3
    assert all(name in captured.source for name in ("layer_norm_gradient(", "bias_gelu(", "adam = adam_all_for("))


def test_a_thousand_steps_by_compiled_kernels() -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(1)
    data = [(rng.standard_normal((32, 64), np.float32), rng.integers(0, 10, 32)) for _ in range(20)] * 50
    with mg.kernels("numba"):
        captured = assert_same_training(lambda: nn.MLP([64, 160, 10], rng=0), "adam", data)
    assert replays(captured) >= 990
    assert "adam = adam_all_for(" in captured.source


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("classes", [10, 50])
def test_class_indices_out_of_range_are_refused_by_replays(kernels: str, classes: int) -> None:
    if kernels == "numba":
        pytest.importorskip("numba")
    with mg.kernels(kernels):
        model = nn.Linear(8, classes, rng=0)
        step = mg.capture(training_step(model, nn.SGD(model.parameters(), 0.1)))
        X, y = np.ones((300, 8), np.float32), np.zeros(300, np.int64)
        for _ in range(4):
            step(X, y)
        before = bits(*model.parameters())
        for wrong in (classes, -1, 1 << 40):
            y[7] = wrong
            with pytest.raises(IndexError, match=f"to {classes - 1}"):
                step(X, y)
            y[7] = 1
            assert bits(*model.parameters()) == before
            for _ in range(3):  # recorded again
                step(X, y)
            before = bits(*model.parameters())


# What is read anew


def test_learning_rates_and_schedules_are_read_anew() -> None:
    models = [mlp(), mlp()]
    optimizers = [nn.AdamW(model.parameters(), 1e-2) for model in models]
    schedules = [nn.WarmupCosineLR(optimizer, 3, 12) for optimizer in optimizers]
    plain, other = (training_step(m, o) for m, o in zip(models, optimizers, strict=True))
    captured = mg.capture(other)
    for X, y in batches(14):
        assert bits(plain(X, y)) == bits(captured(X, y))
        for schedule in schedules:
            schedule.step()
        assert state(models[0], optimizers[0]) == state(models[1], optimizers[1])
    assert replays(captured) == 12


def test_a_float_among_the_arguments_is_read_anew() -> None:
    weight = mg.tensor(np.ones(3, np.float32), requires_grad=True)

    @mg.capture
    def step(x: Any, *, rate: float) -> mg.Tensor:
        weight.zero_grad()
        (weight * x).sum().backward()
        weight.data -= rate * weight.grad.data  # type: ignore[union-attr]
        return weight

    x = np.array([1.0, 2.0, 3.0], np.float32)
    expected = np.ones(3, np.float32)
    for rate in (0.5, 0.25, 0.125, 0.1, 0.2):
        expected -= rate * x
        assert bits(step(x, rate=rate)) == bits(expected)
    assert replays(step) == 3


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_parameters_replaced_from_outside_are_used(optimizer: str) -> None:
    models = [mlp(), mlp()]
    optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in models]
    plain, other = (training_step(m, o) for m, o in zip(models, optimizers, strict=True))
    captured = mg.capture(other)
    saved = models[0].state_dict(), optimizers[0].state_dict()
    for i, (X, y) in enumerate(batches(16)):
        if i == 5:
            for model in models:
                model.parameters()[0].data = np.full((6, 8), 0.1, np.float32)
        if i == 8:
            for model in models:
                model.load_state_dict(saved[0])
        if i == 11:
            saved = models[0].state_dict(), optimizers[0].state_dict()
        if i == 13:
            for optimizer in optimizers:
                optimizer.load_state_dict(saved[1])
        assert bits(plain(X, y)) == bits(captured(X, y)), i
        assert state(models[0], optimizers[0]) == state(models[1], optimizers[1]), i
    assert replays(captured) >= 4


def test_arrays_in_closures_are_read_anew_when_changed_in_place_or_replaced() -> None:
    mask = np.ones(3)
    weight = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step() -> mg.Tensor:
        chosen = mask > 0.5  # with NumPy alone
        return (weight * chosen).sum()

    assert [step().item() for _ in range(3)] == [3.0, 3.0, 3.0]
    mask[0] = 0
    assert step().item() == 2.0
    mask = np.zeros(3)
    assert step().item() == 0.0
    mask = np.ones(6)[::2]
    assert step().item() == 3.0


# Recorded anew


def test_other_shapes_and_dtypes_are_recorded_anew_and_kept() -> None:
    step = mg.capture(lambda x: (x * 2).sum(axis=0))
    inputs = [np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 3), np.float32), np.ones((3, 2)).T, np.arange(3)[:, None]]
    for x in inputs * 4:
        np.testing.assert_array_equal(step(x), (x * 2).sum(axis=0))
        assert step(x).dtype == (x * 2).dtype
    assert len(step.recordings) == 5
    assert all(recording.calls >= 3 for recording in step.recordings)


def test_no_more_recordings_than_asked_for_are_kept() -> None:
    step = mg.capture(lambda x: x + 1, max_recordings=2)
    for n in range(1, 6):
        assert step(np.zeros(n)).shape == (n,)
    assert [recording.layout[0][0] for recording in step.recordings] == [(5,), (4,)]


def test_training_and_evaluation_mode_are_told_apart() -> None:
    model = nn.Sequential(nn.Linear(6, 4, rng=0), nn.Dropout(0.5, 0))
    other = nn.Sequential(nn.Linear(6, 4, rng=0), nn.Dropout(0.5, 0))
    step = mg.capture(lambda X: model(X).sum())
    for i, (X, _) in enumerate(batches(12)):
        for m in (model, other):
            m.train(i % 4 < 2)
        assert bits(step(X)) == bits(other(X).sum())
    assert len(step.recordings) == 2
    assert replays(step) == 9


def test_changed_settings_of_layers_and_optimisers_are_seen() -> None:
    models = [nn.Sequential(nn.Linear(6, 3, rng=0), nn.Dropout(0.5, 0)) for _ in range(2)]
    optimizers = [nn.SGD(model.parameters(), 0.1, momentum=0.5) for model in models]
    plain, other = (training_step(m, o) for m, o in zip(models, optimizers, strict=True))
    captured = mg.capture(other)
    for i, (X, y) in enumerate(batches(12)):
        for model, optimizer in zip(models, optimizers, strict=True):
            if i == 5:
                model.layers[1].p = 0.25
            if i == 8:
                optimizer.param_groups[0]["momentum"] = 0.0
        assert bits(plain(X, y)) == bits(captured(X, y)), i
        assert state(models[0], optimizers[0]) == state(models[1], optimizers[1]), i


def test_a_value_in_a_closure_is_seen() -> None:
    factor = 2.0
    step = mg.capture(lambda x: x * factor)
    for factor in (2.0, 2.0, 2.0, 3.0, 3.0, 3.0):
        assert step(np.ones(2)).tolist() == [factor, factor]


def test_no_grad_and_kernels_are_told_apart() -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step(x: Any) -> bool:
        return bool((weight * x).requires_grad)

    assert [step(np.ones(3)) for _ in range(3)] == [True] * 3
    with mg.no_grad():
        assert [step(np.ones(3)) for _ in range(3)] == [False] * 3
    assert step(np.ones(3))


def test_a_branch_on_a_value_goes_its_way() -> None:
    weight = mg.tensor(np.ones(2), requires_grad=True)

    def plain(x: Any, w: mg.Tensor) -> mg.Tensor:
        w.zero_grad()
        loss = (w * x).sum()
        if loss > 0:
            loss = loss * 2
        loss.backward()
        w.data -= 0.1 * w.grad.data  # type: ignore[union-attr]
        return loss

    other = mg.tensor(np.ones(2), requires_grad=True)
    step = mg.capture(lambda x: plain(x, weight))
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.standard_normal(2)
        assert bits(step(x), weight, weight.grad) == bits(plain(x, other), other, other.grad)
    assert replays(step) > 3


def test_a_branch_after_random_numbers_puts_the_generator_back() -> None:
    layers = [nn.Dropout(0.5, 0) for _ in range(2)]

    def apply(layer: nn.Module, x: Any) -> mg.Tensor:
        out = layer(mg.tensor(x))
        return out.sum() if out.sum() > 4 else out.mean()

    step = mg.capture(lambda x: apply(layers[0], x))
    for _ in range(20):
        assert bits(step(np.ones(6))) == bits(apply(layers[1], np.ones(6)))


# Refused


@pytest.mark.parametrize(
    "use",
    [
        lambda loss: loss.item(),
        float,
        lambda loss: f"{loss:.3f}",
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
    with pytest.raises(CaptureError, match="return the tensor from the step"):
        step(np.ones(2))
    assert isinstance(weight.data, np.ndarray)


def test_an_iterator_is_refused() -> None:
    data = itertools.cycle(np.arange(8.0).reshape(4, 2))
    step = mg.capture(lambda: mg.tensor(next(data)).sum())
    assert step().item() == 1.0
    with pytest.raises(CaptureError, match="calls next"):
        step()


def test_random_numbers_from_nowhere_are_refused() -> None:
    step = mg.capture(lambda x: mg.dropout(x, 0.5))
    for _ in range(2):
        step(np.ones(100))
    with pytest.raises(CaptureError, match="differ in the result"):
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
    hidden = iter([weight.data] * 10)
    weight.data += 0.0

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        for array in hidden:
            array *= 0.5
            break
        return (weight * x).sum()

    for _ in range(2):
        step(np.ones(2))
    with pytest.raises(CaptureError, match="differ in the result, weight"):
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
    with pytest.raises(CaptureError, match="count changes from call to call"):
        step(np.ones(1))
    assert count == 9


def test_results_put_into_a_list_are_refused_by_its_name() -> None:
    losses: list[Any] = []

    @mg.capture
    def step(x: Any) -> None:
        losses.append(mg.tensor(x).sum())

    for _ in range(9):
        step(np.ones(2))
    with pytest.raises(CaptureError, match="losses"):
        step(np.ones(2))
    assert all(isinstance(loss.data, np.ndarray) and loss.item() == 2.0 for loss in losses)


def test_a_branch_after_an_update_is_refused() -> None:
    weight = mg.tensor(np.ones(2), requires_grad=True)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        weight.data *= x
        return weight.sum() if weight.sum() > 1 else weight.mean()

    step(np.full(2, 0.5))
    with pytest.raises(CaptureError, match="Branch before"):
        step(np.full(2, 0.5))
    assert weight.data.tolist() == [0.25, 0.25]


def test_arguments_with_gradients_are_refused() -> None:
    step = mg.capture(lambda x: x.sum())
    step(mg.tensor([1.0], requires_grad=True))
    with pytest.raises(CaptureError, match="requires a gradient"):
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
    with pytest.raises(CaptureError, match="was recorded before"):
        kept[0]["array"] * 2


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a function"):
        mg.capture(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="generator or coroutine"):
        mg.capture(lambda: (yield))
    with pytest.raises(ValueError, match="at least 1"):
        mg.capture(len, max_recordings=0)
    with pytest.raises(CaptureError, match="nothing has been recorded"):
        mg.capture(lambda: None).source  # noqa: B018


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


def test_results_are_nobody_elses() -> None:
    weight = mg.tensor(np.ones(3), requires_grad=True)
    step = mg.capture(lambda x: {"all": [weight * x, (x, weight.sum())], "text": "as it is", "none": None})
    results = [step(np.full(3, float(i))) for i in range(5)]
    for i, result in enumerate(results):
        assert result["all"][0].numpy().tolist() == [i, i, i]
        assert result["all"][1][1].item() == 3.0
        assert result["text"] == "as it is"
        assert result["none"] is None
        assert not result["all"][0].requires_grad


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


# As a method, from threads, within another


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


# The text


def test_the_text_is_hand_written_backprop() -> None:
    model = mlp()
    step = mg.capture(training_step(model, nn.SGD(model.parameters(), 0.1)))
    for X, y in batches(4):
        step(X, y)
    lines = step.source.split("\n")
    for expected in (
        "def step(X, y):",
        "    # linear_relu",
        "    np.dot(X, layers_0_weight, out=linear_relu)  # (5, 8)",
        "    np.add(linear_relu, layers_0_bias, out=linear_relu)",
        "    # gradient of linear_relu",
        "    # SGD",
    ):
        assert expected in lines
    assert any(line.startswith("    np.subtract(layers_2_bias, ") for line in lines)
    assert any("out=d_layers_2_weight" in line for line in lines)
    assert "constant" not in step.source


def test_memory_is_shared_among_values_that_live_at_different_times() -> None:
    weights = [mg.tensor(np.eye(64), requires_grad=True) for _ in range(12)]

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        for weight in weights:
            x = mg.tanh(x @ weight)
        return x.sum()

    for _ in range(2):
        step(np.ones((64, 64)))
    assert step.recordings[0].program.memory <= 2 * 64 * 64 * 8


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_saved_step_needs_numpy_alone_and_goes_on_bit_for_bit(tmp_path: Path, optimizer: str, kind: str) -> None:
    rng = np.random.default_rng(3)
    if kind == "mlp":
        model: nn.Module = nn.Sequential(mlp(), nn.Dropout(0.1, 0))
        data = batches(8)
    else:
        model = nn.Transformer(7, 8, 2, 1, 6, dropout=0.2, rng=0)
        data = [(rng.integers(0, 7, (3, 6)), rng.integers(0, 7, (3, 6))) for _ in range(8)]
    step = mg.capture(training_step(model, OPTIMIZERS[optimizer](model.parameters()), 1.0))
    for X, y in data[:4]:
        step(X, y)
    step.save(tmp_path / "saved_step.py")
    np.savez(tmp_path / "data.npz", X=np.stack([X for X, _ in data[4:]]), y=np.stack([y for _, y in data[4:]]))
    script = (
        "import sys, numpy as np, saved_step\n"
        "data = np.load('data.npz')\n"
        "losses = [saved_step.step(X, y) for X, y in zip(data['X'], data['y'])]\n"
        "assert not any(name.startswith(('microgradnd', 'nn', 'numba')) for name in sys.modules)\n"
        "np.save('losses.npy', losses)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True)
    assert bits(np.load(tmp_path / "losses.npy")) == bits(np.array([step(X, y).numpy() for X, y in data[4:]]))


def test_saving_names_what_it_can_not_do(tmp_path: Path) -> None:
    step = mg.capture(lambda x: x + 1)
    for _ in range(2):
        step(np.ones(1))
    with pytest.raises(ValueError, match=r"step\.py"):
        step.save(tmp_path / "step.txt")
    pytest.importorskip("numba")
    with mg.kernels("numba"):
        kernel = mg.capture(lambda x: mg.gelu(x))
        for _ in range(3):
            kernel(np.ones(20000, np.float32))
        with pytest.raises(CaptureError, match=r"compiled kernel.*save\(path, x\)"):
            kernel.save(tmp_path / "kernel.py")
        with pytest.raises(CaptureError, match="unlike the recorded one in the arguments"):
            kernel.save(tmp_path / "kernel.py", np.ones(10, np.float32))
    with pytest.raises(CaptureError, match=r"unlike the recorded one in mg\.kernels"):
        kernel.save(tmp_path / "kernel.py", np.ones(20000, np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_by_compiled_kernels_is_saved_with_numpys_functions(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on from where it was, which saving does not change."""
    pytest.importorskip("numba")
    with mg.kernels("numba"):
        model = nn.Sequential(nn.Linear(24, 64, rng=0), nn.ReLU(), nn.Dropout(0.2, rng=1), nn.Linear(64, 5, rng=2))
        updates = OPTIMIZERS[optimizer](model.parameters())
        step = mg.capture(training_step(model, updates))
        rng = np.random.default_rng(3)
        X, y = rng.standard_normal((32, 24), np.float32), rng.integers(0, 5, 32)
        for _ in range(4):
            step(X, y)
        before, calls = state(model, updates), replays(step)  # one less where the step is the first to need a kernel
        assert calls >= 1
        step.save(tmp_path / f"kept_{optimizer}.py", X, y)
        assert state(model, updates) == before
        assert replays(step) == calls
        monkeypatch.syspath_prepend(tmp_path)
        kept = importlib.import_module(f"kept_{optimizer}")
        losses = [(float(kept.step(X, y)), step(X, y).item()) for _ in range(5)]
    assert "numba" not in (tmp_path / f"kept_{optimizer}.py").read_text()
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    assert replays(step) == calls + 5


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_parameters_of_one_element(optimizer: str, shape: tuple[int, ...]) -> None:
    weights = []
    for capture in (False, True):
        w = mg.tensor(np.random.default_rng(0).standard_normal((4, 3), np.float32), requires_grad=True)
        z = mg.tensor(np.full(shape, 0.5, np.float32), requires_grad=True)
        updates = OPTIMIZERS[optimizer]([w, z])

        def step(x: Any, w: mg.Tensor = w, z: mg.Tensor = z, updates: nn.Optimizer = updates) -> mg.Tensor:
            updates.zero_grad()
            loss = ((w * z + x) ** 2).mean() * z.sum()
            loss.backward()
            updates.step()
            return loss

        call: Any = mg.capture(step) if capture else step
        for seed in range(6):
            call(np.random.default_rng(seed).standard_normal((4, 3), np.float32))
        weights.append(bits(w, z))
        assert not capture or replays(call) >= 3
    assert weights[0] == weights[1]


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_parameters_without_elements(optimizer: str) -> None:
    """Nothing is computed with the number of the step, which is counted all the same."""
    w = mg.tensor(np.ones((0, 3), np.float32), requires_grad=True)
    updates = OPTIMIZERS[optimizer]([w])

    def train(x: Any) -> mg.Tensor:
        updates.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        updates.step()
        return loss

    step: Any = mg.capture(train)
    for i in range(5):
        assert step(np.float32(i)).item() == 0
        assert updates.state_dict()["state"][0].get("step", i + 1) == i + 1
    assert replays(step) == 3


def test_a_step_without_arguments_is_saved_with_numpys_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    x = np.random.default_rng(0).standard_normal((50, 40), np.float32)
    with mg.kernels("numba"):
        step = mg.capture(lambda: mg.gelu(x))
        for _ in range(3):
            step()
        step.save(tmp_path / "without_arguments.py")
    monkeypatch.syspath_prepend(tmp_path)
    np.testing.assert_allclose(importlib.import_module("without_arguments").step(), mg.gelu(x).data, rtol=1e-5)


def test_recording_and_verifying_take_the_memory_of_the_step_and_of_what_it_changes() -> None:
    model = nn.Sequential(nn.Linear(128, 512, rng=0), nn.GELU(), nn.Linear(512, 128, rng=1))
    changed = sum(p.data.nbytes for p in model.parameters())
    x = mg.tensor(np.ones((2048, 128), np.float32))
    optimizer = nn.SGD(model.parameters(), 0.1)

    def step(x: Any) -> mg.Tensor:
        optimizer.zero_grad()
        loss: mg.Tensor = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss

    def peak(step: Callable[..., Any]) -> int:
        tracemalloc.start()
        try:
            for _ in range(4):  # run, recorded, verified, replayed
                step(x)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(mg.capture(step))  # imports what recording needs
    captured = mg.capture(step)
    assert peak(captured) < peak(step) + 1.5 * changed
    assert captured.recordings[0].calls == 2


def test_a_replay_that_differs_leaves_what_the_step_leaves() -> None:
    """Of an input, an argument, an array in a tuple and a gradient, each changed in place: by the step alone, once."""

    def run(decorate: Callable[..., Any]) -> tuple[list[Any], list[str]]:
        w = mg.tensor(np.ones(3), requires_grad=True)
        pair, x, scale = (np.zeros(3), 1.0), mg.tensor(np.full(3, 2.0)), mg.tensor(np.ones(3))
        hidden = iter([scale.data] * 10)

        def step(x: Any) -> mg.Tensor:
            (w * x).sum().backward()  # adds to the gradient
            x.data += w.data
            pair[0][...] += x.data
            w.data += 1
            for array in hidden:
                array *= 2.0  # which the recording does not see
                break
            return mg.tensor(w.data * scale.data)

        captured, messages = decorate(step), []
        for _ in range(4):
            try:
                captured(x)
            except CaptureError as error:
                messages.append(str(error))
        assert w.grad is not None
        return [x.numpy(), w.numpy(), w.grad.numpy(), pair[0], scale.numpy()], messages

    ours, messages = run(mg.capture)
    expected, _ = run(lambda step: step)
    assert ["(This call was done without capture.)" in message for message in messages] == [True]
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_by_numpy_needs_no_numba() -> None:
    """It is not even loaded, which takes half a second."""
    code = (
        "import sys, numpy as np, microgradnd as mg, nn\n"
        "mg.kernels('numpy')\n"
        "layer = nn.Linear(16, 40, rng=0)\n"
        "step = mg.capture(lambda x: mg.relu(layer(x)))\n"
        "for _ in range(4): step(np.ones((32, 16), np.float32))\n"
        "assert step.recordings[0].calls > 1\n"
        "assert not {'numba', 'llvmlite'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[1], timeout=120)
