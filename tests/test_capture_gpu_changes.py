"""mg.capture on CuPy arrays: what is read anew, what is recorded anew, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.capture_on_cupy import Pair, mlp, rows, tokens, transformer
from tests.training_steps import bits, replays, step_that_branches

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


def test_a_branch_on_a_value_goes_its_way(cupy: Any) -> None:
    w, other = [mg.tensor(np.ones(2), requires_grad=True, device="cuda") for _ in range(2)]
    step, rng = mg.capture(lambda x: step_that_branches(x, w)), np.random.default_rng(0)
    for _ in range(20):
        x = cupy.asarray(rng.standard_normal(2))
        assert bits(step(x), w, w.grad) == bits(step_that_branches(x, other), other, other.grad)
    assert replays(step) > 3


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
    with pytest.raises(mg.CaptureError, match="return the tensor from the step"):
        step(cupy.ones(2))
    assert type(weight.data) is cupy.ndarray


def test_random_numbers_of_cupys_own_are_refused(cupy: Any) -> None:
    rng = cupy.random.default_rng(0)
    step = mg.capture(lambda x: x + rng.random(3))
    for _ in range(2):
        step(cupy.ones(3))
    with pytest.raises(mg.CaptureError, match="differ in the result"):
        step(cupy.ones(3))


def test_a_recording_on_a_device_is_not_saved(cupy: Any, tmp_path: Path) -> None:
    step = mg.capture(lambda x: x + 1)
    for _ in range(3):
        step(cupy.ones(1))
    with pytest.raises(mg.CaptureError, match="computes on a device"):
        step.save(tmp_path / "step.py")
    assert not list(tmp_path.iterdir())
