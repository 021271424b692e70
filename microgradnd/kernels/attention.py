"""Scaled dot-product attention: by a kernel where there is one for it, else in chunks.

Kernels do without chunks: on CuPy arrays where there is no dropout, on the host where there is neither that nor a mask,
for FEWEST_QUERIES or more. ``self_attention`` is the same for heads that lie side by side in one array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import is_floating
from . import chunked_attention, kernels, kernels_for

FEWEST_QUERIES = 8  # for which it pays that the compiled kernel copies the keys of a head; fewer go in chunks


def attention(
    xp: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: int,
) -> tuple[Any, Any]:
    """softmax(scale query key^T + mask) value, for arguments of one ndim: see ``ops.scaled_dot_product_attention``.

    The pullback can be given places for the gradients, arrays with contiguous rows: the compiled kernel writes into
    them, if they are float32, and returns them. All others return arrays of their own.
    """
    arguments = [x for x in (query, key, value, attn_mask) if x is not None]
    leading = np.broadcast_shapes(*(x.shape[:-2] for x in arguments))
    shape = (*leading, query.shape[-2], key.shape[-2])
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError("query and key must have the same width, key and value the same number of keys")
    if attn_mask is not None and any(m not in (1, n) for m, n in zip(attn_mask.shape, shape, strict=True)):
        raise ValueError(f"attn_mask must broadcast to the shape of the scores, {shape}, got {attn_mask.shape}")
    if query.__class__.__module__ == "cupy" and not dropout_p and kernels.current != "numpy":
        from . import cupy_attention  # imports CuPy

        found = cupy_attention.attention(query, key, value, attn_mask, is_causal, scale)
        if found is not None:
            return found
    result_dtype = np.result_type(query.dtype, key.dtype, value.dtype)
    if not is_floating(result_dtype):
        result_dtype = np.result_type(result_dtype, np.float16)
    dtype = np.result_type(result_dtype, np.float32)  # float16 ends at 65504, which sums of many keys go beyond
    query, key, value = (x.astype(dtype, copy=False) for x in (query, key, value))
    on_host = query.__class__ is np.ndarray  # the kernels for CuPy arrays were tried above
    fast = kernels_for(query, key, value) if on_host and math.prod(shape) > xp.SMALL else None
    found = None
    if fast is not None and attn_mask is None and not dropout_p and shape[-2] >= FEWEST_QUERIES:
        found = fast.attention(query, key, value, is_causal, scale)
    if found is None:
        settings = is_causal, scale, dropout_p, seed
        found = chunked_attention.attention(xp, query, key, value, attn_mask, *settings, shape, fast)
    return found[0].astype(result_dtype, copy=False), found[1]


def self_attention(
    xp: Any,
    qkv: Any,
    attn_mask: Any,
    num_heads: int,
    num_kv_heads: int,
    is_causal: bool,
    scale: float,
    dropout_p: float,
    seed: int,
) -> tuple[Any, Any]:
    """Attention of the heads that lie side by side in ``qkv``: see ``ops.self_attention``."""
    out, pullback = attention(
        xp, *split_qkv(qkv, num_heads, num_kv_heads), attn_mask, is_causal, scale, dropout_p, seed
    )

    def pullback_of_heads(g: Any) -> tuple[Any, ...]:
        gradient = xp.empty(qkv.shape, qkv.dtype)
        places = split_qkv(gradient, num_heads, num_kv_heads)
        gradients = pullback(split_heads(g, num_heads).reshape(out.shape), places)
        for place, dx in zip(places, gradients, strict=True):
            if dx is not place:  # where heads share keys, there may be gradients by each of them
                place[...] = dx if dx.shape == place.shape else dx.sum(axis=-3, keepdims=True)
        return (gradient,)

    return join_heads(out, qkv.ndim), pullback_of_heads


# Of tensors, or as views of arrays.


def split_qkv(qkv: Any, num_heads: int, num_kv_heads: int) -> tuple[Any, Any, Any]:
    """Queries, keys and values (..., heads, T, width) of (..., T, (num_heads + 2 num_kv_heads) width).

    Where heads share keys and values: (..., kv_heads, heads / kv_heads, T, width), and 1 for the heads of a group.
    """
    width = qkv.shape[-1] // (num_heads + 2 * num_kv_heads)
    keys, values = num_heads * width, (num_heads + num_kv_heads) * width  # where they begin
    query = split_heads(qkv[..., :keys], num_heads)
    key, value = split_heads(qkv[..., keys:values], num_kv_heads), split_heads(qkv[..., values:], num_kv_heads)
    if num_kv_heads == num_heads:
        return query, key, value
    return group_heads(query, num_kv_heads), key[..., None, :, :], value[..., None, :, :]


def split_heads(x: Any, heads: int) -> Any:
    """(..., T, heads width) -> (..., heads, T, width)."""
    return x.reshape((*x.shape[:-1], heads, x.shape[-1] // heads)).swapaxes(-2, -3)


def group_heads(x: Any, groups: int) -> Any:
    """(..., heads, T, width) -> (..., groups, heads / groups, T, width)."""
    *leading, heads, count, width = x.shape
    return x.reshape((*leading, groups, heads // groups, count, width))


def join_heads(x: Any, ndim: int) -> Any:
    """Heads (..., heads, T, width), or in groups, side by side: (..., T, heads width) with ``ndim`` axes."""
    leading, heads, (count, width) = x.shape[: ndim - 2], math.prod(x.shape[ndim - 2 : -2]), x.shape[-2:]
    return x.reshape((*leading, heads, count, width)).swapaxes(-2, -3).reshape((*leading, count, heads * width))
