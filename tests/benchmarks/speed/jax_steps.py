"""The workloads in JAX: the whole step under jit, its arguments given away."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from . import workloads as w
from .workloads import Steps, initial_parameters, labelled_batches, normal, sublayer_shape, token_batches


def jax_jit(workload: str) -> Steps:
    return {"elementwise": elementwise, "ffn": sublayer, "block": sublayer}.get(workload, training)(workload)


def cross_entropy(logits: Any, labels: Any) -> Any:
    import jax
    import jax.numpy as jnp

    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1).mean()


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    import jax.numpy as jnp

    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def block(x: Any, p: dict[str, Any], heads: int) -> Any:
    """A transformer block, or without heads its feed-forward sublayer."""
    import jax

    if heads:
        B, T, width = x.shape
        qkv = layer_norm(x, p["w_norm1"], p["b_norm1"]) @ p["w_qkv"] + p["b_qkv"]
        q, k, v = (qkv[..., i * width : (i + 1) * width].reshape(B, T, heads, -1) for i in range(3))
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + y.reshape(B, T, width) @ p["w_out"] + p["b_out"]
    h = layer_norm(x, p["w_norm2"], p["b_norm2"]) @ p["w_1"] + p["b_1"]
    return x + jax.nn.gelu(h, approximate=False) @ p["w_2"] + p["b_2"]


def block_parameters(width: int, inner: int, heads: int) -> dict[str, Any]:
    shapes = {"1": (width, inner), "2": (inner, width)}
    shapes |= {"qkv": (width, 3 * width), "out": (width, width)} if heads else {}
    found = {f"w_{name}": normal(*shape) * 0.02 for name, shape in shapes.items()}
    found |= {f"b_{name}": np.zeros(shape[1], np.float32) for name, shape in shapes.items()}
    for name in ("norm1", "norm2") if heads else ("norm2",):
        found |= {f"w_{name}": np.ones(width, np.float32), f"b_{name}": np.zeros(width, np.float32)}
    return found


def training(workload: str) -> Steps:
    import jax
    import jax.numpy as jnp

    def mlp(parameters: Any, X: Any) -> Any:
        *hidden, last = zip(parameters[::2], parameters[1::2], strict=True)
        for W, b in hidden:
            X = jnp.maximum(X @ W + b, 0)
        return X @ last[0] + last[1]

    def transformer(p: Any, tokens: Any) -> Any:
        x = p["tokens"][tokens] + p["positions"]
        for part in p["blocks"]:
            x = block(x, part, w.CHAR["heads"])
        return layer_norm(x, p["w_norm"], p["b_norm"]) @ p["tokens"].T

    model: Callable[..., Any] = mlp
    if workload == "char_lm":
        width = w.CHAR["width"]
        parameters: Any = {
            "tokens": normal(w.CHAR["characters"], width) * 0.02,
            "positions": normal(w.CHAR["length"], width) * 0.02,
            "blocks": [block_parameters(width, 4 * width, w.CHAR["heads"]) for _ in range(w.CHAR["layers"])],
            "w_norm": np.ones(width, np.float32),
            "b_norm": np.zeros(width, np.float32),
        }
        model, data = transformer, token_batches()
        rate, betas = w.CHAR_LR, w.CHAR_BETAS
    else:
        parameters, data = initial_parameters(workload), labelled_batches(workload)
        rate, betas = w.LR[workload], w.BETAS

    def adam(t: Any, p: Any, g: Any, m: Any, v: Any) -> Any:
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        if workload == "char_lm" and p.ndim >= 2:
            p = p - rate * w.DECAY * p
        return p - rate * (m / (1 - betas[0] ** t)) / (jnp.sqrt(v / (1 - betas[1] ** t)) + w.EPS), m, v

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: Any, X: Any, y: Any) -> Any:
        p, m, v, t = state
        loss, g = jax.value_and_grad(lambda p: cross_entropy(model(p, X), y))(p)
        if workload == "tiny":
            return (jax.tree.map(lambda p, g: p - rate * g, p, g), m, v, t), loss
        if workload == "char_lm":
            norm = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(g)))
            g = jax.tree.map(lambda x: x * jnp.minimum(1.0, w.MAX_NORM / (norm + 1e-6)), g)
        t = t + 1
        updated = jax.tree.map(functools.partial(adam, t), p, g, m, v)
        is_triple = lambda x: isinstance(x, tuple)  # noqa: E731
        p, m, v = (jax.tree.map(lambda x, i=i: x[i], updated, is_leaf=is_triple) for i in range(3))
        return (p, m, v, t), loss

    p = jax.tree.map(jnp.asarray, parameters)
    zeros = () if workload == "tiny" else jax.tree.map(jnp.zeros_like, p)
    state: Any = (p, zeros, () if workload == "tiny" else jax.tree.map(jnp.zeros_like, p), jnp.zeros((), np.float32))
    batches = itertools.cycle(data)

    def step() -> Any:
        nonlocal state
        state, loss = train(state, *next(batches))
        return loss.block_until_ready()

    return {workload: step}


def sublayer(workload: str) -> Steps:
    import jax
    import jax.numpy as jnp

    width, inner, heads = (w.WIDTH, w.INNER, 0) if workload == "ffn" else (w.BLOCK["width"], 4 * w.BLOCK["width"], 8)
    shape = sublayer_shape(workload)
    x, g = jnp.asarray(normal(*shape)), jnp.asarray(normal(*shape, seed=1))
    p = jax.tree.map(jnp.asarray, block_parameters(width, inner, heads))

    @functools.partial(jax.jit, donate_argnums=0)
    def train(p: Any, x: Any, g: Any) -> Any:
        output, pullback = jax.vjp(lambda p, x: block(x, p, heads), p, x)
        dp, dx = pullback(g)
        return jax.tree.map(lambda p, d: p - 1e-7 * d, p, dp), dx, output

    def step() -> Any:
        nonlocal p
        p, dx, output = train(p, x, g)
        return jax.block_until_ready((output, dx))[0]

    return {workload: step}


def elementwise(workload: str) -> Steps:
    import jax
    import jax.numpy as jnp

    matrix, weight, bias = jnp.asarray(normal(w.SIDE, w.SIDE)), jnp.ones(w.SIDE), jnp.zeros(w.SIDE)

    @functools.partial(jax.jit, donate_argnums=(0, 2, 3))
    def adam(p: Any, g: Any, m: Any, v: Any) -> Any:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p - 1e-3 * m / (jnp.sqrt(v) + w.EPS), m, v

    state = [jnp.array(matrix), jnp.zeros_like(matrix), jnp.zeros_like(matrix)]

    def adam_step() -> None:
        state[:] = adam(state[0], matrix, state[1], state[2])
        state[0].block_until_ready()

    gelu = jax.jit(lambda x: jax.nn.gelu(x, approximate=False))
    softmax, norm = jax.jit(jax.nn.softmax), jax.jit(layer_norm)
    return {
        "gelu": lambda: gelu(matrix).block_until_ready(),
        "softmax": lambda: softmax(matrix).block_until_ready(),
        "layer norm": lambda: norm(matrix, weight, bias).block_until_ready(),
        "adam": adam_step,
    }
