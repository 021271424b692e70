"""Checkpoints as files: whole whatever happens to their writers; links, pipes and permissions stay."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import nn
from tests.checkpointed_run import Run

pytest.importorskip("safetensors", reason="safetensors is not installed")
ROOT = Path(__file__).parents[1]


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        nn.save_checkpoint(tmp_path / "missing" / "run.safetensors", x=np.ones(2))
    assert caught.value.filename == str(tmp_path / "missing" / "run.safetensors")


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
from tests.checkpointed_run import Run
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
