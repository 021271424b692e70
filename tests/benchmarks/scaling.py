"""Time of a training step as the tokens or the layers grow: linear once past the caches.

``scaling.png`` is written to the directory that the environment variable ``SPEED_OUTPUT`` names, if it is set.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .timing import median

ROUNDS = 7
WIDTH = 128
TOKENS = [32 << n for n in range(8)]  # 32 to 4,096
LAYERS = [1 << n for n in range(7)]  # 1 to 64


def feed_forward(tokens: int, layers: int) -> Callable[[], None]:
    """A step of residual feed-forward sublayers."""
    import microgradnd as mg
    import nn

    class Sublayer(nn.Module):
        def __init__(self, seed: int) -> None:
            self.norm, self.inner = nn.LayerNorm(WIDTH), nn.FeedForward(WIDTH, 4 * WIDTH, rng=seed)

        def forward(self, x: mg.Tensor) -> mg.Tensor:
            return x + self.inner(self.norm(x))

    model = nn.Sequential(*(Sublayer(seed) for seed in range(layers)))
    optimizer = nn.SGD(model.parameters(), lr=1e-6)
    x = np.random.default_rng(0).standard_normal((tokens, WIDTH), np.float32)

    def step() -> None:
        optimizer.zero_grad()
        model(x).mean().backward()  # of the sum the weights would run away
        optimizer.step()

    return step


def chart(path: Path, found: dict[str, dict[int, float]]) -> None:
    """Seconds of a step by its size, beside what they would be in proportion to the largest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(9, 3.6), layout="constrained")
    for axes, (what, seconds) in zip(panels, found.items(), strict=True):
        sizes = list(seconds)
        axes.loglog(sizes, [1e3 * t for t in seconds.values()], "o-", label="measured")
        each = seconds[sizes[-1]] / sizes[-1]
        axes.loglog(sizes, [1e3 * each * n for n in sizes], "--", color="grey", label="in proportion to the last")
        axes.set(xlabel=what, ylabel="milliseconds a step", title=f"feed-forward sublayers: {what}")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def run(rounds: int) -> None:
    found: dict[str, dict[int, float]] = {}
    for what, sizes, make in (
        ("tokens", TOKENS, lambda n: feed_forward(n, 4)),
        ("layers", LAYERS, lambda n: feed_forward(512, n)),
    ):
        steps = {n: make(n) for n in sizes}
        times: dict[int, list[float]] = {n: [] for n in sizes}
        for step in steps.values():
            step()
        for _ in range(rounds):
            for n, step in steps.items():
                step()
                start = time.perf_counter()
                step()
                times[n].append(time.perf_counter() - start)
        found[what] = {n: median(times[n]) for n in sizes}
        last = found[what][sizes[-1]] / sizes[-1]
        for n in sizes:
            each = found[what][n] / n
            print(f"  {n:>5} {what}  {n * each * 1e3:9.2f} ms  {each * 1e6:9.1f} us each, {each / last:.2f} x the last")
    if output := os.environ.get("SPEED_OUTPUT"):
        Path(output).mkdir(parents=True, exist_ok=True)
        chart(Path(output) / "scaling.png", found)
