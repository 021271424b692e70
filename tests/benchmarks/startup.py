"""From the start of a process to the first trained step: of the tiny MLP, and of a block by compiled kernels.

The MLP is 64-128-10 on 32 rows. The block (256 wide, 8 heads, 8 x 256 tokens) is timed with NumPy's kernels, with
kernels that Numba compiles anew, and with those that it finds on disk.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .environment import TORCH_INSTALLED
from .timing import line, ratio

ROUNDS = 15
BAR = "bar: at most 0.25 x PyTorch"

OURS = """
import numpy as np, nn
model = nn.MLP([64, 128, 10], rng=0)
optimizer = nn.SGD(model.parameters(), lr=0.1)
x, y = np.random.default_rng(0).standard_normal((32, 64), np.float32), np.arange(32) % 10
loss = nn.cross_entropy(model(x), y)
loss.backward()
optimizer.step()
"""
THEIRS = """
import torch
from torch.nn import functional as F
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(32, 64), torch.arange(32) % 10
loss = F.cross_entropy(model(x), y)
loss.backward()
optimizer.step()
"""


BLOCK = """
import numpy as np, microgradnd as mg, nn
mg.kernels({kernels!r})
model = nn.TransformerBlock(256, 8, causal=True, rng=0)
optimizer = nn.SGD(model.parameters(), lr=1e-3)
model(mg.tensor(np.ones((8, 256, 256), np.float32))).sum().backward()
optimizer.step()
"""


def seconds(program: str, **environment: str) -> float:
    start = time.perf_counter()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env=os.environ | environment)
    return time.perf_counter() - start


def run_block() -> None:
    line("block, NumPy", [seconds(BLOCK.format(kernels="numpy")) for _ in range(3)], "ms")
    if importlib.util.find_spec("numba"):
        program = BLOCK.format(kernels="numba")
        with tempfile.TemporaryDirectory() as empty:
            line("block, Numba, nothing compiled", [seconds(program, NUMBA_CACHE_DIR=empty)], "ms")
            line("block, Numba, found on disk", [seconds(program, NUMBA_CACHE_DIR=empty) for _ in range(3)], "ms")


def run(rounds: int) -> None:
    programs = {"microgradnd": OURS, **({"PyTorch": THEIRS} if TORCH_INSTALLED else {})}
    times: dict[str, list[float]] = {who: [] for who in programs}
    for program in programs.values():
        seconds(program)  # compiles the modules, and brings them from the disk into memory
    for _ in range(rounds):
        for who, program in programs.items():
            times[who].append(seconds(program))
    for who in programs:
        figure = ratio(times[who], times["PyTorch"], "PyTorch") if who != "PyTorch" and "PyTorch" in times else ""
        line(who, times[who], "ms", figure, BAR if figure else "")
    run_block()
