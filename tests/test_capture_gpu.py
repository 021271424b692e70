"""mg.capture on CuPy arrays: replays leave the bits of the step itself, with no more launches, copies or waiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.backends import NAMESPACES
from microgradnd.noting import noted
from microgradnd.recording.instructions import CaptureError
from tests.training_steps import OPTIMIZERS, bits, replays, state, training_step


def mlp() -> nn.Module:
    return nn.MLP([6, 8, 3], rng=0).to("cuda")


def transformer(dropout: float = 0.0, **options: Any) -> nn.Module:
    return nn.Transformer(7, 8, 2, 1, 6, dropout=dropout, rng=0, **options).to("cuda")


def rows(cupy: Any, count: int, seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    batches = [(rng.standard_normal((5, 6), np.float32), rng.integers(0, 3, 5)) for _ in range(count)]
    return [(cupy.asarray(X), cupy.asarray(y)) for X, y in batches]


def tokens(cupy: Any, count: int) -> list[Any]:
    rng = np.random.default_rng(1)
    return [tuple(cupy.asarray(rng.integers(0, 7, (3, 6))) for _ in "Xy") for _ in range(count)]


class Pair:
    """Two of a model, one trained by the step itself and one by a captured one: they are the same after each call."""

    def __init__(self, make: Callable[[], nn.Module], optimizer: str, max_norm: float | None = None) -> None:
        self.models = [make(), make()]
        self.optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in self.models]
        steps = [training_step(*both, max_norm) for both in zip(self.models, self.optimizers, strict=True)]
        self.plain, self.captured = steps[0], mg.capture(steps[1])

    def call(self, X: Any, y: Any, message: Any = None) -> None:
        assert bits(self.plain(X, y)) == bits(self.captured(X, y)), message
        states = [state(*both) for both in zip(self.models, self.optimizers, strict=True)]
        assert states[0] == states[1], message

    def change(self, change: Callable[[nn.Module, nn.Optimizer], Any]) -> None:
        for both in zip(self.models, self.optimizers, strict=True):
            change(*both)


# Equality


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps_leave_the_bits_of_the_step_itself(cupy: Any, optimizer: str) -> None:
    pair = Pair(mlp, optimizer)
    for i, batch in enumerate(rows(cupy, 20)):
        pair.call(*batch, i)
    assert replays(pair.captured) >= 16
    assert all(type(p.data) is cupy.ndarray for p in pair.models[1].parameters())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_transformers_with_dropout_and_clipping(cupy: Any, positions: str) -> None:
    pair = Pair(lambda: transformer(0.2, positions=positions), "adamw", max_norm=0.5)
    for i, batch in enumerate(tokens(cupy, 20)):
        pair.call(*batch, i)
    assert replays(pair.captured) >= 16


@pytest.mark.parametrize(
    "options",
    [{"gated": True, "activation": nn.SiLU}, {"norm": nn.RMSNorm, "num_kv_heads": 1}, {"tie_weights": False}],
    ids=str,
)
def test_other_transformers(cupy: Any, options: dict[str, Any]) -> None:
    pair = Pair(lambda: transformer(**options), "momentum")
    for batch in tokens(cupy, 6):
        pair.call(*batch)
    assert replays(pair.captured) >= 3


FUNCTIONS = [
    mg.exp, mg.tanh, mg.sigmoid, mg.relu, mg.gelu, mg.silu, mg.softmax, mg.log_softmax, mg.sin, mg.absolute, mg.erf,
    lambda x: x**2, lambda x: (x * x + 0.5) ** 0.5, lambda x: x[..., ::-1] + x[:, :1], lambda x: mg.concatenate([x, x]),
    lambda x: x.T.reshape(x.shape), lambda x: x.sum(axis=0, keepdims=True) + x, lambda x: mg.where(x > 0, x, 0.1 * x),
    lambda x: x.max(axis=1, keepdims=True) - x, lambda x: x - x.mean(), lambda x: x[[0, 0, -1]], lambda x: x.var() * x,
    lambda x: mg.maximum(x, -x), lambda x: mg.clip(x, -0.5, 0.5) * x, lambda x: mg.einsum("ij,kj->ik", x, x) @ x,
    lambda x: mg.logsumexp(x, axis=0) * x, lambda x: 1.0 / (1.0 + x * x), lambda x: -x % 0.7,
    lambda x: mg.stack([x, x])[1],
]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_random_functions(cupy: Any, seed: int) -> None:
    """Values and gradients of random compositions, in float32 and float64."""
    rng = np.random.default_rng(seed)
    chosen = [FUNCTIONS[i] for i in rng.integers(0, len(FUNCTIONS), 5)]
    dtype = [np.float32, np.float64][seed % 2]
    weight = mg.tensor(rng.standard_normal((4, 3)).astype(dtype), requires_grad=True, device="cuda")

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
        x = cupy.asarray(rng.standard_normal((4, 3)).astype(dtype))
        expected = bits(*step(x), weight.grad)
        assert bits(*captured(x), weight.grad) == expected
    assert replays(captured) >= 3


def test_work_on_cupys_arrays_is_seen(cupy: Any) -> None:
    """With CuPy's functions, its elementwise kernels, and NumPy's functions that CuPy takes over."""
    kernel = cupy.ElementwiseKernel("T x, T y", "T z", "z = x * y + 1", "multiplied")
    velocity = cupy.ones((3, 4))

    def step(x: Any) -> Any:
        out = np.zeros_like(x)
        out[1:] += x[:2] * 2
        out.T[0] = 7
        flat = out.reshape(-1)
        flat[::5] *= -1
        cupy.maximum(out, 0.5, out=out)
        np.add(velocity, out, out=velocity)
        flat **= 1.5
        np.power(velocity, 2, out=velocity)
        return kernel(out, x), cupy.tanh(x), np.sqrt(out), flat.sum(), x.mean(axis=0), np.concatenate([x, out])

    captured, rng = mg.capture(step), np.random.default_rng(0)
    for _ in range(5):
        x = cupy.asarray(rng.standard_normal((3, 4)))
        before = velocity.copy()
        expected = bits(*step(x), velocity)
        velocity[...] = before
        assert bits(*captured(x), velocity) == expected
        velocity[...] = 1 / velocity
    assert replays(captured) == 3


def test_gradients_accumulate_and_those_that_somebody_holds_stay_what_they_are(cupy: Any) -> None:
    weights = [mg.tensor(np.ones(2), requires_grad=True, device="cuda") for _ in range(2)]

    def add(weight: mg.Tensor, x: Any) -> None:
        (weight * x).sum().backward()

    captured, held = mg.capture(lambda x: add(weights[1], x)), []
    for i in range(8):
        x = cupy.asarray([1.0, i])
        add(weights[0], x)
        captured(x)
        assert bits(weights[0].grad) == bits(weights[1].grad)
        held.append((weights[1].grad, bits(weights[1].grad)))
        if i == 5:
            for weight in weights:
                weight.zero_grad()
    assert all(bits(gradient) == found for gradient, found in held)
    assert replays(captured) >= 4


def test_gradients_that_somebody_holds_stay_what_they_are(cupy: Any) -> None:
    model = mlp()
    step = mg.capture(training_step(model, nn.SGD(model.parameters(), 0.1)))
    held = []
    for i, (X, y) in enumerate(rows(cupy, 12)):
        step(X, y)
        if i % 3 == 2:
            gradients: list[Any] = [p.grad for p in model.parameters()]
            held += [(x, bits(x)) for x in (gradients[0], gradients[1].data, gradients[2].data[0])]
    assert all(bits(gradient) == found for gradient, found in held)
    assert replays(step) >= 9


def test_each_stream_has_buffers_of_its_own(cupy: Any) -> None:
    weight = mg.tensor(np.arange(6.0), device="cuda")
    step = mg.capture(lambda x: mg.tanh(weight * x + 1).sum())
    x, streams = cupy.arange(6.0), [cupy.cuda.Stream(), cupy.cuda.Stream()]
    expected = bits(mg.tanh(weight * x + 1).sum())
    assert [bits(step(x)) for _ in range(4)] == [expected] * 4
    (recording,) = step.recordings
    memory = []
    for i in (0, 0, 1, 1, 0):
        with streams[i]:
            assert bits(step(x)) == expected
        assert recording.stream == streams[i].ptr
        memory.append(recording._scope_of_step["device_memory"])
    assert memory[0] is memory[1]
    assert memory[1] is not memory[2]
    assert recording.calls == 7


# Launches, copies, waiting


def _counts(found: SimpleNamespace) -> tuple[int, ...]:
    return found.launches, found.library_calls, found.copies, found.synchronizations


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_replay_copies_nothing_waits_for_nothing_and_launches_no_more_than_the_step(
    cupy: Any, counted: Any, optimizer: str, kind: str
) -> None:
    make = mlp if kind == "mlp" else lambda: nn.Sequential(transformer(), nn.Dropout(0.1, 0))
    pair = Pair(make, optimizer, max_norm=0.5)
    batches = rows(cupy, 5) if kind == "mlp" else tokens(cupy, 5)
    for batch in batches[:4]:
        pair.call(*batch)
    with counted() as plain:
        pair.plain(*batches[4])
    with counted() as found:
        pair.captured(*batches[4])
    assert replays(pair.captured) >= 2
    assert found.launches <= plain.launches
    assert found.library_calls <= plain.library_calls
    assert found.copies == found.synchronizations == 0


def test_an_argument_on_the_host_is_copied_once_in_each_replay(cupy: Any, counted: Any) -> None:
    model = mlp()
    step = mg.capture(lambda X: model(mg.tensor(X, device="cuda")))
    rng = np.random.default_rng(0)
    for _ in range(4):
        X = rng.standard_normal((5, 6), np.float32)
        assert bits(step(X)) == bits(model(mg.tensor(X, device="cuda")))
    with counted() as found:
        out = step(X)
    assert (found.copies, found.synchronizations) == (1, 0)
    assert type(out.data) is cupy.ndarray
    assert replays(step) == 3


def test_dropout_draws_its_seed_anew(cupy: Any, counted: Any) -> None:
    layers = [nn.Dropout(0.5, 0) for _ in range(2)]
    step = mg.capture(lambda x: layers[1](mg.tensor(x)))
    x, seen = cupy.ones(100), set()
    for _ in range(6):
        found = bits(step(x))
        assert found == bits(layers[0](mg.tensor(x)))
        seen.update(found)
    assert len(seen) == 6
    with counted() as found:
        step(x)
    assert _counts(found)[2:] == (0, 0)
    assert "= dropout(x, None, 0.5, 2.0, integers)" in step.source


# What is read anew, and what is recorded anew


def test_learning_rates_and_schedules_are_read_anew(cupy: Any) -> None:
    pair = Pair(mlp, "adamw")
    schedules = [nn.WarmupCosineLR(optimizer, 3, 12) for optimizer in pair.optimizers]
    for batch in rows(cupy, 14):
        pair.call(*batch)
        for schedule in schedules:
            schedule.step()
    assert replays(pair.captured) == 12
    assert len(pair.captured.recordings) == 1


def test_other_shapes_dtypes_and_places_are_recorded_anew_and_kept(cupy: Any) -> None:
    step = mg.capture(lambda x: (x * 2).sum(axis=0), max_recordings=16)
    host = [np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 3), np.float32), np.ones((3, 2)).T]
    for x in [*host, *map(cupy.asarray, host[:3]), cupy.asarray(np.ones((3, 2))).T] * 3:
        found = step(x)
        assert type(found) is type(x)
        assert bits(found) == bits((x * 2).sum(axis=0))
        assert bits(step(mg.tensor(x)).data) == bits(found)
    assert len(step.recordings) == 16


def test_modes_kernels_settings_and_replaced_parameters_are_seen(cupy: Any) -> None:
    pair = Pair(lambda: nn.Sequential(nn.Linear(6, 3, rng=0), nn.Dropout(0.5, 0)).to("cuda"), "momentum")
    saved = pair.models[0].state_dict()
    changes: dict[int, Callable[[Any, Any], Any]] = {
        4: lambda model, _: model.eval(),
        6: lambda model, _: model.train(),
        8: lambda _, optimizer: optimizer.param_groups[0].update(momentum=0.5),
        11: lambda model, _: model.load_state_dict(saved),
        14: lambda model, _: setattr(model.parameters()[0], "data", np.full((6, 3), 0.1, np.float32)),
        17: lambda model, _: setattr(model.layers[1], "p", 0.25),
    }
    for i, batch in enumerate(rows(cupy, 20)):
        pair.change(changes.get(i, lambda *_: None))
        with mg.kernels("numpy" if i in (2, 3) else "auto"):
            pair.call(*batch, i)
    assert replays(pair.captured) >= 4


def test_models_that_are_moved_between_calls_are_recorded_anew(cupy: Any) -> None:
    pair = Pair(lambda: transformer(0.1, positions="rotary"), "adam")
    places = ["cuda"] * 4 + ["cpu"] * 4 + ["cuda"] * 4
    for i, (place, batch) in enumerate(zip(places, tokens(cupy, 12), strict=True)):
        pair.change(lambda model, _, place=place: model.to(place))
        pair.call(*(x if place == "cuda" else x.get() for x in batch), i)
        assert all(p.device.type == mg.device(place).type for p in pair.models[1].parameters())
    assert replays(pair.captured) >= 3


def test_arrays_that_are_no_arguments_are_read_anew(cupy: Any) -> None:
    """In closures, attributes, lists and tuples: changed in place, replaced, and replaced by one of the host."""
    mask, holder, both = cupy.ones(3), SimpleNamespace(scale=cupy.full(3, 2.0)), (cupy.ones(3), cupy.zeros(3))
    step = mg.capture(lambda: (mg.tensor(mask) * holder.scale + both[0] - both[1]).sum())

    def expected() -> float:
        return float((mask * holder.scale + both[0] - both[1]).sum())

    for _ in range(4):
        assert step().item() == expected()
    mask[0] = 0
    assert step().item() == expected()
    mask = cupy.full(3, 5.0)
    assert step().item() == expected()
    holder.scale = cupy.full((), 4.0)
    both[1][...] = 3
    for _ in range(4):
        assert step().item() == expected()
    mask = np.ones(3)
    with pytest.raises(TypeError, match="different devices"):
        step()


def test_blocks_with_a_device_are_told_apart(cupy: Any) -> None:
    step, x = mg.capture(lambda x: mg.tensor(x) + 1), np.ones(3)
    for i in range(12):
        if i % 4 < 2:
            found = step(x)
        else:
            with mg.device("cuda"):
                found = step(x)
        assert type(found.data) is (np.ndarray if i % 4 < 2 else cupy.ndarray)
        assert bits(found) == bits(x + 1)
    assert replays(step) >= 6


def test_arrays_of_host_and_device_in_one_step(cupy: Any) -> None:
    table = np.arange(6.0)

    def step(x: Any) -> tuple[mg.Tensor, mg.Tensor]:
        on_host = (mg.tensor(x) * 2).to("cpu")
        return on_host + table, (mg.tensor(table) * on_host).to("cuda") - x

    captured = mg.capture(step)
    for i in range(6):
        table[0] = i
        x = cupy.arange(6.0) + i
        first, second = captured(x)
        assert type(first.data) is np.ndarray
        assert type(second.data) is cupy.ndarray
        assert bits(first, second) == bits(*step(x))
    assert replays(captured) == 4


def test_a_branch_on_a_value_goes_its_way(cupy: Any) -> None:
    weights = [mg.tensor(np.ones(2), requires_grad=True, device="cuda") for _ in range(2)]

    def plain(x: Any, w: mg.Tensor) -> mg.Tensor:
        w.zero_grad()
        loss = (w * x).sum()
        if loss > 0:
            loss = loss * 2
        loss.backward()
        w.data -= 0.1 * w.grad.data  # type: ignore[union-attr]
        return loss

    step, rng = mg.capture(lambda x: plain(x, weights[1])), np.random.default_rng(0)
    for _ in range(20):
        x = cupy.asarray(rng.standard_normal(2))
        assert bits(step(x), weights[1], weights[1].grad) == bits(plain(x, weights[0]), weights[0], weights[0].grad)
    assert replays(step) > 3


# Kernels


def test_functions_that_launch_kernels_are_noted_as_a_whole(cupy: Any, counted: Any) -> None:
    code = r"""
    extern "C" __global__ void scaled(const float* x, float factor, float* out, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = x[i] * factor;
    }"""
    kernel = cupy.RawKernel(code, "scaled")

    def launch(x: Any, factor: float, out: Any) -> None:
        kernel((1,), (64,), (x, np.float32(factor), out, np.int32(x.size)))

    @noted
    def scaled(x: Any, factor: float) -> Any:
        out = NAMESPACES[x.__class__].empty_like(x)  # within, arrays and functions are CuPy's own
        launch(x, factor, out)
        return out

    @noted
    def aligned(x: Any) -> int:
        return 2 if x.data.ptr % 16 == 0 else 3

    @noted(writes=lambda pairs, factor: [x for x, _ in pairs])
    def scale_all(pairs: list[Any], factor: float) -> None:
        for x, y in pairs:
            launch(y, factor, x)

    def forward(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        return scaled(x, 2.0), lambda g: scaled(g, 2.0)

    kept, settings = cupy.zeros(4, np.float32), {"rate": 0.5}

    def step(x: Any, rate: float) -> Any:
        out, pullback = forward(x)
        scale_all([(kept, out)], rate)
        return pullback(out + x) * aligned(x)

    captured = mg.capture(step)
    for i in range(6):
        x, rate = (cupy.arange(5, dtype=np.float32) + i)[i % 2 : 4 + i % 2], i / 4
        assert bits(captured(x, rate), kept) == bits(6 * (2 + i % 2) * x, 2 * x * np.float32(rate))
    with counted() as found:
        captured(x, rate)
    assert (found.launches, found.copies, found.synchronizations) == (5, 0, 0)
    assert replays(captured) >= 4
    assert all(name in captured.source for name in ("scaled(x, 2.0)", "scale_all([(kept, "))
    assert settings == {"rate": 0.5}


def test_a_kernel_that_nobody_notes_is_refused(cupy: Any) -> None:
    kernel = cupy.RawKernel('extern "C" __global__ void f(const double* x, double* y) { *y = *x; }', "f")

    def step(x: Any) -> Any:
        out = cupy.zeros(1)
        kernel((1,), (1,), (x, out))
        return out

    captured = mg.capture(step)
    assert bits(captured(cupy.ones(1))) == bits(np.ones(1))
    with pytest.raises(CaptureError, match="kernel of your own"):
        captured(cupy.ones(1))


# Refused


@pytest.mark.parametrize(
    "use",
    [
        lambda loss: loss.item(),
        float,
        lambda loss: f"{loss:.3f}",
        lambda loss: loss.numpy().tolist(),
        lambda loss: [1, 2, 3][loss.astype(int)],
    ],
)
def test_values_as_python_numbers_are_refused(cupy: Any, use: Callable[[Any], Any]) -> None:
    weight = mg.tensor(np.ones(2), requires_grad=True, device="cuda")

    @mg.capture
    def step(x: Any) -> Any:
        return use((weight * x).sum())

    step(cupy.ones(2))
    with pytest.raises(CaptureError, match="return the tensor from the step"):
        step(cupy.ones(2))
    assert type(weight.data) is cupy.ndarray


def test_random_numbers_of_cupys_own_are_refused(cupy: Any) -> None:
    rng = cupy.random.default_rng(0)
    step = mg.capture(lambda x: x + rng.random(3))
    for _ in range(2):
        step(cupy.ones(3))
    with pytest.raises(CaptureError, match="differ in the result"):
        step(cupy.ones(3))


def test_a_recording_on_a_device_is_not_saved(cupy: Any, tmp_path: Path) -> None:
    step = mg.capture(lambda x: x + 1)
    for _ in range(3):
        step(cupy.ones(1))
    with pytest.raises(CaptureError, match="computes on a device"):
        step.save(tmp_path / "step.py")
    assert not list(tmp_path.iterdir())


def test_the_text_names_cupy(cupy: Any) -> None:
    pair = Pair(mlp, "sgd")
    for batch in rows(cupy, 4):
        pair.call(*batch)
    lines = pair.captured.source.split("\n")
    for expected in (
        "def step(X, y):",
        "    cp.dot(X, layers_0_weight, linear_relu)  # (5, 8)",
        "    add_bias_and_rectify(linear_relu, layers_0_bias)",
        "    # gradient of linear_relu",
        "    # SGD",
    ):
        assert expected in lines
    assert "np.add" not in pair.captured.source
