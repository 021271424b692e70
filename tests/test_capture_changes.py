"""mg.capture: what changes between calls is read anew, or the step is recorded anew."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import OPTIMIZERS, batches, bits, mlp, replays, state, step_that_branches, training_step

pytestmark = pytest.mark.usefixtures("numpy_kernels")


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


@pytest.mark.parametrize("turns", ["AAAAABAAA", "AAAABBBBAAAABBBB", "ABABABABABAB", "AAAABCCBBAAC"])
@pytest.mark.parametrize("place", ["attribute", "parameter", "list", "closure"])
def test_arrays_that_lie_in_a_place_in_turns(turns: str, place: str) -> None:
    """As weights and their averages do, and the data of training and of validation."""
    arrays = {name: np.full(3, value) for name, value in zip("ABC", (1.0, 10.0, 100.0), strict=True)}
    weight, rows, box, closed = mg.tensor(arrays["A"]), [arrays["A"]], types.SimpleNamespace(), arrays["A"]
    steps = {
        "attribute": lambda x: (x * mg.tensor(box.x)).sum(),
        "parameter": lambda x: (x * weight).sum(),
        "list": lambda x: (x * mg.tensor(rows[0])).sum(),
        "closure": lambda x: (x * mg.tensor(closed)).sum(),
    }
    step = mg.capture(steps[place])
    found = []
    for turn in turns:
        box.x = weight.data = rows[0] = closed = arrays[turn]
        found.append(step(np.ones(3)).item())
    assert found == [arrays[turn].sum() for turn in turns]
    assert replays(step) == len(turns) - 2


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
    w, other = [mg.tensor(np.ones(2), requires_grad=True) for _ in range(2)]
    step, rng = mg.capture(lambda x: step_that_branches(x, w)), np.random.default_rng(0)
    for _ in range(20):
        x = rng.standard_normal(2)
        assert bits(step(x), w, w.grad) == bits(step_that_branches(x, other), other, other.grad)
    assert replays(step) > 3


def test_a_branch_after_random_numbers_puts_the_generator_back() -> None:
    layers = [nn.Dropout(0.5, 0) for _ in range(2)]

    def apply(layer: nn.Module, x: Any) -> mg.Tensor:
        out = layer(mg.tensor(x))
        return out.sum() if out.sum() > 4 else out.mean()

    step = mg.capture(lambda x: apply(layers[0], x))
    for _ in range(20):
        assert bits(step(np.ones(6))) == bits(apply(layers[1], np.ones(6)))
