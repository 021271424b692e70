"""GradScaler: PyTorch's scales, steps left out whole, one number to wait for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests import cupy_on_cpu
from tests.conftest import Device

SCRIPT = [True, True, True, False, True, False, False, True, True, True, True, True, True, False, True, True, True]


def parameter(device: Device, n: int = 3) -> mg.Tensor:
    return mg.tensor(device.array(np.linspace(-1, 1, n).astype(np.float32)), requires_grad=True)


def set_gradients(device: Device, scale: float, *parameters: mg.Tensor, bad: float | None = None) -> None:
    """Gradients as a backward of a scaled loss leaves them; one element of the last is ``bad``."""
    for p in parameters:
        p.grad = device.array(np.arange(1, p.size + 1, dtype=np.float32) * np.float32(scale))
    if bad is not None:
        g = np.full(parameters[-1].size, 1, np.float32)
        g[1] = bad
        parameters[-1].grad = device.array(g)


def host(x: Any) -> Any:
    x = x.data if isinstance(x, mg.Tensor) else x
    return x.get() if hasattr(x, "get") else x


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"growth_interval": 3},
        {"init_scale": 3.0, "growth_factor": 1.7, "backoff_factor": 0.3, "growth_interval": 2},
    ],
)
def test_scales_are_those_of_pytorch(device: Device, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    p, q = parameter(device), torch.linspace(-1, 1, 3, requires_grad=True)
    ours, theirs = nn.SGD([p], lr=0.1, momentum=0.9), torch.optim.SGD([q], lr=0.1, momentum=0.9)
    scaler, reference = nn.GradScaler(**settings), torch.amp.GradScaler("cpu", **settings)
    weights = np.array([1, 2, 3], np.float32)
    for finite in SCRIPT:
        ours.zero_grad()
        theirs.zero_grad()
        scaler.scale((p * device.array(weights)).sum()).backward()
        reference.scale((q * torch.from_numpy(weights)).sum()).backward()
        np.testing.assert_allclose(host(p.grad), q.grad.numpy(), rtol=1e-6)
        if not finite:
            p.grad.data[1] = q.grad[1] = math.inf  # type: ignore[union-attr]
        scaler.step(ours)
        reference.step(theirs)
        scaler.update()
        reference.update()
        assert scaler.get_scale() == reference.get_scale()
        assert scaler.state_dict()["_growth_tracker"] == reference.state_dict()["_growth_tracker"]
        np.testing.assert_allclose(host(p), q.detach().numpy(), rtol=1e-6)
    assert scaler.skipped == SCRIPT.count(False)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_step_with_a_bad_gradient_is_left_out(device: Device, bad: float) -> None:
    p, q = parameter(device), parameter(device, 4)
    optimizer, scaler = nn.Adam([p, q], lr=0.1), nn.GradScaler(init_scale=8.0, growth_interval=2)
    set_gradients(device, 8.0, p, q)
    scaler.step(optimizer)
    scaler.update()
    before = [host(x).copy() for x in (p, q)], optimizer.state_dict()
    set_gradients(device, 8.0, p, q, bad=bad)
    scaler.step(optimizer)
    scaler.update()
    assert (scaler.get_scale(), scaler.skipped) == (4.0, 1)
    for x, old in zip((p, q), before[0], strict=True):
        np.testing.assert_array_equal(host(x), old)
    for state, old in zip(optimizer.state_dict()["state"], before[1]["state"], strict=True):
        assert state["step"] == old["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_array_equal(host(state[name]), host(old[name]))
    for expected in (4.0, 8.0):  # the count to the next growth started anew
        set_gradients(device, scaler.get_scale(), p, q)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == expected


def test_steps_are_those_without_scaling(device: Device) -> None:
    found = []
    for enabled in (True, False):
        p = parameter(device)
        optimizer, scaler = nn.Adam([p], lr=0.1), nn.GradScaler(growth_interval=2, enabled=enabled)
        for _ in range(5):
            optimizer.zero_grad()
            scaler.scale((p * p).sum()).backward()
            scaler.unscale_(optimizer)
            norm = nn.clip_grad_norm([p], 0.5)
            assert norm.item() < 3
            scaler.step(optimizer)
            scaler.update()
        found.append(host(p))
        assert scaler.get_scale() == (2.0**18 if enabled else 1.0)
    np.testing.assert_array_equal(*found)


def test_gradients_of_float64_keep_their_digits(device: Device) -> None:
    p = mg.tensor(device.array(np.linspace(-1, 1, 7)), requires_grad=True)
    scaler = nn.GradScaler(init_scale=3.0)
    scaler.scale((p * p).sum()).backward()
    scaler.unscale_(nn.SGD([p], lr=0.1))
    np.testing.assert_allclose(host(p.grad), 2 * host(p), rtol=1e-15)


def test_small_gradients_survive_float16(device: Device) -> None:
    """1e-4 * 1e-5 is below float16's smallest number, 6e-8."""
    weight = np.full((2, 2), 1e-4, np.float32)
    for scaled in (True, False):
        p = mg.tensor(device.array(np.ones((2, 2), np.float32)), requires_grad=True)
        optimizer, scaler = nn.SGD([p], lr=1.0), nn.GradScaler(enabled=scaled)
        with mg.autocast("float16"):
            loss = (mg.matmul(device.array(weight), p).sum()) * 1e-5
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if scaled:
            np.testing.assert_allclose(host(p.grad), 2e-9, rtol=0.01)
        else:
            assert (host(p.grad) != 2e-9).all()


