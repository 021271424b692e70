"""Mixed precision in training: with mg.checkpoint, captured, and beside the run in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.conftest import Device
from tests.low_precision import operands, wide


def test_checkpoint_computes_again_as_in_forward(low: Any) -> None:
    x, y = operands(Device("numpy"), np.float32)
    dtypes = []

    def block(x: mg.Tensor) -> mg.Tensor:
        out = mg.softmax(mg.linear_gelu(x, y))
        dtypes.append(mg.matmul(x, y).dtype)
        return out @ y

    expected = []
    for inside, outside in ((low, None), (None, low), (low, low)):
        for function in (block, mg.checkpoint(block)):
            x.grad = y.grad = None
            with mg.autocast(inside):
                out = function(x)
            with mg.autocast(outside):
                out.backward(np.ones(out.shape, np.float32))
            assert x.grad is not None
            expected.append((wide(out), wide(x.grad), wide(y.grad)))
        for plain, repeated in zip(*expected[-2:], strict=True):
            np.testing.assert_array_equal(plain, repeated)
        assert dtypes == [np.dtype(inside or np.float32)] * 3
        dtypes.clear()


def test_captured_steps_are_recorded_anew_under_another_setting(low: Any) -> None:
    model = nn.MLP([4, 8, 4], rng=0)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        return model(x)

    for dtype in (None, low, None, low, low, None, low):
        with mg.autocast(dtype):
            out, expected = step(x), model(x)
        assert out.dtype == expected.dtype == np.dtype(dtype or np.float32)
        np.testing.assert_array_equal(wide(out), wide(expected))
    assert len(step.recordings) == 2
    assert sum(recording.calls for recording in step.recordings) == 4


def test_captured_training_is_the_same(low: Any) -> None:
    losses = []
    for wrapper in (lambda f: f, mg.capture):
        model = nn.MLP([8, 16, 4], rng=0)
        optimizer = nn.Adam(model.parameters(), lr=1e-2)

        def step(x: Any, y: Any) -> mg.Tensor:
            with mg.autocast(low):
                loss = nn.cross_entropy(model(x), y)  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
            (loss * 1024.0).backward()
            optimizer.step()  # noqa: B023
            return loss

        wrapped, rng = wrapper(step), np.random.default_rng(0)
        batches = [rng.standard_normal((6, 8)).astype(np.float32) for _ in range(5)]
        losses.append([wrapped(x, x[:, :4].argmax(axis=1)).item() for x in batches])
    assert losses[0] == losses[1]


def on_device(model: nn.Module, device: Device) -> Any:
    for parameter in model.parameters():
        parameter._data = device.array(parameter._data)
    return model


def train(device: Device, model: Any, batches: list[Any], dtype: Any) -> tuple[list[float], nn.GradScaler]:
    on_device(model, device)
    optimizer = nn.AdamW(nn.decay_groups(model, 0.1), lr=3e-3)
    scaler = nn.GradScaler(enabled=dtype == "float16")
    losses = []
    for x, y in batches:
        with mg.autocast(dtype):
            loss = nn.cross_entropy(model(mg.tensor(device.array(x))), device.array(y))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.clip_grad_norm(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == np.float32
    return losses, scaler


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_training_follows_the_run_in_float32(device: Device, low: Any, kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "mlp":
        x = rng.standard_normal((64, 8)).astype(np.float32)
        batches = [(x, x[:, :4].argmax(axis=1))] * 30
    else:
        tokens = [(np.arange(13) + rng.integers(0, 11, (6, 1))) % 11 for _ in range(30)]
        batches = [(t[:, :-1], t[:, 1:]) for t in tokens]

    def model() -> Any:
        if kind == "mlp":
            return nn.MLP([8, 32, 4], rng=0)
        return nn.Transformer(vocab_size=11, d_model=16, num_heads=2, num_layers=2, max_len=12, rng=1)

    expected, _ = train(device, model(), batches, None)
    found, scaler = train(device, model(), batches, low.name)
    assert found != expected
    assert found[-1] < 0.8 * found[0]
    assert scaler.skipped == 0
    np.testing.assert_allclose(found, expected, rtol=0.02)
