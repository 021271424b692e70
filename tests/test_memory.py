"""The allocator keeps freed memory: counted in page faults of a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource
import numpy as np
import microgradnd as mg

x = mg.tensor(np.ones((1024, 1024), np.float32), requires_grad=True)  # 4 MiB, 1,024 pages
def step():
    x.zero_grad()
    mg.tanh(mg.sin(x)).sum().backward()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def faults(**environment: str) -> float:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    process = subprocess.run(
        [sys.executable, "-c", CODE],
        env=clean | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(process.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_steps_touch_no_fresh_memory_unless_the_user_wants_it() -> None:
    assert faults() < 10
    assert faults(MICROGRADND_KEEP_MEMORY="0") > 500
    assert faults(MALLOC_MMAP_THRESHOLD_="131072") > 500
