"""Settings that are assigned between steps, schedules, and what of them is refused."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn

OPTIMIZERS = [nn.SGD, nn.Adam, nn.AdamW, nn.RMSprop]


def two_groups(make):
    first, second = (mg.tensor(np.ones(2), requires_grad=True) for _ in range(2))
    return make([{"params": [first]}, {"params": [second]}], lr=0.1)


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("lr", [None, "0.1", np.array([0.1, 0.2])])
def test_a_rate_that_is_no_number_is_refused_where_it_is_assigned(make, lr):
    optimizer = two_groups(make)
    with pytest.raises(TypeError, match=f"^{make.__name__}: lr must be a number, got "):
        optimizer.param_groups[1]["lr"] = lr
    assert optimizer.param_groups[1]["lr"] == 0.1


@pytest.mark.parametrize("lr", [-0.1, np.nan, np.inf])
def test_a_rate_out_of_range_is_refused_where_it_is_assigned(lr):
    optimizer = two_groups(nn.Adam)
    group = optimizer.param_groups[1]
    with pytest.raises(ValueError, match=r"^Adam: lr must be at least 0 and below inf, got "):
        group["lr"] = lr
    with pytest.raises(ValueError, match=r"^Adam: lr must be at least 0"):
        group.update(weight_decay=0.5, lr=lr)
    with pytest.raises(ValueError, match=r"^Adam: lr must be at least 0"):
        group |= {"weight_decay": 0.5, "lr": lr}
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("make", "name", "value", "error"),
    [
        (nn.Adam, "betas", 0.9, "betas must be 2 numbers, got 0.9"),
        (nn.Adam, "betas", (0.9, 1.0), "betas must be at least 0 and below 1, got 1.0"),
        (nn.Adam, "eps", -1, "eps must be at least 0"),
        (nn.SGD, "momentum", 1, "momentum must be at least 0 and below 1, got 1.0"),
        (nn.RMSprop, "centered", 1, "centered must be True or False, got 1"),
    ],
)
def test_other_settings_are_checked_too(make, name, value, error):
    (group, _) = two_groups(make).param_groups
    before = dict(group)
    with pytest.raises((TypeError, ValueError), match=f"^{make.__name__}: {error}"):
        group[name] = value
    assert group == before


def test_a_setting_is_a_number_of_pythons():
    (group, _) = two_groups(nn.Adam).param_groups
    group["lr"], group["betas"] = np.float64(0.5), [np.float32(0.5), mg.tensor(0.25)]
    assert [type(x) for x in (group["lr"], *group["betas"])] == [float] * 3
    assert (group["lr"], group["betas"]) == (0.5, (0.5, 0.25))


def test_parameters_and_settings_stay_and_notes_come_and_go():
    (group, _) = two_groups(nn.SGD).param_groups
    before = dict(group)
    with pytest.raises(TypeError, match=r"^SGD: a group keeps its parameters; add others by add_param_group"):
        group["params"] = []
    for remove in (lambda: group.pop("lr"), lambda: group.__delitem__("params"), group.clear, group.popitem):
        with pytest.raises(TypeError, match=r"^SGD: "):
            remove()
    assert group == before
    group["note"] = "warm"
    assert group.pop("note") == "warm"
    assert group.pop("note", None) is None
    assert group == before


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_optimisers_check_too(again):
    optimizer = two_groups(nn.Adam)
    optimizer.param_groups[0]["lr"] = 0.5
    other = again(optimizer)
    assert [group["lr"] for group in other.param_groups] == [0.5, 0.1]
    with pytest.raises(ValueError, match=r"^Adam: lr must be at least 0"):
        other.param_groups[0]["lr"] = -1
    assert type(other.param_groups[0].copy()) is dict


def test_a_captured_step_sets_a_rate():
    def train(capture):
        w = mg.tensor(np.ones(3), requires_grad=True)
        optimizer = nn.SGD([w], 0.1)

        def step(x):
            optimizer.zero_grad()
            (w * x).sum().backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * 0.5

        run = mg.capture(step) if capture else step
        for i in range(8):
            run(np.full(3, i + 1.0))
        return w.numpy().tolist(), dict(optimizer.param_groups[0])["lr"]

    assert train(capture=True) == train(capture=False)


@pytest.mark.parametrize("params", [3, None, "a"])
def test_a_state_with_other_numbers_of_parameters_is_refused(params):
    optimizer = two_groups(nn.SGD)
    state = optimizer.state_dict()
    state["param_groups"][1]["params"] = params
    with pytest.raises(ValueError, match=r"^load_state_dict: expected groups of \[1, 1\] parameters"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda o: nn.StepLR(o, 10, "0.1"), "StepLR: gamma must be a number, got '0.1'"),
        (lambda o: nn.StepLR(o, 10, np.nan), "StepLR: gamma must be at least 0 and finite, got nan"),
        (lambda o: nn.WarmupCosineLR(o, 1.5, 10), "WarmupCosineLR: warmup_steps must be an integer, got 1.5"),
        (lambda o: nn.WarmupCosineLR(o, 1, None), "WarmupCosineLR: total_steps must be an integer, got None"),
        (lambda o: nn.WarmupCosineLR(o, 1, 10, "x"), "WarmupCosineLR: eta_min must be a number, got 'x'"),
        (lambda o: nn.OneCycleLR(o, "1", 10), "OneCycleLR: max_lr must be a number, got '1'"),
        (lambda o: nn.OneCycleLR(o, 1.0, 10.5), "OneCycleLR: total_steps must be an integer, got 10.5"),
        (lambda o: nn.OneCycleLR(o, 1.0, 10, None), "OneCycleLR: pct_start must be a number, got None"),
        (lambda o: nn.GradScaler("x"), "GradScaler: init_scale must be a number, got 'x'"),
        (lambda o: nn.GradScaler(growth_factor=None), "GradScaler: growth_factor must be a number, got None"),
    ],
)
def test_schedules_and_scalers_name_what_is_no_number(make, error):
    optimizer = two_groups(nn.SGD)
    with pytest.raises((TypeError, ValueError), match=f"^{error}"):
        make(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("rates", [None, 0.1, ["a", 0.1]])
def test_a_schedule_refuses_the_state_of_another(rates):
    optimizer = two_groups(nn.SGD)
    schedule = nn.StepLR(optimizer, 2)
    state = {**schedule.state_dict(), "base_lrs": rates}
    with pytest.raises(ValueError, match=r"^load_state_dict: this is no state of a StepLR of 2 groups"):
        schedule.load_state_dict(state)
    assert schedule.base_lrs == [0.1, 0.1]


def trained(resumed_from: Path | None = None) -> list[float]:
    """Rates and a weight of a run in which a group joins and a rate is set by hand, saved and loaded in the middle."""
    first, second = (mg.tensor(np.ones(2), requires_grad=True) for _ in range(2))
    optimizer = nn.SGD([first], lr=1.0)
    schedule = nn.StepLR(optimizer, 2, 0.1)
    for _ in range(4):
        schedule.step()
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    optimizer.param_groups[0]["lr"] = 0.3
    if resumed_from is not None:
        nn.save_checkpoint(resumed_from, optimizer=optimizer, schedule=schedule)
        optimizer = nn.SGD([{"params": [first]}, {"params": [second]}], lr=1.0)
        schedule = nn.StepLR(optimizer, 2, 0.1)
        nn.load_checkpoint(resumed_from, schedule=schedule, optimizer=optimizer)
    found = []
    for _ in range(3):
        second.grad = np.ones(2)
        optimizer.step()
        found += [*(group["lr"] for group in optimizer.param_groups), second.data[0]]
        schedule.step()
    return found


def test_a_resumed_run_has_the_rates_of_the_one_that_went_on(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    assert trained(tmp_path / "run.safetensors") == trained()


def test_loading_that_fails_leaves_a_rate_set_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    optimizer = two_groups(nn.SGD)
    schedule = nn.StepLR(optimizer, 2)
    nn.save_checkpoint(tmp_path / "a.safetensors", schedule=schedule, model=nn.Linear(2, 2, rng=0))
    optimizer.param_groups[0]["lr"] = 0.3
    with pytest.raises(ValueError, match="nothing was loaded"):
        nn.load_checkpoint(tmp_path / "a.safetensors", schedule=schedule, model=nn.Linear(3, 3, rng=0))
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.1]


@pytest.mark.parametrize("lrs", [[0.1], [0.1, -1.0], [0.1, np.nan], None])
def test_a_schedule_refuses_rates_that_do_not_fit(lrs: Any) -> None:
    optimizer = two_groups(nn.SGD)
    schedule = nn.StepLR(optimizer, 2)
    with pytest.raises(ValueError, match=r"^load_state_dict: this is no state of a StepLR of 2 groups"):
        schedule.load_state_dict({**schedule.state_dict(), "lrs": lrs})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_0d_parameters_are_unscaled(dtype: Any) -> None:
    w = mg.tensor(np.ones(2, dtype), requires_grad=True)
    t = mg.tensor(np.ones((), dtype), requires_grad=True)
    optimizer, scaler = nn.SGD([w, t], 0.5), nn.GradScaler(4.0)
    scaler.scale((w * t).sum()).backward()
    scaler.unscale_(optimizer)
    assert w.grad is not None
    assert t.grad is not None
    assert (w.grad.numpy().tolist(), t.grad.item()) == ([1, 1], 2)
    scaler.step(optimizer)
    assert (w.numpy().tolist(), t.item()) == ([0.5, 0.5], 0)


@pytest.mark.parametrize("make", [nn.Adam, nn.AdamW])
@pytest.mark.parametrize(
    ("dtype", "large", "kernels"), [("f2", 300.0, "numpy"), ("f4", 5e19, "numpy"), ("f4", 5e19, "numba")]
)
def test_one_large_gradient_does_not_stop_a_weight_for_good(make: Any, dtype: str, large: float, kernels: Any) -> None:
    if kernels == "numba":
        pytest.importorskip("numba", reason="Numba is not installed")
    w = mg.tensor(np.ones(1000, dtype), requires_grad=True)
    optimizer = make([w], 0.1, eps=1e-4, weight_decay=0.0)
    with mg.kernels(kernels):
        for g in (large, 1.0):
            w.grad = np.full(1000, g, dtype)
            optimizer.step()
    # The second gradient is next to nothing beside the first.
    exact = 1.0 - 0.1 - 0.1 * (0.09 / 0.19) / (0.000999 / 0.001999) ** 0.5
    assert np.isfinite(optimizer.state_dict()["state"][0]["exp_avg_sq"]).all()
    np.testing.assert_allclose(w.numpy(), exact, rtol=5e-3)
