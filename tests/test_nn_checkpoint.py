"""Checkpoints: what goes in comes out, bit for bit; what is damaged or does not fit is refused, and changes nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn

pytest.importorskip("safetensors", reason="safetensors is not installed")
ROOT = Path(__file__).parents[1]


class Run:
    """A small training run with everything in it that has a state."""

    def __init__(self, seed: int = 0, optimizer: Callable[..., nn.Optimizer] = nn.AdamW, width: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.model = nn.Transformer(11, width, 2, 2, 6, dropout=0.2, rng=self.rng)
        self.optimizer = optimizer(nn.decay_groups(self.model, 0.1), lr=0.01)
        self.schedule = nn.WarmupCosineLR(self.optimizer, 3, 50)

    def step(self) -> float:
        tokens = self.rng.integers(0, 11, (3, 7))
        loss = nn.cross_entropy(self.model(tokens[:, :-1]), tokens[:, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        nn.clip_grad_norm(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss)

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "rng": self.rng}

    def fingerprint(self) -> str:
        """Of all bits of the state."""
        digest = hashlib.sha256()
        for name, array in self.model.state_dict().items():
            digest.update(name.encode() + str(array.dtype).encode() + array.tobytes())
        for state in self.optimizer.state_dict()["state"]:
            for name, value in state.items():
                digest.update(name.encode() + np.asarray(value).tobytes())
        settings = [{**group, "params": None} for group in self.optimizer.param_groups]
        digest.update(repr((settings, self.schedule.state_dict(), self.rng.bit_generator.state)).encode())
        return digest.hexdigest()


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


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        nn.save_checkpoint(tmp_path / "missing" / "run.safetensors", x=np.ones(2))
    assert caught.value.filename == str(tmp_path / "missing" / "run.safetensors")


def test_floats_of_8_bits_are_refused(tmp_path: Path) -> None:
    x = np.ones(2, pytest.importorskip("ml_dtypes").float8_e5m2)
    with pytest.raises(TypeError, match="float8_e5m2 can't be saved"):
        nn.save_checkpoint(tmp_path / "run.safetensors", x=x)
    with pytest.raises(TypeError, match="got an array of dtype float8_e5m2; expected numbers"):
        mg.tensor(x)
    with pytest.raises(TypeError, match="float8_e5m2"):
        mg.exp(x)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.safetensors"
    nn.save_checkpoint(path, step=1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        nn.save_checkpoint(path, step=2)
    assert nn.load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        nn.save_checkpoint(tmp_path / "none" / "run.safetensors", step=2)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    nn.save_checkpoint(real, step=1)
    link.symlink_to(real)
    nn.save_checkpoint(link, step=2)
    assert link.is_symlink()
    assert nn.load_checkpoint(real) == {"step": 2}


KILLED = """
import sys
from pathlib import Path
from tests.test_nn_checkpoint import Run
import nn

path, last = Path(sys.argv[1]), int(sys.argv[2])
run, step, losses = Run(), 0, []
if path.exists():
    values = nn.load_checkpoint(path, **run.parts())
    step, losses = values["step"], values["losses"]
print("step", step, flush=True)
while step < last:
    losses.append(run.step())
    step += 1
    nn.save_checkpoint(path, **run.parts(), step=step, losses=losses)
    print("step", step, flush=True)
"""


def test_killed_twenty_times_and_resumed(tmp_path: Path) -> None:
    """SIGKILL at random moments, most of them within a save; at the end nothing tells the runs apart."""
    rng, path = np.random.default_rng(0), tmp_path / "killed.safetensors"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(path)]
    kills, resumed_at = 0, []
    while kills < 20:
        endless = [*command, str(1 << 60)]  # however late the signal comes
        process = subprocess.Popen(endless, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        resumed_at.append(int(process.stdout.readline().split()[1]))
        for _ in range(rng.integers(0, 5)):
            process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.03)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert resumed_at == sorted(resumed_at)
    assert resumed_at[-1] > 0

    def run_to(last: int) -> int:
        """Where it began."""
        done = subprocess.run([*command, str(last)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return int(done.stdout.split()[1])

    last = run_to(0) + 10
    assert run_to(last) == last - 10
    run = Run()
    losses = [run.step() for _ in range(last)]
    killed = Run(seed=1)
    values = nn.load_checkpoint(path, **killed.parts())
    assert values == {"step": last, "losses": losses}
    assert killed.fingerprint() == run.fingerprint()
    others = {file.name for file in tmp_path.iterdir()} - {"killed.safetensors"}
    assert all(re.fullmatch(r"\.killed\.safetensors\.[0-9a-f]{8}\.tmp", name) for name in others)


def test_the_header_is_json_without_pickles(tmp_path: Path) -> None:
    nn.save_checkpoint(tmp_path / "run.safetensors", **Run().parts())
    blob = (tmp_path / "run.safetensors").read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert set(header["__metadata__"]) == {"format", "parts", "sha256"}
    assert set(json.loads(header["__metadata__"]["parts"])) == {"model", "optimizer", "schedule", "rng"}


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


def test_several_writers_of_one_path_leave_it_whole(tmp_path: Path) -> None:
    path, stop, problems = tmp_path / "c.safetensors", threading.Event(), []
    nn.save_checkpoint(path, x=np.zeros(1))

    def write(size: int) -> None:
        while not stop.is_set():
            nn.save_checkpoint(path, x=np.full(size, size))

    writers = [threading.Thread(target=write, args=(size,)) for size in (1_000, 100_000)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(50):
            x = nn.load_checkpoint(path)["x"]
            if x.size > 1 and not (x == x.size).all():
                problems.append(x)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert not problems
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="needs pipes with names and permissions of POSIX")
def test_pipes_stay_pipes_and_permissions_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        nn.save_checkpoint(tmp_path / "pipe", x=1)
    assert (tmp_path / "pipe").is_fifo()
    nn.save_checkpoint(tmp_path / "c.safetensors", x=1)
    (tmp_path / "c.safetensors").chmod(0o640)
    nn.save_checkpoint(tmp_path / "c.safetensors", x=2)
    assert (tmp_path / "c.safetensors").stat().st_mode & 0o777 == 0o640


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
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.15]
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
