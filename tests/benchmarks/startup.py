"""From the start of a process to the first trained step of the tiny MLP, 64-128-10 on 32 rows."""

from __future__ import annotations

import subprocess
import sys
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


def seconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
    return time.perf_counter() - start


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
