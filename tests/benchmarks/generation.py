"""Time per token of generation with a cache, by how many tokens came before; a model of 4 layers, 128 wide."""

from __future__ import annotations

import time

import numpy as np

from .timing import line, median

ROUNDS = 15
LENGTHS = (16, 128, 512, 1024, 2048)
UNCACHED = 512  # tokens up to which the pass over all of them is timed beside it


def run(rounds: int) -> None:
    import microgradnd as mg
    import nn

    model = nn.Transformer(100, 128, 4, 4, max(LENGTHS) + rounds + 1, rng=0).eval()
    tokens = np.random.default_rng(0).integers(0, 100, max(LENGTHS) + rounds + 1)
    least = 0.0
    for length in LENGTHS:
        with mg.no_grad():
            caches = model.caches()
            model(tokens[:length], caches)
            seconds, whole = [], []
            for i in range(length, length + rounds):
                start = time.perf_counter()
                model(tokens[i : i + 1], caches)
                seconds.append(time.perf_counter() - start)
                if length <= UNCACHED:
                    start = time.perf_counter()
                    model(tokens[: i + 1])
                    whole.append(time.perf_counter() - start)
            q = mg.tensor(np.zeros((4, 1, 32), np.float32))  # the row of attention alone, in all four layers
            k = mg.tensor(np.zeros((4, length, 32), np.float32))
            start = time.perf_counter()
            for _ in range(4 * rounds):
                mg.scaled_dot_product_attention(q, k, k)
            row = (time.perf_counter() - start) / rounds
        rest = median(seconds) - row
        least = least or rest
        others = f"without a cache {median(whole) * 1e3:.2f} ms" if whole else ""
        line(
            f"one token after {length}", seconds, "ms", f"without attention {rest / least:.2f} x that after 16", others
        )
