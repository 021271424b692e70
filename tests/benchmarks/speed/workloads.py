"""What is timed: shapes, data and initial weights, the same for all libraries; float32."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Step: TypeAlias = Callable[[], Any]
Steps: TypeAlias = Mapping[str, Step]

SIZES = {"tiny": (64, 128, 10), "mlp": (784, 512, 256, 10)}  # of multilayer perceptrons
ROWS = {"tiny": 32, "mlp": 128}
# Of SGD and Adam: so small that nobody learns the batches by heart, however many steps it does. Gradients would become
# denormal numbers then, which take a processor ten times as long.
LR = {"tiny": 1e-4, "mlp": 1e-6}
BETAS, EPS = (0.9, 0.999), 1e-8
WIDTH, INNER, TOKENS = 512, 2048, 2048  # of the feed-forward sublayer
BLOCK = {"width": 256, "heads": 8, "batch": 8, "length": 256}
CHAR = {"width": 128, "heads": 4, "layers": 4, "batch": 12, "length": 64, "characters": 65}  # nanoGPT's for a CPU
CHAR_LR, CHAR_BETAS, DECAY, MAX_NORM = 1e-6, (0.9, 0.99), 0.1, 1.0
SIDE = 2048  # of the matrices that elementwise kernels go through
BATCHES = 16


class Workload(NamedTuple):
    """One row of the table, or several for the elementwise kernels."""

    name: str
    title: str
    names: tuple[str, ...]
    turn: int  # milliseconds
    losses_agree: bool  # whether all candidates begin with the same weights
    bars: str


WORKLOADS = [
    Workload("tiny", "MLP 64-128-10, 32 rows, SGD", ("tiny",), 60, True,
             "eager NumPy 1.1 x by hand and 0.35 x PyTorch; captured 0.7 x by hand and 0.4 x JAX"),
    Workload("mlp", "MLP 784-512-256-10, 128 rows, Adam", ("mlp",), 300, True,
             "eager 0.9 x, captured 0.75 x, NumPy alone 1.0 x PyTorch"),
    Workload("ffn", "FFN 512-2048-512, 2,048 tokens", ("ffn",), 400, False,
             "1.08 x six products, 0.92 x PyTorch and torch.compile"),
    Workload("block", "block, d 256, 8 heads, 8 x 256", ("block",), 400, False, "0.9 x PyTorch and torch.compile"),
    Workload("char_lm", "char_lm, 4 layers, d 128, 12 x 64", ("char_lm",), 400, False, "captured 0.7 x PyTorch"),
    Workload("elementwise", "2048 x 2048", ("gelu", "softmax", "layer norm", "adam"), 200, False, "0.8 x PyTorch"),
]  # fmt: skip


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def initial_parameters(workload: str) -> list[np.ndarray]:
    """Weight (in, out) and bias of each layer, in turn."""
    rng = np.random.default_rng(0)
    parameters = []
    for fan_in, fan_out in itertools.pairwise(SIZES[workload]):
        parameters += [rng.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in), np.zeros(fan_out)]
    return [p.astype(np.float32) for p in parameters]


def labelled_batches(workload: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows with random labels."""
    rng = np.random.default_rng(1)
    rows, inputs, classes = ROWS[workload], SIZES[workload][0], SIZES[workload][-1]
    X = rng.standard_normal((BATCHES, rows, inputs)).astype(np.float32)
    return list(zip(X, rng.integers(0, classes, (BATCHES, rows)), strict=True))


def token_batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, CHAR["characters"], (BATCHES, CHAR["batch"], CHAR["length"] + 1))
    return [(x[:, :-1].copy(), x[:, 1:].copy()) for x in tokens]


def sublayer_shape(workload: str) -> tuple[int, ...]:
    """Of the input of "ffn" or "block"."""
    return (TOKENS, WIDTH) if workload == "ffn" else (BLOCK["batch"], BLOCK["length"], BLOCK["width"])
