"""The workloads of ``speed`` on a GPU beside PyTorch CUDA: milliseconds of device time by events, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.util import find_spec

import microgradnd as mg

from .speed.engine_steps import engine
from .speed.pytorch_steps import pytorch
from .speed.workloads import WORKLOADS, Step, Steps, Workload

ROUNDS = 15
WARM_UP = 5
CALLS = 10


def milliseconds(step: Step, rounds: int) -> list[float]:
    """Of one call, in each round of several calls."""
    import cupy

    for _ in range(WARM_UP):
        step()
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    found = []
    for _ in range(rounds):
        start.record()
        for _ in range(CALLS):
            step()
        stop.record()
        stop.synchronize()
        found.append(cupy.cuda.get_elapsed_time(start, stop) / CALLS)
    return found


def candidates(workload: Workload) -> dict[str, Callable[[], Steps]]:
    """Who takes part, each with what makes its steps."""
    name = workload.name
    found: dict[str, Callable[[], Steps]] = {
        "array functions": lambda: engine(name, "numpy"),
        "kernels": lambda: engine(name, "auto"),
    }
    if name != "elementwise":
        found["captured"] = lambda: engine(name, "auto", captured=True)
    if find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            found["PyTorch"] = lambda: pytorch(name, False, "cuda")
            if name != "elementwise":
                found["torch.compile"] = lambda: pytorch(name, True, "cuda")
    return found


def run(rounds: int) -> None:
    if not mg.cuda_is_available():
        print("  there is no GPU here")
        return
    print(f"  {'':<40}{'median ms':>12}{'spread':>10}")
    for workload in WORKLOADS:
        for who, make in candidates(workload).items():
            with mg.device("cuda"):
                steps = make()
                for name in workload.names:
                    times = milliseconds(steps[name], rounds)
                    middle = statistics.median(times)
                    spread = (max(times) - min(times)) / middle if middle else 0.0
                    print(f"  {f'{name}, {who}':<40}{middle:>12.3f}{spread:>9.0%}", flush=True)
