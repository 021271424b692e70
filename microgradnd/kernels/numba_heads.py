"""Scaled-dot-product attention over heads by compiled kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import numba_attention as attention_kernels


def _heads(x: Any) -> Any:
    """x as (A, B, G, T, width), copied if rows are not contiguous."""
    return _axes_of_heads(x if x.shape[-1] == 1 or x.strides[-1] == x.itemsize else x.copy())


def _axes_of_heads(x: Any) -> Any:
    """A view (A, B, G, T, width): batches, heads, heads that share keys and values."""
    return x[None, :, None] if x.ndim == 3 else x[:, :, None] if x.ndim == 4 else x


def _empty_heads(x: Any, width: int) -> Any:
    """(A, B, G, T, width), new; in memory the heads of one position of x lie side by side, as they are joined."""
    a, b, g, t, _ = x.shape
    return np.empty((a, t, b, g, width), np.float32, like=x).transpose(0, 2, 3, 1, 4)


def attention(query: Any, key: Any, value: Any, is_causal: bool, scale: float) -> tuple[Any, Any] | None:
    """Without a mask and dropout; None for leading axes that broadcast otherwise than groups of heads."""
    leading = query.shape[:-2]
    shared = (*leading[:2], 1) if len(leading) == 3 else leading
    if len(leading) > 3 or key.shape[:-2] != shared or value.shape[:-2] != shared:
        return None
    q, k, v = _heads(query), _heads(key), _heads(value)
    out = _empty_heads(q, v.shape[-1])
    largest, total = (np.empty(q.shape[:-1], np.float32, like=q) for _ in range(2))
    work = q.shape[0] * q.shape[1], math.prod(q.shape[2:]) * k.shape[-2]  # products, for scores alone
    settings = scale, bool(is_causal)
    attention_kernels.attention(*work, q, k, v, *settings, out, largest, total)

    def pullback(g: Any, places: Any = None) -> tuple[Any, ...]:
        g = _heads(g.astype(np.float32, copy=False))
        if places is not None and places[0].dtype == np.float32:
            gradients = [_axes_of_heads(x) for x in places]
        else:
            gradients = [_empty_heads(x, x.shape[-1]) for x in (q, k, v)]
            places = tuple(dx.reshape(x.shape) for dx, x in zip(gradients, (query, key, value), strict=True))
        attention_kernels.attention_gradient(*work, g, q, k, v, *settings, out, largest, total, *gradients)
        return places

    return out.reshape(query.shape[:-1] + value.shape[-1:]), pullback
