"""Transformers in NumPy by hand: forward and backward as one writes the formulas down, on rows of tokens (B T, d).

GELU is that with tanh, since NumPy has no error function.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from . import workloads as w
from .numpy_steps import Adam
from .workloads import Steps, normal, sublayer_shape, token_batches

SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715


class Layer:
    """Parameters and their gradients, its own or those of its layers, in the same order."""

    parameters: list[Any]
    gradients: list[Any]

    def contains(self, *layers: Layer) -> None:
        self.layers, self.parameters = layers, [p for layer in layers for p in layer.parameters]

    def collect(self) -> None:
        self.gradients = [g for layer in self.layers for g in layer.gradients]


class Linear(Layer):
    def __init__(self, fan_in: int, fan_out: int) -> None:
        self.W, self.b = normal(fan_in, fan_out) / np.float32(fan_in**0.5), np.zeros(fan_out, np.float32)
        self.parameters = [self.W, self.b]

    def forward(self, x: Any) -> Any:
        self.x = x
        return x @ self.W + self.b

    def backward(self, g: Any) -> Any:
        self.gradients = [self.x.T @ g, g.sum(axis=0)]
        return g @ self.W.T


class LayerNorm(Layer):
    def __init__(self, width: int) -> None:
        self.parameters = [np.ones(width, np.float32), np.zeros(width, np.float32)]

    def forward(self, x: Any) -> Any:
        weight, bias = self.parameters
        centred = x - x.mean(axis=1, keepdims=True)
        self.scale = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + 1e-5)
        self.x = centred * self.scale
        return self.x * weight + bias

    def backward(self, g: Any) -> Any:
        self.gradients = [(g * self.x).sum(axis=0), g.sum(axis=0)]
        g = g * self.parameters[0]
        return self.scale * (g - g.mean(axis=1, keepdims=True) - self.x * (g * self.x).mean(axis=1, keepdims=True))


class FeedForward(Layer):
    """x + linear(gelu(linear(norm(x))))."""

    def __init__(self, width: int, inner: int) -> None:
        self.norm, self.up, self.down = LayerNorm(width), Linear(width, inner), Linear(inner, width)
        self.contains(self.norm, self.up, self.down)

    def forward(self, x: Any) -> Any:
        self.z = z = self.up.forward(self.norm.forward(x))
        self.t = np.tanh(SLOPE * (z + CUBIC * z * z * z))
        return x + self.down.forward(0.5 * z * (1 + self.t))

    def backward(self, g: Any) -> Any:
        z, t = self.z, self.t
        slope = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * SLOPE * (1 + 3 * CUBIC * z * z)
        dx = g + self.norm.backward(self.up.backward(self.down.backward(g) * slope))
        self.collect()
        return dx


class Attention(Layer):
    """x + linear(attention(linear(norm(x)))): causal, in several heads."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        self.norm, self.qkv, self.out = LayerNorm(width), Linear(width, 3 * width), Linear(width, width)
        self.contains(self.norm, self.qkv, self.out)
        self.width, self.heads, self.head, self.length = width, heads, width // heads, length
        self.scale = np.float32(self.head**-0.5)
        self.later = np.triu(np.ones((length, length), bool), 1)

    def split(self, x: Any) -> Any:
        """(B T, n H d) -> (n, B, H, T, d)."""
        return x.reshape(-1, self.length, x.shape[1] // self.width, self.heads, self.head).transpose(2, 0, 3, 1, 4)

    def join(self, x: Any) -> Any:
        """(n, B, H, T, d) -> (B T, n H d)."""
        return x.transpose(1, 3, 0, 2, 4).reshape(-1, len(x) * self.width)

    def forward(self, x: Any) -> Any:
        self.q, self.k, self.v = q, k, v = self.split(self.qkv.forward(self.norm.forward(x)))
        scores = q @ k.swapaxes(-1, -2) * self.scale
        scores[..., self.later] = -np.inf
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        self.p = e / e.sum(axis=-1, keepdims=True)
        return x + self.out.forward(self.join((self.p @ v)[None]))

    def backward(self, g: Any) -> Any:
        q, k, v, p = self.q, self.k, self.v, self.p
        (do,) = self.split(self.out.backward(g))
        dp = do @ v.swapaxes(-1, -2)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * self.scale
        dqkv = np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ do])
        dx = g + self.norm.backward(self.qkv.backward(self.join(dqkv)))
        self.collect()
        return dx


