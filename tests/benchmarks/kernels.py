"""From which size on compiled kernels are faster than NumPy, and all threads faster than one: SMALL and SHARE."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS = 30
ROW = 128
SIZES = [1 << n for n in (7, 8, 9, *range(10, 23, 2))]


def least(step: Callable[[], Any], rounds: int) -> float:
    """The shortest time of a call, in microseconds: the others were waiting for something else."""
    step()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6


def run(rounds: int) -> None:
    if importlib.util.find_spec("numba") is None:
        print("  Numba is not installed")
        return
    import microgradnd as mg
    import nn
    from microgradnd.kernels import SMALL, numba_threads

    def both_ways(op: Callable[..., mg.Tensor]) -> Callable[[Any], Callable[[], Any]]:
        def make(x: Any) -> Callable[[], Any]:
            t, g = mg.tensor(x, requires_grad=True), np.ones_like(x)

            def step() -> None:
                t.zero_grad()
                op(t).backward(g)

            return step

        return make

    def adam(x: Any) -> Callable[[], Any]:
        t = mg.tensor(x, requires_grad=True)
        t.grad = mg.tensor(x)
        return nn.Adam([t]).step

    candidates = {"gelu": both_ways(mg.gelu), "softmax": both_ways(mg.softmax), "layer norm": both_ways(mg.layer_norm)}
    small, share = dict(SMALL), numba_threads.SHARE
    try:
        SMALL["numba"] = 0
        print(f"  microseconds, forward and backward; thresholds in use: SMALL {small}, SHARE {share}")
        for name, make in {**candidates, "adam": adam}.items():
            for size in SIZES:
                step = make(np.random.default_rng(0).standard_normal((size // ROW, ROW), np.float32))
                with mg.kernels("numpy"):
                    numpy = least(step, rounds)
                with mg.kernels("numba"):
                    numba_threads.SHARE = 1 << 60
                    one = least(step, rounds)
                    numba_threads.SHARE = 1
                    every = least(step, rounds)
                print(f"  {name:<12}{size:>9}  NumPy {numpy:9.1f}  one thread {one:9.1f}  all threads {every:9.1f}")
    finally:
        SMALL.update(small)
        numba_threads.SHARE = share