def test_an_overflow_in_forward_or_backward_does_not_warn(device: Device) -> None:
    model = nn.Sequential(nn.Linear(4, 4, rng=0), nn.ReLU(), nn.Linear(4, 2, rng=1))
    for p in model.parameters():
        p._data = device.array(p._data)
    optimizer, scaler = nn.SGD(model.parameters(), lr=0.1), nn.GradScaler(init_scale=2.0**40)
    x = device.array(np.ones((3, 4), np.float32))
    before = [host(p).copy() for p in model.parameters()]
    with mg.autocast("float16"):
        loss = nn.cross_entropy(model(mg.tensor(x)), device.array(np.array([0, 1, 0])))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.clip_grad_norm(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert (scaler.skipped, scaler.get_scale()) == (1, 2.0**39)
    for p, old in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(host(p), old)


def test_several_optimisers_share_a_scale(device: Device) -> None:
    p, q, r = (parameter(device) for _ in range(3))
    good, bad, judged = nn.SGD([p], lr=1.0), nn.SGD([q], lr=1.0), nn.SGD([r], lr=1.0)
    scaler = nn.GradScaler(init_scale=4.0)
    start = host(p).copy()
    set_gradients(device, 4.0, p, q, r, bad=None)
    set_gradients(device, 4.0, q, bad=math.inf)
    scaler.step(good)
    scaler.step(bad)
    scaler.unscale_(judged)
    scaler.update()
    assert (scaler.get_scale(), scaler.skipped) == (2.0, 1)
    np.testing.assert_allclose(host(p), start - [1, 2, 3])
    np.testing.assert_array_equal(host(q), start)


def test_calls_out_of_order_are_refused() -> None:
    device = Device("numpy")
    p, unused = parameter(device), parameter(device)
    optimizer, scaler = nn.SGD([p], lr=0.1), nn.GradScaler()
    with pytest.raises(RuntimeError, match="update: call step"):
        scaler.update()
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient"):
        scaler.step(nn.SGD([unused], lr=0.1))
    set_gradients(device, 1.0, p)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="step: it has already been called"):
        scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="must come before step"):
        scaler.unscale_(optimizer)
    scaler.update()
    scaler.unscale_(optimizer)
    half = mg.tensor(np.ones(2, np.float16), requires_grad=True)
    half.grad = np.ones(2, np.float16)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="gradient is float16"):
        scaler.unscale_(nn.SGD([half], lr=0.1))