class Sequence(Layer):
    def __init__(self, *layers: Layer) -> None:
        self.contains(*layers)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer.forward(x)  # type: ignore[attr-defined]
        return x

    def backward(self, g: Any) -> Any:
        for layer in reversed(self.layers):
            g = layer.backward(g)  # type: ignore[attr-defined]
        self.collect()
        return g


def block(width: int, heads: int, length: int) -> list[Layer]:
    return [Attention(width, heads, length), FeedForward(width, 4 * width)]


def sublayer_model(workload: str) -> Sequence:
    """Of "ffn" or "block"."""
    if workload == "ffn":
        return Sequence(FeedForward(w.WIDTH, w.INNER))
    return Sequence(*block(w.BLOCK["width"], w.BLOCK["heads"], w.BLOCK["length"]))


def sublayer(workload: str) -> Steps:
    """A step with a gradient that comes from above, and one for the input."""
    model, shape = sublayer_model(workload), sublayer_shape(workload)
    x, g = normal(*shape).reshape(-1, shape[-1]), normal(*shape, seed=1).reshape(-1, shape[-1])

    def step() -> Any:
        output = model.forward(x)
        model.backward(g)
        for parameter, gradient in zip(model.parameters, model.gradients, strict=True):
            parameter -= np.float32(1e-7) * gradient
        return output

    return {workload: step}


def char_lm() -> tuple[list[Any], Sequence]:
    """All parameters, those of tokens and positions first, and the layers between the embeddings and the scores."""
    width, heads, length = w.CHAR["width"], w.CHAR["heads"], w.CHAR["length"]
    layers = [layer for _ in range(w.CHAR["layers"]) for layer in block(width, heads, length)]
    model = Sequence(*layers, LayerNorm(width))
    embeddings = [normal(w.CHAR[name], width) * np.float32(0.02) for name in ("characters", "length")]
    return [*embeddings, *model.parameters], model


def update_of(parameters: list[Any]) -> Any:
    """Gradients clipped together, and Adam's step."""
    update = Adam(parameters, w.CHAR_LR, w.CHAR_BETAS, [w.DECAY if p.ndim > 1 else 0.0 for p in parameters])

    def step(gradients: list[Any]) -> None:
        norm = np.sqrt(sum(np.vdot(g, g) for g in gradients))
        if norm > w.MAX_NORM:
            gradients = [g * np.float32(w.MAX_NORM / norm) for g in gradients]
        update(gradients)

    return step


def language_model(workload: str) -> Steps:
    """A training step of char_lm: the matrix that embeds tokens gives their scores too."""
    parameters, model = char_lm()
    tokens, positions = parameters[:2]
    update, batches = update_of(parameters), itertools.cycle(token_batches())

    def step() -> Any:
        X, y = (ids.reshape(-1) for ids in next(batches))
        rows = np.arange(len(X))
        x = model.forward((tokens[X].reshape(-1, *positions.shape) + positions).reshape(-1, positions.shape[1]))
        z = x @ tokens.T
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        loss = -np.log(p[rows, y]).mean()
        p[rows, y] -= 1
        p /= len(rows)
        dx = model.backward(p @ tokens)
        dtokens = p.T @ x
        np.add.at(dtokens, X, dx)
        update([dtokens, dx.reshape(-1, *positions.shape).sum(axis=0), *model.gradients])
        return loss

    return {workload: step}
