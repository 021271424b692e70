"""Checkpoints: what goes in comes out, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.checkpointed_run import Run

pytest.importorskip("safetensors", reason="safetensors is not installed")

OPTIMIZERS: list[Callable[..., nn.Optimizer]] = [
    nn.AdamW,
    nn.Adam,
    nn.SGD,
    lambda params, lr: nn.SGD(params, lr, momentum=0.9),
    lambda params, lr: nn.RMSprop(params, lr, momentum=0.5, centered=True),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(optimizer: Any, tmp_path: Path) -> None:
    run = Run(optimizer=optimizer)
    for _ in range(4):
        run.step()
    nn.save_checkpoint(tmp_path / "run.safetensors", **run.parts(), step=4)
    losses = [run.step() for _ in range(5)]

    resumed = Run(seed=99, optimizer=optimizer)  # other weights, another stream of numbers
    resumed.step()
    values = nn.load_checkpoint(tmp_path / "run.safetensors", **resumed.parts())
    assert values == {"step": 4}
    assert [resumed.step() for _ in range(5)] == losses
    assert resumed.fingerprint() == run.fingerprint()


def test_values_come_back_as_they_were(tmp_path: Path, device: Any) -> None:
    path = tmp_path / "values.safetensors"
    arrays = [np.arange(6).reshape(2, 3).astype(dtype) for dtype in ("i1", "u8", "f2", "f4", "f8", "?")]
    arrays += [np.zeros(()), np.zeros((0, 3)), np.arange(12.0).reshape(3, 4).T[::2]]
    values = {
        "number": 3, "large": 2**100, "float": 0.1, "infinite": -np.inf, "text": "ä\n\"", "none": None, "flag": True,
        "nested": {"tensor": [1, [2.5, {"dict": {}}]], "": []}, "scalar": np.float32(0.1),
    }  # fmt: skip
    nn.save_checkpoint(
        path, arrays=[device.array(x) for x in arrays], tensor=mg.tensor(device.array(np.ones(2))), **values
    )
    loaded = nn.load_checkpoint(path)
    for ours, expected in zip(loaded.pop("arrays"), arrays, strict=True):
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(loaded.pop("tensor"), np.ones(2))
    assert loaded == values | {"scalar": float(np.float32(0.1))}


@pytest.mark.parametrize("name", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_of_every_kind(name: str, tmp_path: Path) -> None:
    rng = np.random.Generator(getattr(np.random, name)(5))
    rng.random(1, np.float32)  # half of a draw is left over
    nn.save_checkpoint(tmp_path / "rng.safetensors", rng=rng)
    expected = rng.random(5, np.float32)
    other = np.random.Generator(getattr(np.random, name)(6))
    nn.load_checkpoint(tmp_path / "rng.safetensors", rng=other)
    np.testing.assert_array_equal(other.random(5, np.float32), expected)


def test_parts_that_are_left_out_stay_as_they_are(tmp_path: Path) -> None:
    run = Run()
    run.step()
    nn.save_checkpoint(tmp_path / "run.safetensors", **run.parts(), note="x")
    other = Run(seed=3)
    optimizer = other.optimizer.state_dict()
    assert nn.load_checkpoint(tmp_path / "run.safetensors", model=other.model) == {"note": "x"}
    np.testing.assert_array_equal(other.model.embedding.weight.data, run.model.embedding.weight.data)
    assert other.optimizer.state_dict() == optimizer


def test_any_reader_of_safetensors_can_open_it(tmp_path: Path) -> None:
    import safetensors.numpy

    run = Run()
    nn.save_checkpoint(tmp_path / "run.safetensors", **run.parts())
    arrays = safetensors.numpy.load_file(tmp_path / "run.safetensors")
    np.testing.assert_array_equal(arrays["model.tensors.embedding.weight"], run.model.embedding.weight.data)


def test_the_header_is_json_without_pickles(tmp_path: Path) -> None:
    nn.save_checkpoint(tmp_path / "run.safetensors", **Run().parts())
    blob = (tmp_path / "run.safetensors").read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert set(header["__metadata__"]) == {"format", "parts", "sha256"}
    assert set(json.loads(header["__metadata__"]["parts"])) == {"model", "optimizer", "schedule", "rng"}


def test_a_model_stays_on_its_device(tmp_path: Path, device: Any) -> None:
    model, expected = nn.Linear(3, 2, rng=0), nn.Linear(3, 2, rng=1)
    for parameter in model.parameters():
        parameter.data = parameter.data * 0
    moved = nn.Linear(3, 2, rng=0).to(device.name)
    optimizer = nn.Adam(moved.parameters(), lr=0.1)
    moved(mg.tensor(device.array(np.ones((4, 3), np.float32)))).sum().backward()
    optimizer.step()
    nn.save_checkpoint(tmp_path / "c.safetensors", model=expected, optimizer=optimizer)
    nn.load_checkpoint(tmp_path / "c.safetensors", model=moved, optimizer=optimizer)
    assert type(moved.weight.data) is device.xp.ndarray
    np.testing.assert_array_equal(device.host(moved.weight.data), expected.weight.data)
    moved(mg.tensor(device.array(np.ones((4, 3), np.float32)))).sum().backward()
    optimizer.step()
    assert type(moved.weight.data) is device.xp.ndarray


def test_parameters_in_the_other_byte_order(tmp_path: Path) -> None:
    models = [nn.Linear(2, 2, rng=seed) for seed in (0, 1)]
    for model in models:
        model.weight = mg.tensor(model.weight.data.astype(">f4"), requires_grad=True)
    nn.save_checkpoint(tmp_path / "c.safetensors", model=models[0])
    nn.load_checkpoint(tmp_path / "c.safetensors", model=models[1])
    np.testing.assert_array_equal(models[1].weight.data, models[0].weight.data)


def test_generators_in_a_list_of_a_module_are_saved(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self, seed: int) -> None:
            self.rngs = [np.random.default_rng(seed), {"a": np.random.default_rng(seed + 1)}]

    saved, loaded = Noisy(0), Noisy(5)
    nn.save_checkpoint(tmp_path / "c.safetensors", model=saved)
    nn.load_checkpoint(tmp_path / "c.safetensors", model=loaded)
    assert [name for name, _ in loaded.named_generators()] == ["rngs.0", "rngs.1.a"]
    for (_, a), (_, b) in zip(saved.named_generators(), loaded.named_generators(), strict=True):
        assert a.random() == b.random()
