"""Adam, AdamW and RMSprop against their formulas, schedules against theirs, and what is done with gradients."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn


def parameter(values: Any, dtype: Any = np.float64) -> mg.Tensor:
    return mg.tensor(values, dtype, requires_grad=True)


def adam(options: dict[str, Any], p: Any, gradients: list[Any], decoupled: bool) -> Any:
    """The formulas of Kingma and Ba (2015), algorithm 1, and of Loshchilov and Hutter (2019), algorithm 2."""
    lr, decay, (b1, b2), eps = options["lr"], options["weight_decay"], options["betas"], options["eps"]
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        d = g if decoupled else g + decay * p
        m, v = b1 * m + (1 - b1) * d, b2 * v + (1 - b2) * d**2
        step = lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        p = p - step - (lr * decay * p if decoupled else 0)
    return p


def rmsprop(options: dict[str, Any], p: Any, gradients: list[Any]) -> Any:
    v = a = b = np.zeros_like(p)
    for g in gradients:
        d = g + options["weight_decay"] * p
        v = options["alpha"] * v + (1 - options["alpha"]) * d**2
        a = options["alpha"] * a + (1 - options["alpha"]) * d if options["centered"] else a
        b = options["momentum"] * b + d / (np.sqrt(v - a**2) + options["eps"])
        p = p - options["lr"] * b
    return p


ADAM = [
    {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    {"lr": 0.1, "betas": (0.5, 0.7), "eps": 0.1, "weight_decay": 0.3},
    {"lr": 0.1, "betas": (0.0, 0.0), "eps": 1e-3, "weight_decay": 0.1},
]
RMSPROP = [
    {"lr": 0.1, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
    {"lr": 0.1, "alpha": 0.8, "eps": 0.1, "weight_decay": 0.3, "momentum": 0.6, "centered": True},
]


@pytest.mark.parametrize("block", [5, 1 << 18])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop"])
def test_steps_by_the_formulas(name: str, block: int, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn.adaptive.BLOCK", block)
    rng = np.random.default_rng(0)
    for options in RMSPROP if name == "RMSprop" else ADAM:
        for shape in ((3, 4), (), (0, 2)):
            start = np.asarray(rng.standard_normal(shape))
            gradients = [np.asarray(rng.standard_normal(shape)) for _ in range(5)]
            p = parameter(device.array(start))
            optimizer = getattr(nn, name)([p], **options)
            for g in gradients:
                p.grad = device.array(g)
                optimizer.step()
            expected = (
                rmsprop(options, start, gradients)
                if name == "RMSprop"
                else adam(options, start, gradients, name == "AdamW")
            )
            np.testing.assert_allclose(p.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", [nn.Adam, nn.AdamW, nn.RMSprop])
def test_float32_stays_float32_and_the_users_arrays_stay_as_they_were(optimizer: Any) -> None:
    array, gradient = np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    p = parameter(array, None)
    made = optimizer([p], lr=np.float64(0.1), weight_decay=np.float64(0.1))
    for _ in range(3):
        p.grad = gradient
        made.step()
    assert p.dtype == np.float32
    assert all(x.dtype == np.float32 for x in made.state_dict()["state"][0].values() if hasattr(x, "dtype"))
    np.testing.assert_array_equal(array, 1)
    np.testing.assert_array_equal(gradient, 0.5)
    assert (p.data < 1).all()


@pytest.mark.parametrize("optimizer", [nn.SGD, nn.Adam, nn.AdamW, nn.RMSprop])
def test_state_goes_on_where_it_stood(optimizer: Any) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((6, 4))
    p, q = parameter(np.ones(4)), parameter(np.ones(4))
    first = optimizer([p, parameter(1.0)], lr=0.1, weight_decay=0.1)
    for g in gradients[:3]:
        p.grad = g
        first.step()
    state = first.state_dict()
    for g in gradients[3:]:
        p.grad = g
        first.step()

    second = optimizer([q, parameter(1.0)], lr=0.7)
    with pytest.raises(ValueError, match=r"expected groups of \[2\] parameters"):
        second.load_state_dict({**state, "state": []})
    second.load_state_dict(state)
    assert second.param_groups[0]["lr"] == 0.1
    q.data = np.ones(4)
    third = optimizer([r := parameter(np.ones(4)), parameter(1.0)], lr=0.1, weight_decay=0.1)
    for g in gradients[:3]:
        r.grad = g
        third.step()
    q.data = r.data.copy()
    for g in gradients[3:]:
        q.grad = g
        second.step()
    np.testing.assert_array_equal(q.data, p.data)
    pickled = pickle.loads(pickle.dumps(first))
    for one in (first, pickled):
        one.param_groups[0]["params"][0].grad = gradients[0]
        one.step()
    np.testing.assert_array_equal(pickled.param_groups[0]["params"][0].data, p.data)


def test_bad_settings_are_refused() -> None:
    p = parameter([1.0])
    for make, message in (
        (lambda: nn.Adam([p], betas=(0.9, 1.0)), "Adam: betas must be at least 0 and below 1, got 1.0"),
        (lambda: nn.AdamW([p], betas=(0.9,)), "AdamW: betas must be 2 numbers"),
        (lambda: nn.Adam([p], eps=-1.0), "Adam: eps must be at least 0"),
        (lambda: nn.RMSprop([p], alpha=1.0), "RMSprop: alpha must be at least 0 and below 1"),
        (lambda: nn.RMSprop([p], momentum=math.nan), "RMSprop: momentum must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="Optimizer defines no _update"):
        nn.Optimizer([p]).step()


def rates(schedule: nn.LRScheduler, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.optimizer.param_groups[-1]["lr"])
        schedule.step()
    return found


def two_groups() -> nn.SGD:
    return nn.SGD([{"params": [parameter(0.0)]}, {"params": [parameter(0.0)], "lr": 0.3}], lr=0.1)


def test_schedules_by_their_formulas() -> None:
    np.testing.assert_allclose(rates(nn.StepLR(two_groups(), 3, 0.5), 8), [0.3] * 3 + [0.15] * 3 + [0.075] * 2)
    warmup = rates(nn.WarmupCosineLR(two_groups(), 4, 12, 0.1), 16)
    np.testing.assert_allclose(warmup[:5], [0.06, 0.12, 0.18, 0.24, 0.3])
    np.testing.assert_allclose(warmup[4:13], 0.1 + 0.1 * (1 + np.cos(np.pi * np.arange(9) / 8)))
    np.testing.assert_allclose(warmup[12:], 0.1)
    cycle = rates(nn.OneCycleLR(two_groups(), 0.5, 20, pct_start=0.25, div_factor=5, final_div_factor=100), 19)
    np.testing.assert_allclose([cycle[0], cycle[4]], [0.1, 0.5])
    assert cycle[:5] == sorted(cycle[:5])
    assert cycle[4:] == sorted(cycle[4:], reverse=True)


def test_the_first_group_follows_too_and_the_state_goes_on() -> None:
    schedule = nn.StepLR(two_groups(), 2, 0.1)
    rates(schedule, 3)
    assert [group["lr"] for group in schedule.optimizer.param_groups] == pytest.approx([0.01, 0.03])
    other = nn.StepLR(two_groups(), 2, 0.1)
    other.load_state_dict(schedule.state_dict())
    assert rates(other, 4) == rates(schedule, 4)
    state = other.state_dict()
    for bad in ({"base_lrs": [0.1], "last_step": 0}, {"last_step": 0}):
        with pytest.raises(ValueError, match="no state of a StepLR of 2 groups"):
            other.load_state_dict(bad)
    assert other.state_dict() == state


def test_schedules_refuse_bad_options() -> None:
    optimizer = two_groups()
    for make, message in (
        (lambda: nn.StepLR(optimizer, 0), "step_size must be at least 1"),
        (lambda: nn.WarmupCosineLR(optimizer, 5, 5), "expected 0 <= warmup_steps < total_steps, got 5 and 5"),
        (lambda: nn.OneCycleLR(optimizer, 1.0, 10, pct_start=1.0), "0 < pct_start < 1"),
        (lambda: nn.OneCycleLR(optimizer, 1.0, 10, anneal_strategy="square"), "'cos' or 'linear'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="StepLR: expected an optimiser, got"):
        nn.StepLR([parameter(0.0)], 2)  # type: ignore[arg-type]
    cycle = nn.OneCycleLR(optimizer, 1.0, 3)
    for _ in range(3):
        cycle.step()
    with pytest.raises(ValueError, match="the cycle ends after 3 steps"):
        cycle.step()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_clip_grad_norm(dtype: Any, device: Any) -> None:
    with mg.device(device.name):
        p, q, r = (parameter(np.zeros(shape), dtype) for shape in ((2,), (), (3,)))
    p.grad, q.grad = device.array(np.array([300.0, 0.0], dtype)), device.array(np.array(400.0, dtype))
    norm = nn.clip_grad_norm([p, q, r], 5.0)  # 300 squared is beyond float16
    assert norm.item() == pytest.approx(500)
    assert p.grad is not None
    assert p.grad.dtype == dtype
    np.testing.assert_allclose(p.grad.numpy(), [3, 0], rtol=2e-3)
    np.testing.assert_allclose(q.grad.numpy(), 4, rtol=2e-3)  # type: ignore[union-attr]
    assert r.grad is None
    assert nn.clip_grad_norm([p, q], 100.0).item() == pytest.approx(5, rel=2e-3)
    np.testing.assert_allclose(p.grad.numpy(), [3, 0], rtol=2e-3)
    assert nn.clip_grad_norm([r], 1.0).item() == 0


def test_the_norm_of_one_number_in_all_places() -> None:
    """Where an array has no strides, NumPy adds up one by one."""
    p = mg.tensor(np.ones((637, 637), np.float32), requires_grad=True)
    p.grad = np.broadcast_to(np.float32(0.3), p.shape)
    with mg.kernels("numpy"):
        assert nn.clip_grad_norm([p], 1e9).item() == pytest.approx(0.3 * 637, rel=1e-5)


def test_clip_grad_norm_refuses() -> None:
    p = parameter([1.0])
    p.grad = np.array([np.inf])
    with pytest.raises(RuntimeError, match="the norm of the gradients is inf; nothing was scaled"):
        nn.clip_grad_norm([p], 1.0, error_if_nonfinite=True)
    assert p.grad.data[0] == np.inf  # type: ignore[union-attr]
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="max_norm must be at least 0"):
            nn.clip_grad_norm([p], bad)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((12, 3)), rng.integers(0, 2, 12)
    model = nn.MLP([3, 5, 2], dtype=np.float64, rng=0)
    nn.cross_entropy(model(X), y).backward()
    whole = [p.grad.data.copy() for p in model.parameters()]
    model.zero_grad()
    for part in np.split(np.arange(12), 4):
        (nn.cross_entropy(model(X[part]), y[part]) / 4).backward()
    for p, expected in zip(model.parameters(), whole, strict=True):
        np.testing.assert_allclose(p.grad.data, expected, rtol=1e-12, atol=1e-15)


def test_decay_groups() -> None:
    model = nn.Transformer(7, 8, 2, 1, 4, rng=0)
    decaying, others = nn.decay_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert decaying["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(names)
    assert [names[id(p)] for p in decaying["params"]][:2] == ["embedding.weight", "positions.weight"]
    assert len(nn.decay_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1


def test_state_in_any_layout_is_taken_and_updated() -> None:
    states = []
    for layout in (np.ascontiguousarray, np.asfortranarray):
        w = mg.tensor(np.ones((3, 4)), requires_grad=True)
        optimizer = nn.Adam([w], lr=0.1)
        (w * np.arange(12.0).reshape(3, 4)).sum().backward()
        optimizer.step()
        state = optimizer.state_dict()
        state["state"][0]["exp_avg"] = layout(state["state"][0]["exp_avg"])
        optimizer.load_state_dict(state)
        optimizer.step()
        states.append(optimizer.state_dict()["state"][0]["exp_avg"])
    np.testing.assert_array_equal(states[0], states[1])


def test_the_state_of_another_schedule_is_refused_and_changes_nothing() -> None:
    optimizer = nn.SGD([mg.tensor(1.0, requires_grad=True)], lr=0.1)
    one_cycle = nn.OneCycleLR(optimizer, 0.5, 10)
    lr = optimizer.param_groups[0]["lr"]
    other = nn.StepLR(nn.SGD([mg.tensor(1.0, requires_grad=True)], lr=0.1), 3).state_dict()
    for state in (other, one_cycle.state_dict() | {"last_step": 99}):
        with pytest.raises(ValueError, match="OneCycleLR"):
            one_cycle.load_state_dict(state)
        assert one_cycle.last_step == 0
        assert optimizer.param_groups[0]["lr"] == lr


def test_a_centered_variance_does_not_fall_below_zero() -> None:
    w = mg.tensor(np.zeros(200, np.float32), requires_grad=True)
    optimizer = nn.RMSprop([w], lr=1e-3, centered=True)
    gradient = np.random.default_rng(0).uniform(0.1, 1, 200).astype(np.float32)
    for _ in range(1500):
        w.grad = mg.tensor(gradient)
        optimizer.step()
    assert np.isfinite(w.data).all()


def test_bad_settings_of_a_group_change_nothing() -> None:
    p, q = parameter([1.0]), parameter([1.0])
    for group, error, message in (
        ({"betas": (0.9,)}, ValueError, "betas must be 2 numbers"),
        ({"betas": 0.9}, ValueError, "betas must be 2 numbers"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"lr": [0.1, 0.2]}, TypeError, "lr must be a number"),
        ({"lr": None}, TypeError, "lr must be a number, got None"),
    ):
        with pytest.raises(error, match=f"Adam: {message}"):
            nn.Adam([{"params": [p]}, {"params": [q], **group}])
    with pytest.raises(TypeError, match="RMSprop: centered must be True or False, got 1"):
        nn.RMSprop([p], centered=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="SGD: params must be tensors or groups, got both"):
        nn.SGD([{"params": [p]}, q], lr=0.1)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="expected what state_dict of SGD gives, got a mapping with nothing"):
        nn.SGD([p], lr=0.1).load_state_dict({})


def test_groups_that_join_later_follow_the_schedule() -> None:
    p, q = parameter([1.0]), parameter([1.0])
    optimizer = nn.SGD([p], lr=1.0)
    schedule = nn.StepLR(optimizer, 1, gamma=0.5)
    optimizer.add_param_group({"params": [q], "lr": 4.0})
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0]


def test_one_cycle_ends_and_stays_at_its_end() -> None:
    schedule = nn.OneCycleLR(nn.SGD([parameter([1.0])], lr=1.0), 1.0, 10, pct_start=0.1)  # the top is step 0
    assert schedule.optimizer.param_groups[0]["lr"] == 1.0
    for _ in range(10):  # as often as the optimiser's, of which the last one needs no rate any more
        schedule.step()
    assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(1 / 25 / 1e4)
    for _ in range(2):
        with pytest.raises(ValueError, match="the cycle ends after 10 steps"):
            schedule.step()
    assert schedule.last_step == 10
    schedule.load_state_dict(schedule.state_dict())


@pytest.mark.parametrize("groups", [1, 2])
def test_an_assigned_array_of_another_parameter_is_copied(groups: int) -> None:
    p, q = parameter([1.0, 1.0]), parameter([1.0, 1.0])
    optimizer = nn.SGD([{"params": [p]}, {"params": [q]}] if groups == 2 else [p], lr=1.0)
    p.grad = mg.tensor(np.ones(2))
    optimizer.step()
    q.data = p.data
    optimizer.step()
    np.testing.assert_array_equal(p.data, [-1.0, -1.0])
    np.testing.assert_array_equal(q.data, [0.0, 0.0])
