"""Checkpoints that are damaged or don't fit, and values that can't be saved, are refused; and nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.checkpointed_run import Run

pytest.importorskip("safetensors", reason="safetensors is not installed")


def corrupted(blob: bytes, other: bytes, kind: int, rng: np.random.Generator) -> bytes:
    """One of many kinds of damage to a file; ``other`` is a second checkpoint of the same run."""
    damaged = bytearray(blob)
    header = 8 + int.from_bytes(blob[:8], "little")
    if kind == 0:  # a bit anywhere
        damaged[rng.integers(len(blob))] ^= 1 << rng.integers(8)
    elif kind == 1:  # a bit of the header
        damaged[rng.integers(header)] ^= 1 << rng.integers(8)
    elif kind == 2:  # the end is missing
        del damaged[rng.integers(len(blob)) :]
    elif kind == 3:  # another checkpoint's header
        other_header = 8 + int.from_bytes(other[:8], "little")
        damaged[:header] = other[:other_header]
    elif kind == 4:  # a block of zeros, as a disk leaves them
        start = int(rng.integers(len(blob)))
        damaged[start : start + 512] = bytes(min(512, len(blob) - start))
    elif kind == 5:  # two blocks of the data swapped
        a, b = sorted(rng.integers(header, len(blob) - 16, 2))
        damaged[a : a + 16], damaged[b : b + 16] = damaged[b : b + 16], damaged[a : a + 16]
    elif kind == 6:  # bytes too many
        damaged[rng.integers(len(blob)) :] += rng.bytes(int(rng.integers(1, 9)))
    else:  # a digit of the header: shapes, offsets, numbers of the metadata
        digits = [i for i in range(8, header) if chr(blob[i]).isdigit()]
        damaged[digits[rng.integers(len(digits))]] = ord(str(rng.integers(10)))
    return bytes(damaged)


def test_a_thousand_corruptions_are_refused_or_harmless(tmp_path: Path) -> None:
    """Every one names the file, and changes nothing in memory; or the file still says exactly the same."""
    run, path = Run(), tmp_path / "run.safetensors"
    nn.save_checkpoint(path, **run.parts(), step=0)
    other = path.read_bytes()
    run.step()
    nn.save_checkpoint(path, **run.parts(), step=1)
    blob, saved = path.read_bytes(), run.fingerprint()

    into = Run(seed=4)
    into.step()
    untouched = into.fingerprint()
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(1000):
        damaged = corrupted(blob, other, i % 8, rng)
        path.write_bytes(damaged)
        error = ""
        try:
            values = nn.load_checkpoint(path, **into.parts())
        except ValueError as caught:
            error = str(caught)
        if error:
            refused += 1
            assert str(path) in error
            assert into.fingerprint() == untouched
        else:
            assert values == {"step": 1}
            assert into.fingerprint() == saved
            into = Run(seed=4)
            into.step()
    assert 950 <= refused < 1000  # a digit replaced by itself is harmless


def test_checkpoints_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run = Run()
    run.step()
    nn.save_checkpoint(path, **run.parts(), step=1)

    into = Run(seed=4)
    into.step()
    before = into.fingerprint()
    larger, double = Run(width=16), nn.Transformer(11, 8, 2, 2, 6, dropout=0.2, dtype=np.float64)
    sgd = nn.SGD(nn.decay_groups(into.model, 0.1), lr=0.1)
    one_group = nn.AdamW(into.model.parameters())
    for changed, message in (
        ({"model": larger.model}, "model does not fit, and nothing was loaded: .*has shape"),
        ({"model": double}, "model does not fit.* is float32 in the file, float64 in the module"),
        ({"model": nn.Linear(2, 2)}, "model does not fit.*generators"),
        ({"optimizer": sgd}, "optimizer does not fit.*no state of SGD"),
        ({"optimizer": one_group}, r"optimizer does not fit.*expected groups of \[\d+\] parameters"),
        ({"schedule": into.model}, "schedule does not fit.*it is the state of a stateful object, not of a module"),
        ({"rng": np.random.Generator(np.random.MT19937(0))}, "rng does not fit"),
        ({"step": into.rng}, "step does not fit"),
        ({"epoch": into.rng}, "there is no epoch, but model, optimizer, schedule, rng, step"),
    ):
        with pytest.raises(ValueError, match=rf"load_checkpoint: .*run\.safetensors: {message}"):
            nn.load_checkpoint(path, **into.parts() | changed)
        assert into.fingerprint() == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    import safetensors.numpy

    path = tmp_path / "file.safetensors"
    safetensors.numpy.save_file({"x": np.ones(2)}, path)
    with pytest.raises(ValueError, match=r"file\.safetensors .*a safetensors file, but no checkpoint"):
        nn.load_checkpoint(path)
    safetensors.numpy.save_file({"x": np.ones(2)}, path, {"format": "microgradnd checkpoint 2"})
    with pytest.raises(ValueError, match="its format is 'microgradnd checkpoint 2', and this version reads"):
        nn.load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        nn.load_checkpoint(tmp_path / "none.safetensors")


def test_values_that_can_not_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    nn.save_checkpoint(path, step=1)
    for value, message in (
        (object(), "save_checkpoint: value: a object can't be saved"),
        ([1, {2}], r"save_checkpoint: value\.1: a set can't be saved"),
        ({1: 2}, "save_checkpoint: value: the keys of a dict must be strings"),
        (np.complex64(1j), "save_checkpoint: value: a complex can't be saved"),
        (np.longdouble(1), "save_checkpoint: value: a "),
        (np.ones(2, complex), "save_checkpoint: value: a ndarray of complex128 can't be saved"),
        ([np.array(["a"])], r"save_checkpoint: value\.0: a ndarray of <U1 can't be saved"),
        (np.ma.masked_array([1.0], [True]), "save_checkpoint: value: a MaskedArray of float64 can't be saved"),
    ):
        with pytest.raises(TypeError, match=message):
            nn.save_checkpoint(path, value=value)
    assert nn.load_checkpoint(path) == {"step": 1}


def test_floats_of_8_bits_are_refused(tmp_path: Path) -> None:
    x = np.ones(2, pytest.importorskip("ml_dtypes").float8_e5m2)
    with pytest.raises(TypeError, match="float8_e5m2 can't be saved"):
        nn.save_checkpoint(tmp_path / "run.safetensors", x=x)
    with pytest.raises(TypeError, match="got an array of dtype float8_e5m2; expected numbers"):
        mg.tensor(x)
    with pytest.raises(TypeError, match="float8_e5m2"):
        mg.exp(x)


def test_a_value_can_not_be_loaded_into_and_nothing_changes(tmp_path: Path) -> None:
    run, other = Run(), Run(1)
    nn.save_checkpoint(tmp_path / "c.safetensors", **run.parts(), step=7)
    before = other.fingerprint()
    with pytest.raises(ValueError, match=r"c\.safetensors: step does not fit, and nothing was loaded: a int can't"):
        nn.load_checkpoint(tmp_path / "c.safetensors", model=other.model, step=0)
    assert other.fingerprint() == before


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"h\.a\.b can't be the name of this array"):
        nn.save_checkpoint(tmp_path / "c.safetensors", h={"a.b": np.ones(2), "a": {"b": np.zeros(2)}})


def test_a_group_that_joined_the_optimiser_after_the_last_step_of_its_schedule(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    model = nn.MLP([3, 4, 2], rng=0)
    optimizer = nn.SGD(model.layers[0].parameters(), lr=0.1)
    schedule = nn.StepLR(optimizer, 1, 0.5)
    nn.save_checkpoint(path, model=model, schedule=schedule)
    before = model.layers[0].weight.data.copy()
    schedule.step()
    optimizer.add_param_group({"params": model.layers[2].parameters(), "lr": 0.3})
    schedule.load_state_dict(schedule.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.3]
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.075])
    model.layers[0].weight.data = before * 2
    with pytest.raises(ValueError, match=r"run\.safetensors: schedule does not fit, and nothing was loaded"):
        nn.load_checkpoint(path, model=model, schedule=schedule)
    np.testing.assert_array_equal(model.layers[0].weight.data, before * 2)
    nn.save_checkpoint(path, model=model, optimizer=optimizer, schedule=schedule)
    nn.load_checkpoint(path, model=model, optimizer=optimizer, schedule=schedule)


def test_states_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    nn.save_checkpoint(path, scaler=nn.GradScaler(enabled=False))
    with pytest.raises(ValueError, match=r"run\.safetensors: scaler does not fit, and nothing was loaded"):
        nn.load_checkpoint(path, scaler=nn.GradScaler())
    schedule = nn.StepLR(nn.SGD(nn.Linear(2, 2, rng=0).parameters(), 0.1), 1)
    with pytest.raises(ValueError, match="no state of a StepLR"):
        schedule.load_state_dict(schedule.state_dict() | {"last_step": -3})


def test_a_part_that_refuses_its_own_state_keeps_no_other_from_being_put_back(tmp_path: Path) -> None:
    class Average:  # holds nothing until it is started
        shadow: Any = None

        def state_dict(self) -> dict[str, Any]:
            return {} if self.shadow is None else {"shadow": self.shadow}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.shadow, self.decay = state["shadow"], state["decay"]

    average, path = Average(), tmp_path / "run.safetensors"
    average.shadow = np.ones(2)
    nn.save_checkpoint(path, model=nn.Linear(2, 2, rng=0), average=average)
    model = nn.Linear(2, 2, rng=1)
    before = model.weight.data.copy()
    with pytest.raises(ValueError, match=r"run\.safetensors: average does not fit, and nothing was loaded"):
        nn.load_checkpoint(path, model=model, average=Average())
    np.testing.assert_array_equal(model.weight.data, before)
