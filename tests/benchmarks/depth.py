"""Deep graphs, forward and backward: time has to grow with the number of operations, and no faster."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import microgradnd as mg
from microgradnd import Tensor

from .timing import in_fresh_process, line, median, peak_memory, reset_peak_memory

ROUNDS = 5
DEPTHS = (1_000, 10_000, 100_000)
LARGEST = 1_000_000
LARGEST_SECONDS = 30  # it is left out where it would take longer
FACTOR = 1 - 1e-6
BAR = "bar: at most 12 x"


# The operations change x little, however many there are, and have a gradient that is known in advance.


def affine(x: Tensor, depth: int) -> Tensor:
    """A chain of ``depth`` operations x * c and x + d; the gradient is c^(depth / 2)."""
    c, d = (mg.tensor(np.full(x.shape, value), requires_grad=True) for value in (FACTOR, 1e-6))
    for _ in range(depth // 2):
        x = x * c + d
    return x


def unary(x: Tensor, depth: int) -> Tensor:
    """A chain of ``depth`` operations log(exp(x)); the gradient is 1."""
    for _ in range(depth // 2):
        x = mg.log(mg.exp(x))
    return x


def diamond(x: Tensor, depth: int) -> Tensor:
    """``depth`` levels of (x + x) / 2, through which 2^depth paths lead; the gradient is 1."""
    for _ in range(depth):
        x = (x + x) * 0.5
    return x


GRAPHS: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[int], float]]] = {
    "chain x * c + d": (affine, lambda depth: FACTOR ** (depth // 2)),
    "chain log(exp(x))": (unary, lambda depth: 1.0),
    "diamond (x + x) * 0.5": (diamond, lambda depth: 1.0),
}


def measure(name: str, depth: int) -> tuple[float, float, int]:
    """Seconds forward, seconds backward, and bytes by which the peak memory grew."""
    graph, gradient = GRAPHS[name]
    graph(mg.tensor(np.ones(8), requires_grad=True), 100).sum().backward()
    x = mg.tensor(np.ones(8), requires_grad=True)
    reset_peak_memory()
    before = peak_memory()
    start = time.perf_counter()
    loss = graph(x, depth).sum()
    forward = time.perf_counter() - start
    start = time.perf_counter()
    loss.backward()
    backward = time.perf_counter() - start
    growth = peak_memory() - before
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.data, np.full(8, gradient(depth)), rtol=1e-7)
    return forward, backward, growth


def run(rounds: int) -> None:
    measured: dict[tuple[str, int], list[tuple[float, float, int]]] = {
        (name, depth): [] for name in GRAPHS for depth in DEPTHS
    }
    for _ in range(rounds):
        for depth in DEPTHS:
            for name in GRAPHS:
                measured[name, depth].append(in_fresh_process(measure, name, depth))
    for name in GRAPHS:
        seconds = 10 * median([forward + backward for forward, backward, _ in measured[name, DEPTHS[-1]]])
        if seconds < LARGEST_SECONDS:
            measured[name, LARGEST] = [in_fresh_process(measure, name, LARGEST)]
        memory = (
            f"{depth:,}: {median([m[2] for m in measured[key, depth]]) / 1e6:.1f} MB"
            for key, depth in measured
            if key == name
        )
        print(f"  {name}; growth of the peak memory: {', '.join(memory)}")
        for part, title in enumerate(("forward", "backward")):
            for depth in (depth for key, depth in measured if key == name):
                times = [m[part] for m in measured[name, depth]]
                figure = bar = ""
                if depth > DEPTHS[1]:
                    shorter = [m[part] for m in measured[name, depth // 10]]
                    figure = f"{median(times) / median(shorter):.1f} x that of {depth // 10:,}"
                    bar = BAR
                line(f"{title}, {depth:,}", times, "ms", figure, bar)
