"""Transformers in MyGrad and HIPS autograd: the formulas of numpy_transformer, forward alone.

A library is its namespace of NumPy's functions, and the parameters are those of the layers there, in their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import workloads as w
from .numpy_transformer import CUBIC, SLOPE, char_lm, sublayer_model, update_of
from .workloads import Steps, normal, sublayer_shape, token_batches

Gradients = Callable[..., tuple[Any, list[Any]]]  # of a function (parameters, *arrays): its value and gradients


def linear(xp: Any, x: Any, p: Iterator[Any]) -> Any:
    return xp.matmul(x, next(p)) + next(p)


def norm(xp: Any, x: Any, p: Iterator[Any]) -> Any:
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(centred * centred, axis=-1, keepdims=True)
    return centred / xp.sqrt(variance + np.float32(1e-5)) * next(p) + next(p)


def feed_forward(xp: Any, x: Any, p: Iterator[Any]) -> Any:
    z = linear(xp, norm(xp, x, p), p)
    t = xp.tanh(np.float32(SLOPE) * (z + np.float32(CUBIC) * z * z * z))
    return x + linear(xp, np.float32(0.5) * z * (t + np.float32(1)), p)


def attention(xp: Any, x: Any, p: Iterator[Any], heads: int) -> Any:
    """(B, T, d) -> (B, T, d), causal."""
    B, T, width = x.shape
    qkv = xp.reshape(linear(xp, norm(xp, x, p), p), (B, T, 3, heads, width // heads))
    q, k, v = (xp.swapaxes(qkv[:, :, i], 1, 2) for i in range(3))  # (B, H, T, d)
    later = np.triu(np.full((T, T), -np.inf, np.float32), 1)
    scores = xp.matmul(q, xp.swapaxes(k, -1, -2)) * np.float32((width // heads) ** -0.5) + later
    e = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    y = xp.matmul(e / xp.sum(e, axis=-1, keepdims=True), v)
    return x + linear(xp, xp.reshape(xp.swapaxes(y, 1, 2), (B, T, width)), p)


def transformer(library: str, workload: str) -> Steps:
    gradients_of = {"MyGrad": _mygrad, "HIPS autograd": _hips_autograd}[library]()
    return (_language_model if workload == "char_lm" else _sublayer)(workload, *gradients_of)


def _mygrad() -> tuple[Any, Gradients]:
    import mygrad as my

    def gradients_of(f: Any, parameters: list[Any], *arrays: Any) -> tuple[Any, list[Any]]:
        tensors = [my.tensor(p, copy=False) for p in parameters]
        value = f(tensors, *(my.tensor(x) if x.dtype.kind == "f" else x for x in arrays))
        value.backward()
        return value.item(), [t.grad for t in tensors]

    return my, gradients_of


def _hips_autograd() -> tuple[Any, Gradients]:
    import autograd.numpy as anp
    from autograd import value_and_grad

    def gradients_of(f: Any, parameters: list[Any], *arrays: Any) -> tuple[Any, list[Any]]:
        floats = [i for i, x in enumerate(arrays, 1) if x.dtype.kind == "f"]  # the input has a gradient too
        value, (gradients, *_) = value_and_grad(f, (0, *floats))(parameters, *arrays)
        return value, gradients

    return anp, gradients_of


def _sublayer(workload: str, xp: Any, gradients_of: Gradients) -> Steps:
    """A step of "ffn" or "block": the gradient that comes from above is that of the sum of the result times g."""
    shape = sublayer_shape(workload)
    parameters = sublayer_model(workload).parameters
    x, g = normal(*shape), normal(*shape, seed=1)

    def weighted(parameters: Any, x: Any) -> Any:
        p = iter(parameters)
        if workload == "block":
            x = attention(xp, x, p, w.BLOCK["heads"])
        return xp.sum(feed_forward(xp, x, p) * g)

    def step() -> Any:
        value, gradients = gradients_of(weighted, parameters, x)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= np.float32(1e-7) * gradient
        return value

    return {workload: step}


def _language_model(workload: str, xp: Any, gradients_of: Gradients) -> Steps:
    parameters, _ = char_lm()
    update, batches = update_of(parameters), itertools.cycle(token_batches())

    def loss_of(parameters: Any, X: Any, y: Any) -> Any:
        tokens, positions, *others = parameters
        p = iter(others)
        x = tokens[X] + positions
        for _ in range(w.CHAR["layers"]):
            x = feed_forward(xp, attention(xp, x, p, w.CHAR["heads"]), p)
        z = xp.reshape(xp.matmul(norm(xp, x, p), xp.transpose(tokens)), (-1, w.CHAR["characters"]))
        z = z - xp.max(z, axis=1, keepdims=True)
        log_p = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
        return -xp.mean(log_p[np.arange(y.size), y.reshape(-1)])

    def step() -> Any:
        loss, gradients = gradients_of(loss_of, parameters, *next(batches))
        update(gradients)
        return loss

    return {workload: step}
