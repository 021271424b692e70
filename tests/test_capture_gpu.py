"""mg.capture on CuPy arrays: replays leave the bits of the step itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.capture_on_cupy import Pair, mlp, rows, tokens, transformer
from tests.training_steps import OPTIMIZERS, bits, replays, training_step


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
