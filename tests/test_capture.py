"""mg.capture: replays leave and return the bits that the step itself does, or nothing is replayed."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.kernels import chunked_attention
from tests.training_steps import OPTIMIZERS, assert_same_training, batches, bits, mlp, replays, training_step

pytestmark = pytest.mark.usefixtures("numpy_kernels")


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
    monkeypatch.setattr(chunked_attention, "CHUNK", 40)
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
        hidden = itertools.cycle([scale.data])

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
            except mg.CaptureError as error:
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
        "print(step.recordings[0].calls, {'numba', 'llvmlite'} & set(sys.modules))\n"
    )
    command, root = [sys.executable, "-W", "error", "-c", code], Path(__file__).parents[1]
    done = subprocess.run(command, check=True, cwd=root, timeout=120, capture_output=True, text=True)
    assert done.stdout == "2 set()\n"


def test_recordings_say_what_they_are_for() -> None:
    model = mlp()
    step = mg.capture(training_step(model, OPTIMIZERS["adam"](model.parameters())))
    for X, y in batches(4):
        step(X, y)
    (recording,) = step.recordings
    assert repr(recording) == "<recording for ndarray (5, 6), ndarray (5,): 2 replays>"
    for X, y in batches(2, rows=3):
        step(X, y)
    assert repr(step.recordings) == (
        "[<recording for ndarray (3, 6), ndarray (3,): 1 replays>, "
        "<recording for ndarray (5, 6), ndarray (5,): 2 replays>]"
    )
