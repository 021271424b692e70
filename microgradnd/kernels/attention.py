"""Scaled dot-product attention in chunks of queries: scores are never held for all queries at once.

Forward keeps the result and, per query, the largest score and the sum of exp(score - largest); backward computes each
chunk's weights from them anew (Rabe and Staats, 2021; Dao et al., 2022). So memory grows linearly with the number of
queries and keys, not with their product. Where everything fits into one chunk, its weights are kept.
Kernels do without chunks: on CuPy arrays where there is no dropout, on the host where there is neither that nor a mask,
for FEWEST_QUERIES or more. ``self_attention`` is the same for heads that lie side by side in one array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..dtypes import is_floating
from . import compiled, kernels

CHUNK = 1 << 18  # scores at a time: 1 MiB in float32, about what a core's cache holds
FEWEST_QUERIES = 8  # for which it pays that the compiled kernel copies the keys of a head; fewer go in chunks


class Chunk(NamedTuple):
    """Some queries: ``batch`` along the first axis, ``rows`` along the queries; ``keys`` is how many they can see."""

    number: int
    batch: slice
    rows: slice
    keys: int


def chunks(shape: tuple[int, ...], is_causal: bool) -> Iterator[Chunk]:
    """The chunks of scores of ``shape``, (first axis, ..., queries, keys), in the order of their numbers."""
    first, *inner, queries, keys = shape
    matrices = math.prod(inner)
    batch = max(1, min(first, CHUNK // max(1, matrices * queries * keys)))
    rows = max(1, min(queries, CHUNK // max(1, batch * matrices * keys)))
    number = 0
    for b in range(0, first, batch):
        for r in range(0, queries, rows):
            stop = min(r + rows, queries)
            yield Chunk(number, slice(b, b + batch), slice(r, stop), min(keys, stop) if is_causal else keys)
            number += 1


def dropout_factor(xp: Any, number: int, shape: tuple[int, ...], dtype: Any, dropout_p: float, seed: int) -> Any:
    """What dropout multiplies the weights of chunk ``number`` with, 0 or 1 / (1 - p)."""
    kept = xp.kept(seed, number, shape, dropout_p)
    return kept.astype(dtype) * np.dtype(dtype).type(1 / (1 - dropout_p))


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
        raise ValueError(f"attn_mask must broadcast to the shape of the scores, {shape}")
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
    out = xp.zeros((*leading, query.shape[-2], value.shape[-1]), dtype)
    largest = xp.empty((*shape[:-1], 1), dtype)  # score of each query, and the sum of exp(score - largest)
    total = xp.ones((*shape[:-1], 1), dtype)
    on_host = query.__class__ is np.ndarray  # the kernels for CuPy arrays were tried above
    fast = compiled(query, key, value) if on_host and math.prod(shape) > xp.SMALL else None
    if fast is not None and attn_mask is None and not dropout_p and shape[-2] >= FEWEST_QUERIES:
        found = fast.attention(query, key, value, is_causal, scale)
        if found is not None:
            return found[0].astype(result_dtype, copy=False), found[1]
    all_chunks = list(chunks(shape, is_causal)) if 0 not in shape else []

    def scores(chunk: Chunk) -> tuple[Any, Any, Any]:
        """Scaled queries, keys and masked scores."""
        q = _part(query, chunk.batch)[..., chunk.rows, :] * scale
        k = _part(key, chunk.batch)[..., : chunk.keys, :]
        s = xp.matmul(q, xp.swapaxes(k, -1, -2))
        if s.shape[:-2] != (whole := _part(total, chunk.batch).shape[:-2]):
            s = xp.broadcast_to(s, whole + s.shape[-2:]).copy()
        if attn_mask is not None:
            mask = _part(attn_mask, chunk.batch)
            mask = mask if mask.shape[-2] == 1 else mask[..., chunk.rows, :]
            mask = mask if mask.shape[-1] == 1 else mask[..., : chunk.keys]
            s += xp.where(mask, s.dtype.type(0), -math.inf) if mask.dtype.kind == "b" else mask
        if is_causal and fast is None:
            r = chunk.rows.start  # key j is hidden from query i where j > i: only among the last keys
            visible = xp.tri(s.shape[-2], max(0, chunk.keys - r), dtype=bool)
            s[..., r:] += xp.where(visible, s.dtype.type(0), -math.inf)  # faster than where(visible, s, -inf)
        return q, k, s

    kept = None
    for chunk in all_chunks:
        q, k, s = scores(chunk)
        at = (chunk.batch, ..., chunk.rows, slice(None))
        if fast is not None:
            e, largest[at], total[at] = fast.attention_weights(s, chunk.rows.start if is_causal else -1)
        else:
            m = xp.max(s, axis=-1, keepdims=True)
            largest[at] = xp.where(xp.isfinite(m), m, xp.zeros_like(m))  # -inf for a query that sees nothing
            s -= largest[at]
            e = xp.exp(s, out=s)
            m = xp.sum(e.reshape(-1, chunk.keys), axis=1).reshape(m.shape)
            total[at] = xp.where(m == 0, xp.ones_like(m), m)  # then its weights are 0 / 1
        kept = (q, k, e) if len(all_chunks) == 1 else None
        if dropout_p:
            e = e * dropout_factor(xp, chunk.number, e.shape, e.dtype, dropout_p, seed)
        out[at] = xp.matmul(e, _part(value, chunk.batch)[..., : chunk.keys, :]) / total[at]

    def again(chunk: Chunk) -> tuple[Any, Any, Any]:
        """Scaled queries, keys and exp(score - largest), as in forward."""
        q, k, s = scores(chunk)
        m = largest[chunk.batch, ..., chunk.rows, :]
        if fast is not None:
            return q, k, fast.attention_weights_again(s, chunk.rows.start if is_causal else -1, m)
        s -= m
        return q, k, xp.exp(s, out=s)

    def pullback(g: Any, places: Any = None) -> tuple[Any, ...]:
        dq, dk, dv = (xp.zeros((*leading, *x.shape[-2:]), dtype) for x in (query, key, value))
        g = g / total  # the weights are e / total: here that is cheaper to divide than e
        along = xp.einsum("...i,...i->...", g, out)[..., None]  # of each query: the sum of weight * de over the keys
        for chunk in all_chunks:
            q, k, e = kept or again(chunk)
            at = (chunk.batch, ..., chunk.rows, slice(None))
            seen = (chunk.batch, ..., slice(chunk.keys), slice(None))
            de = xp.matmul(g[at], xp.swapaxes(_part(value, chunk.batch)[..., : chunk.keys, :], -1, -2))
            if dropout_p:
                factor = dropout_factor(xp, chunk.number, e.shape, e.dtype, dropout_p, seed)
                de *= factor
                dv[seen] += xp.matmul(xp.swapaxes(e * factor, -1, -2), g[at])
            else:
                dv[seen] += xp.matmul(xp.swapaxes(e, -1, -2), g[at])
            if fast is not None:
                ds = fast.score_gradient(de, e, along[at])
            else:
                de -= along[at]
                ds = xp.multiply(de, e, out=de)
            dq[at] = xp.matmul(ds, k) * scale
            dk[seen] += xp.matmul(xp.swapaxes(ds, -1, -2), q)
        return dq, dk, dv

    return out.astype(result_dtype, copy=False), pullback


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


def _part(x: Any, batch: slice) -> Any:
    """The part of x along the first axis; all of it where that axis broadcasts."""
    return x if x.shape[0] == 1 else x[batch]
