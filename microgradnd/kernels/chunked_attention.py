"""Scaled dot-product attention in chunks of queries: scores are never held for all queries at once.

Forward keeps the result and, per query, the largest score and the sum of exp(score - largest); backward computes each
chunk's weights from them anew (Rabe and Staats, 2021; Dao et al., 2022). So memory grows linearly with the number of
queries and keys, not with their product. Where everything fits into one chunk, its weights are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

CHUNK = 1 << 18  # scores at a time: 1 MiB in float32, about what a core's cache holds


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
    shape: tuple[int, ...],
    fast: Any,
) -> tuple[Any, Callable[..., tuple[Any, ...]]]:
    """softmax(scale query key^T + mask) value, for floats of one dtype and arguments of one ndim, and the pullback.

    ``shape`` is that of all scores. With ``fast``, the module of compiled kernels, these compute the weights from them.
    """
    leading, dtype = shape[:-2], query.dtype
    out = xp.zeros((*shape[:-1], value.shape[-1]), dtype)
    largest = xp.empty((*shape[:-1], 1), dtype)  # score of each query, and the sum of exp(score - largest)
    total = xp.ones((*shape[:-1], 1), dtype)
    all_chunks = list(chunks(shape, is_causal)) if 0 not in shape else []

    def scores(chunk: Chunk) -> tuple[Any, Any, Any]:
        """Scaled queries, keys and masked scores; compiled kernels hide later keys themselves."""
        q = _part(query, chunk.batch)[..., chunk.rows, :] * scale
        k = _part(key, chunk.batch)[..., : chunk.keys, :]
        s = xp.matmul(q, xp.swapaxes(k, -1, -2))
        if s.shape[:-2] != (whole := _part(total, chunk.batch).shape[:-2]):
            s = xp.broadcast_to(s, whole + s.shape[-2:]).copy()
        if attn_mask is not None:
            _mask(xp, s, attn_mask, chunk)
        if is_causal and fast is None:
            _hide_later_keys(xp, s, chunk)
        return q, k, s

    kept = None
    for chunk in all_chunks:
        q, k, s = scores(chunk)
        at, first = (chunk.batch, ..., chunk.rows, slice(None)), chunk.rows.start if is_causal else -1
        e, largest[at], sums = _weights(xp, s) if fast is None else fast.attention_weights(s, first)
        # Without a mask every query sees a key, whose score may be beyond the range; with one it may see none.
        total[at] = xp.where(sums == 0, xp.full_like(sums, math.nan if attn_mask is None else 1), sums)
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
            remaining = e
            if dropout_p:
                factor = dropout_factor(xp, chunk.number, e.shape, e.dtype, dropout_p, seed)
                de *= factor
                remaining = e * factor
            dv[seen] += xp.matmul(xp.swapaxes(remaining, -1, -2), g[at])
            ds = (_score_gradient if fast is None else fast.score_gradient)(de, e, along[at])
            dq[at] = xp.matmul(ds, k) * scale
            dk[seen] += xp.matmul(xp.swapaxes(ds, -1, -2), q)
        return dq, dk, dv

    return out, pullback


def _weights(xp: Any, s: Any) -> tuple[Any, Any, Any]:
    """exp(score - largest) in the memory of the scores; the largest of each query; the sums."""
    m = xp.max(s, axis=-1, keepdims=True)
    largest = xp.where(xp.isfinite(m), m, xp.zeros_like(m))  # -inf for a query that sees nothing
    s -= largest
    e = xp.exp(s, out=s)
    m = xp.sum(e.reshape(-1, e.shape[-1]), axis=1).reshape(m.shape)
    return e, largest, m


def _score_gradient(de: Any, e: Any, along: Any) -> Any:
    """(de - along) e, in the memory of de."""
    de -= along
    de *= e
    return de


def _mask(xp: Any, s: Any, attn_mask: Any, chunk: Chunk) -> None:
    """Add the part of a mask that belongs to a chunk to its scores; -inf where one of booleans is False."""
    mask = _part(attn_mask, chunk.batch)
    mask = mask if mask.shape[-2] == 1 else mask[..., chunk.rows, :]
    mask = mask if mask.shape[-1] == 1 else mask[..., : chunk.keys]
    s += xp.where(mask, s.dtype.type(0), -math.inf) if mask.dtype.kind == "b" else mask


def _hide_later_keys(xp: Any, s: Any, chunk: Chunk) -> None:
    """Hide key j from query i where j > i: only among a chunk's last keys."""
    r = chunk.rows.start
    visible = xp.tri(s.shape[-2], max(0, chunk.keys - r), dtype=bool)
    s[..., r:] += xp.where(visible, s.dtype.type(0), -math.inf)  # faster than where(visible, s, -inf)


def _part(x: Any, batch: slice) -> Any:
    """The part of x along the first axis; all of it where that axis broadcasts."""
    return x if x.shape[0] == 1 else x[batch]
