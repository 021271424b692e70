"""Transformers and their layers with random parameters, and their formulas in NumPy."""

import math

import numpy as np

import microgradnd as mg
import nn
from tests.op_table import OPS

VOCAB, D, HEADS, LAYERS = 11, 8, 4, 2
TOKENS = np.random.default_rng(2).integers(0, VOCAB, (2, 6))
float64 = {"dtype": np.float64, "rng": 0}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(ours, expected, tolerance):
    """Within ``tolerance`` of the largest element, which is not zero."""
    scale = np.abs(expected).max(initial=0.0)
    assert np.shape(ours) == np.shape(expected)
    assert scale > 0 or np.size(expected) == 0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def randomized(module, seed=2):
    """With random parameters, so that no bias is zero and no scale is one."""
    rng = np.random.default_rng(seed)
    for name, p in module.named_parameters():
        p.data = rng.normal(p.ndim == 1 and name.endswith("weight"), 0.5, p.shape)
    return module


def transformer(positions="learned", max_len=8, **options):
    return randomized(nn.Transformer(VOCAB, D, HEADS, LAYERS, max_len, positions=positions, **float64, **options))


def attention(num_kv_heads=None, **options):
    return randomized(nn.MultiHeadAttention(D, HEADS, num_kv_heads, **float64, **options))


def gradients(out, *tensors):
    for tensor in tensors:
        tensor.zero_grad()
    (out * normal(*out.shape, seed=3).astype(out.dtype)).sum().backward()
    return [tensor.grad.data for tensor in tensors]


X = mg.tensor(normal(2, 3, D))


def reference(activation):
    """The formula in the table of operations."""
    name = "leaky_relu" if isinstance(activation, nn.LeakyReLU) else type(activation).__name__.lower()
    return {op.name: op.reference for op in OPS}[name]


def normed(layer, x):
    """The formula in NumPy, over as many axes as the layer has."""
    axes = tuple(range(-len(layer.normalized_shape), 0))
    x = x - x.mean(axes, keepdims=True) if isinstance(layer, nn.LayerNorm) else x
    x = x / np.sqrt((x * x).mean(axes, keepdims=True) + (np.finfo(x.dtype).eps if layer.eps is None else layer.eps))
    x = x if layer.weight is None else x * layer.weight.data
    return x if getattr(layer, "bias", None) is None else x + layer.bias.data


def turned(x, start=0):
    """Rotary positions by complex numbers."""
    half = x.shape[-1] // 2
    angles = np.arange(start, start + x.shape[-2])[:, None] * 10000.0 ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def affine(layer, x):
    return x @ layer.weight.data + layer.bias.data


def attended(layer, x, causal=False):
    """Self-attention in NumPy, and its weights: keys and values are repeated for the queries that share them."""
    d, h, kv = layer.head_dim, layer.num_heads, layer.num_kv_heads
    parts = np.split(affine(layer.in_proj, x), [h * d, (h + kv) * d], axis=-1)
    q, k, v = (np.swapaxes(part.reshape(*part.shape[:-1], -1, d), -2, -3) for part in parts)
    q, k = (q, k) if layer.rotary is None else (turned(q), turned(k))
    k, v = (np.repeat(part, h // kv, axis=-3) for part in (k, v))
    e = np.exp(q @ np.swapaxes(k, -1, -2) / math.sqrt(d)) * (np.tri(x.shape[-2]) if causal else 1)
    weights = e / e.sum(axis=-1, keepdims=True)
    return affine(layer.out_proj, np.swapaxes(weights @ v, -2, -3).reshape(x.shape)), weights
