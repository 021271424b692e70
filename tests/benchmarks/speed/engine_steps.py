"""The workloads in microgradnd: eager or captured, by compiled kernels or by NumPy's, on the device of the block."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import workloads as w
from .workloads import Steps, initial_parameters, labelled_batches, normal, sublayer_shape, token_batches


def engine(workload: str, kernels: str, captured: bool = False) -> Steps:
    import microgradnd as mg

    mg.kernels(kernels)
    if workload == "elementwise":
        return elementwise()
    train, data = {"ffn": sublayer, "block": sublayer}.get(workload, training)(workload)
    if captured:
        train = mg.capture(train)
    batches = itertools.cycle([tuple(map(mg.tensor, batch)) for batch in data])
    return {workload: lambda: train(*next(batches))}


def training(workload: str) -> tuple[Callable[..., Any], list[Any]]:
    """A training step of a model that ends in cross-entropy, and its batches."""
    import nn

    model: nn.Module
    if workload == "char_lm":
        shape = w.CHAR["characters"], w.CHAR["width"], w.CHAR["heads"], w.CHAR["layers"], w.CHAR["length"]
        model, data = nn.Transformer(*shape, rng=0), token_batches()
        optimizer: nn.Optimizer = nn.AdamW(nn.decay_groups(model, w.DECAY), w.CHAR_LR, w.CHAR_BETAS)
    else:
        model, data = nn.MLP(w.SIZES[workload]), labelled_batches(workload)
        for parameter, values in zip(model.parameters(), initial_parameters(workload), strict=True):
            parameter.data = values
        make = nn.SGD if workload == "tiny" else nn.Adam
        optimizer = make(model.parameters(), w.LR[workload])

    def step(X: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = nn.cross_entropy(model(X), y)
        loss.backward()
        if workload == "char_lm":
            nn.clip_grad_norm(model.parameters(), w.MAX_NORM)
        optimizer.step()
        return loss

    return step, data


def sublayer(workload: str) -> tuple[Callable[..., Any], list[Any]]:
    """A step of "ffn" or "block" with a gradient that comes from above, and one for the input.

    It returns the output, since a captured step leaves out what nobody gets: here the last product.
    """
    import microgradnd as mg
    import nn

    class FFN(nn.Module):
        def __init__(self) -> None:
            self.norm, self.feed_forward = nn.LayerNorm(w.WIDTH), nn.FeedForward(w.WIDTH, w.INNER, rng=0)

        def forward(self, x: mg.Tensor) -> mg.Tensor:
            return x + self.feed_forward(self.norm(x))

    model: nn.Module
    model = FFN() if workload == "ffn" else nn.TransformerBlock(w.BLOCK["width"], w.BLOCK["heads"], causal=True, rng=0)
    shape = sublayer_shape(workload)
    inputs = mg.tensor(normal(*shape), requires_grad=True)
    optimizer = nn.SGD(model.parameters(), lr=1e-7)

    def step(g: Any) -> Any:
        optimizer.zero_grad()
        inputs.zero_grad()
        output = model(inputs)
        output.backward(g)
        optimizer.step()
        return output

    return step, [(normal(*shape, seed=1),)]


def elementwise() -> Steps:
    import microgradnd as mg
    import nn

    matrix = mg.tensor(normal(w.SIDE, w.SIDE))
    weight, bias = mg.tensor(np.ones(w.SIDE, np.float32)), mg.tensor(np.zeros(w.SIDE, np.float32))
    parameter = mg.tensor(matrix, requires_grad=True)
    adam = nn.Adam([parameter])
    parameter.grad = matrix
    return {
        "gelu": lambda: mg.gelu(matrix),
        "softmax": lambda: mg.softmax(matrix),
        "layer norm": lambda: mg.layer_norm(matrix, weight, bias),
        "adam": adam.step,
    }
