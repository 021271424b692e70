"""Time per token of generation with a cache, by how many tokens came before; a model of 4 layers, 128 wide."""

from __future__ import annotations

import time
from typing import Any

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
    attention, rows = mg.scaled_dot_product_attention, [0.0]

    def timed_attention(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        out = attention(*args, **options)
        rows[-1] += time.perf_counter() - start
        return out

    least = 0.0
    for length in LENGTHS:
        rest, seconds, whole = [], [], []
        with mg.no_grad():
            caches = model.caches()
            model(tokens[:length], caches)
            for i in range(length, length + rounds):
                mg.scaled_dot_product_attention = timed_attention
                rows.append(0.0)
                start = time.perf_counter()
                model(tokens[i : i + 1], caches)
                seconds.append(time.perf_counter() - start)
                mg.scaled_dot_product_attention = attention
                rest.append(seconds[-1] - rows[-1])
            for i in range(length, length + rounds if length <= UNCACHED else 0):  # apart: it evicts the weights
                start = time.perf_counter()
                model(tokens[: i + 1])
                whole.append(time.perf_counter() - start)
        least = least or median(rest)
        others = f"without a cache {median(whole) * 1e3:.2f} ms" if whole else ""
        ratio = f"without attention {median(rest) * 1e3:.2f} ms, {median(rest) / least:.2f} x that after 16"
        line(f"one token after {length}", seconds, "ms", ratio, others)
