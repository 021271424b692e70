"""What recording adds to NumPy's own time for operations on small arrays.

A step is a call of a lambda, about 0.04 us, which the differences do not contain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .environment import TORCH_INSTALLED
from .timing import Step, Worker, interleaved, line, median

ROUNDS = 30
BARS = {"a * b": "bar: at most +1.20 us"}


def inputs() -> list[np.ndarray]:
    """Two vectors of 8 float64s, two matrices of 8 x 8."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in (8, 8, (8, 8), (8, 8))]


def steps(exp: Any, a: Any, b: Any, A: Any, B: Any) -> dict[str, Step]:
    """What is timed: the same lines for every library."""
    return {
        "a * b": lambda: a * b,
        "exp(a)": lambda: exp(a),
        "a + 1.0": lambda: a + 1.0,
        "A @ B": lambda: A @ B,
        "a.sum()": lambda: a.sum(),
        "a[2:5]": lambda: a[2:5],
    }


def numpy_steps() -> dict[str, Step]:
    return steps(np.exp, *inputs())


def engine_steps() -> dict[str, Step]:
    import microgradnd as mg

    return steps(mg.exp, *(mg.tensor(x, requires_grad=True) for x in inputs()))


def torch_steps() -> dict[str, Step]:
    import torch

    return steps(torch.exp, *(torch.from_numpy(x).requires_grad_() for x in inputs()))


def run(rounds: int) -> None:
    workers = {"NumPy": Worker(numpy_steps), "microgradnd": Worker(engine_steps)}
    if TORCH_INSTALLED:
        workers["PyTorch"] = Worker(torch_steps)
    else:
        print("  PyTorch is not installed")
    names = list(numpy_steps())
    times = interleaved(workers, names, rounds, turn=20, pause=0)  # nothing here uses a second thread
    for worker in workers.values():
        worker.close()
    for name in names:
        for who in workers:
            figure = "" if who == "NumPy" else over(times[name, who], times[name, "NumPy"])
            bar = BARS.get(name, "") if who == "microgradnd" else ""
            line(f"{name:<8} {who}", times[name, who], "us", figure, bar)


def over(times: list[float], baseline: list[float]) -> str:
    """The difference of the medians, and the quartiles of the differences within rounds."""
    low, high = np.percentile(np.subtract(times, baseline), [25, 75]) * 1e6
    difference = (median(times) - median(baseline)) * 1e6
    return f"{difference:+.2f} us over NumPy (by round {low:.2f} to {high:.2f})"
