"""Six different products, those of a training step of two layers: by OpenBLAS, the compiled kernel and PyTorch.

In a loop of one product OpenBLAS is as fast as the others; what a step needs is a row of different ones.
"""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

from .timing import Worker, interleaved, line, median, ratio

ROUNDS = 15
TURN, PAUSE = 200, 160  # milliseconds
SHAPES = {  # rows, features, features within
    "mlp": (128, 784, 512),
    "char_lm": (768, 128, 512),
    "block": (2048, 256, 1024),
    "ffn": (2048, 512, 2048),
}


def operands(name: str) -> list[tuple[Any, Any]]:
    from .speed.workloads import normal

    rows, width, inner = SHAPES[name]
    x, h, w1, w2 = normal(rows, width), normal(rows, inner), normal(width, inner), normal(inner, width)
    return [(x, w1), (h, w2), (x, w2.T), (h.T, x), (h, w1.T), (x.T, h)]


def by_numpy() -> dict[str, Any]:
    import numpy as np

    def steps(name: str) -> Any:
        pairs = [(a, b, a @ b) for a, b in operands(name)]
        return lambda: [np.matmul(a, b, out=out) for a, b, out in pairs]

    return {name: steps(name) for name in SHAPES}


def by_kernel() -> dict[str, Any]:
    from microgradnd.kernels import numba_compiler, numba_matmul  # noqa: F401 (in this order, as they are loaded)

    numba_matmul.FASTER = True  # whatever the machine

    def step(pairs: list[tuple[Any, Any]]) -> None:
        for a, b in pairs:
            if numba_matmul.product(a, b, None) is None:
                raise RuntimeError(f"products: the kernel refuses {a.shape} by {b.shape}")

    return {name: functools.partial(step, operands(name)) for name in SHAPES}


def by_pytorch() -> dict[str, Any]:
    import torch

    def steps(name: str) -> Any:
        pairs = [(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(a @ b)) for a, b in operands(name)]
        return lambda: [torch.mm(a, b, out=out) for a, b, out in pairs]

    return {name: steps(name) for name in SHAPES}


def run(rounds: int) -> None:
    makers = {"OpenBLAS": by_numpy}
    makers |= {"kernel": by_kernel} if find_spec("numba") else {}
    makers |= {"PyTorch": by_pytorch} if find_spec("torch") else {}
    workers = {who: Worker(make) for who, make in makers.items()}
    times = interleaved(workers, tuple(SHAPES), rounds, TURN, PAUSE)
    for worker in workers.values():
        worker.close()
    for name, (rows, width, inner) in SHAPES.items():
        for who in makers:
            speed = f"{12 * rows * width * inner / median(times[name, who]) / 1e9:.0f} GFLOPS"
            line(
                f"{name}, {who}",
                times[name, who],
                "ms",
                ratio(times[name, who], times[name, "OpenBLAS"], "OpenBLAS"),
                speed,
            )
