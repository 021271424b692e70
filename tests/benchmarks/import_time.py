"""Importing microgradnd and nn against importing NumPy, in fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .timing import line, ratio

ROUNDS = 30
ROOT = Path(__file__).parents[2]
CANDIDATES = {"numpy": "import numpy", "microgradnd, nn": "import microgradnd, nn"}
BAR = "bar: at most 1.30 x"
CODE = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def import_seconds(statement: str, cache: str) -> tuple[float, float]:
    """Seconds of the statement by itself, and of the whole process; bytecode is kept in ``cache``."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # An installed package is compiled when it is installed: measured with compiled files, for both alike.
    environment = {"PYTHONPATH": path, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", CODE.format(statement)]
    start = time.perf_counter()
    process = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(process.stdout), time.perf_counter() - start


def run(rounds: int) -> None:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in CANDIDATES}
    with tempfile.TemporaryDirectory() as cache:
        for statement in CANDIDATES.values():
            import_seconds(statement, cache)  # compiles, and reads the files from the disk
        for _ in range(rounds):
            for name, statement in CANDIDATES.items():
                seconds[name].append(import_seconds(statement, cache))
    for part, title in enumerate(("import", "whole process")):
        baseline = [pair[part] for pair in seconds["numpy"]]
        line(f"{title}: numpy", baseline, "ms")
        times = [pair[part] for pair in seconds["microgradnd, nn"]]
        line(f"{title}: microgradnd, nn", times, "ms", ratio(times, baseline, "NumPy"), BAR)
