"""The workloads in NumPy by hand, as one writes the formulas down, and what hand-written code can't go below."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .workloads import BETAS, EPS, INNER, LR, TOKENS, WIDTH, Steps, initial_parameters, labelled_batches, normal


def by_hand(workload: str) -> Steps:
    """Multilayer perceptrons: "tiny" with SGD, "mlp" with Adam."""
    parameters = initial_parameters(workload)
    weights, biases = parameters[::2], parameters[1::2]
    update = UPDATES[workload](parameters)
    batches = itertools.cycle(labelled_batches(workload))

    def step() -> Any:
        X, y = next(batches)
        n, rows = len(X), np.arange(len(X))
        inputs, zs = [X], []
        for W, b in zip(weights, biases, strict=True):
            zs.append(inputs[-1] @ W + b)
            inputs.append(np.maximum(zs[-1], 0))
        shifted = zs[-1] - zs[-1].max(axis=1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        loss = -(shifted - np.log(total))[rows, y].sum() / n
        delta = e / total
        delta[rows, y] -= 1
        delta /= n
        gradients: list[Any] = []
        for i in reversed(range(len(weights))):
            gradients = [inputs[i].T @ delta, delta.sum(axis=0), *gradients]
            if i:
                delta = (delta @ weights[i].T) * (zs[i - 1] > 0)
        update(gradients)
        return loss

    return {workload: step}


class SGD:
    """p -= lr g."""

    def __init__(self, parameters: list[Any]) -> None:
        self.parameters = parameters

    def __call__(self, gradients: list[Any]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter -= LR["tiny"] * gradient


class Adam:
    """Kingma and Ba, 2015, as the formulas stand, and the decay of weights of Loshchilov and Hutter, 2019."""

    def __init__(
        self,
        parameters: list[Any],
        lr: float = LR["mlp"],
        betas: tuple[float, float] = BETAS,
        decay: list[float] | None = None,
    ) -> None:
        self.parameters, self.lr, self.betas = parameters, lr, betas
        self.decay = decay or [0.0] * len(parameters)
        self.m = [np.zeros_like(p) for p in parameters]
        self.v = [np.zeros_like(p) for p in parameters]
        self.t = 0

    def __call__(self, gradients: list[Any]) -> None:
        self.t += 1
        beta1, beta2 = self.betas
        for p, g, m, v, decay in zip(self.parameters, gradients, self.m, self.v, self.decay, strict=True):
            if decay:
                p -= self.lr * decay * p
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g * g
            p -= self.lr * (m / (1 - beta1**self.t)) / (np.sqrt(v / (1 - beta2**self.t)) + EPS)


UPDATES: dict[str, Any] = {"tiny": SGD, "mlp": Adam}


def products(workload: str) -> Steps:
    """The six matrix products of the feed-forward sublayer alone, into warm buffers."""
    x, w1, w2 = normal(TOKENS, WIDTH), normal(WIDTH, INNER), normal(INNER, WIDTH)
    h, out, dw1, dw2 = (np.empty_like(a) for a in (x @ w1, x, w1, w2))

    def step() -> None:
        np.matmul(x, w1, out=h)
        np.matmul(h, w2, out=out)
        np.matmul(h.T, x, out=dw2)
        np.matmul(x, w2.T, out=h)
        np.matmul(x.T, h, out=dw1)
        np.matmul(h, w1.T, out=out)

    return {workload: step}