@pytest.mark.parametrize(
    "settings",
    [
        {"init_scale": 0.0},
        {"init_scale": math.inf},
        {"growth_factor": 1.0},
        {"backoff_factor": 1.0},
        {"backoff_factor": 0.0},
        {"growth_interval": 0},
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        nn.GradScaler(**settings)


def test_what_is_scaled() -> None:
    scaler = nn.GradScaler(init_scale=4.0)
    one = mg.tensor(1.0, "float16")
    assert scaler.scale(one).item() == 4.0
    assert scaler.scale(mg.tensor(60000.0, "float16")).item() == 240000.0  # in float32
    assert [x.item() for x in scaler.scale([one, one + one])] == [4.0, 8.0]
    assert nn.GradScaler(enabled=False).scale(one) is one
    with pytest.raises(TypeError, match="expected a tensor"):
        scaler.scale(1.0)


def test_the_scale_stays_finite() -> None:
    device = Device("numpy")
    p = parameter(device)
    optimizer, scaler = nn.SGD([p], lr=0.1), nn.GradScaler(init_scale=2.0**127, growth_interval=1)
    set_gradients(device, 1.0, p)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**127
    set_gradients(device, 1.0, p)
    scaler.step(optimizer)
    scaler.update(5.0)
    assert scaler.get_scale() == 5.0


def test_the_scale_stays_above_zero() -> None:
    p = mg.tensor(np.ones(2, np.float32), requires_grad=True)
    optimizer, scaler = nn.SGD([p], 0.1), nn.GradScaler(growth_interval=1)
    for i in range(300):
        p.grad = mg.tensor(np.array([np.nan if i < 299 else 2**-126, 0], np.float32))
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**-125
    assert p.data[0] == np.float32(0.9)
    scaler.load_state_dict(scaler.state_dict())


def test_state_goes_on(tmp_path: Path) -> None:
    device = Device("numpy")
    p = parameter(device)
    optimizer, scaler = nn.SGD([p], lr=0.1), nn.GradScaler(init_scale=16.0, growth_interval=3)
    for bad in (math.inf, None, None):
        set_gradients(device, 1.0, p, bad=bad)
        scaler.step(optimizer)
        scaler.update()
    other = nn.GradScaler()
    other.load_state_dict(scaler.state_dict())
    saved = nn.GradScaler()
    if pytest.importorskip("safetensors", reason="safetensors is not installed"):
        nn.save_checkpoint(tmp_path / "a.safetensors", scaler=scaler)
        nn.load_checkpoint(tmp_path / "a.safetensors", scaler=saved)
    for again in (other, saved):
        assert again.state_dict() == scaler.state_dict()
        set_gradients(device, 1.0, p)
        again.step(optimizer)
        again.update()
        assert (again.get_scale(), again.skipped) == (16.0, 1)
    with pytest.raises(ValueError, match="no state of a GradScaler"):
        other.load_state_dict({"scale": 1.0})
    with pytest.raises(RuntimeError, match="enabled=False"):
        other.load_state_dict(nn.GradScaler(enabled=False).state_dict())


def test_state_of_pytorch_fits() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    scaler = nn.GradScaler()
    scaler.load_state_dict(torch.amp.GradScaler("cpu", init_scale=32.0, growth_interval=7).state_dict())
    assert (scaler.get_scale(), scaler.growth_interval, scaler.skipped) == (32.0, 7, 0)


def test_a_captured_step_uses_the_scale_of_the_moment() -> None:
    found = []
    for wrapper in (lambda f: f, mg.capture):
        p = parameter(Device("numpy"))
        optimizer, scaler = nn.SGD([p], lr=0.01), nn.GradScaler(init_scale=4.0, growth_interval=2)

        def step(x: Any) -> mg.Tensor:
            loss = (p * x).sum()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
            scaler.scale(loss).backward()  # noqa: B023
            return loss

        wrapped: Any = wrapper(step)
        for i in range(9):
            with np.errstate(over="ignore", invalid="ignore"):
                wrapped(np.full(3, np.inf if i == 4 else i, np.float32))
            scaler.step(optimizer)
            scaler.update()
        found.append((host(p).tolist(), scaler.get_scale(), scaler.skipped))
    assert found[0] == found[1]
    assert found[0][1:] == (32.0, 1)
    assert len(wrapped.recordings) == 1


def test_a_captured_step_refuses_what_looks_at_values() -> None:
    p = parameter(Device("numpy"))
    optimizer, scaler = nn.SGD([p], lr=0.01), nn.GradScaler()

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        loss = (p * x).sum()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    step(np.ones(3, np.float32))  # not recorded yet
    with pytest.raises(mg.CaptureError, match=r"GradScaler\.step decides"):
        step(np.ones(3, np.float32))


def test_one_number_is_waited_for() -> None:
    reason = cupy_on_cpu.unavailable()
    if reason is not None:
        pytest.skip(f"CuPy on host memory is not available: {reason}")
    counters, device = cupy_on_cpu.counters, Device("cupy-on-cpu")
    parameters = [parameter(device, n) for n in (3, 4, 5, 6)]
    optimizer, scaler = nn.Adam(parameters), nn.GradScaler()
    for _ in range(2):
        set_gradients(device, 1.0, *parameters)
        optimizer.step()
        before = counters()
        optimizer.step()
        alone = counters()["synchronizations"] - before["synchronizations"]
        before = counters()
        scaler.unscale_(optimizer)
        assert counters()["synchronizations"] == before["synchronizations"]
        scaler.step(optimizer)
        scaler.update()
        assert counters()["synchronizations"] - before["synchronizations"] == alone + 1
