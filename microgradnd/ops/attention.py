"""Attention: weighted means of values, with weights from products of queries and keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import integer, number
from ..autocast import in_low_precision
from ..backends import NAMESPACES
from ..fused import fused
from ..kernels import attention as kernels
from ..kernels.chunked_attention import chunks, dropout_factor
from ..primitive import primitive
from ..randomness import generator
from ..tensor import Tensor
from .arithmetic import where
from .linalg import matmul
from .reductions import softmax
from .shaping import astype, expand_dims, reshape, swapaxes

if TYPE_CHECKING:
    from ..randomness import Rng
    from ..tensor import Operand


def scaled_dot_product_attention(
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    enable_gqa: bool = False,
    rng: Rng = None,
) -> Tensor:
    """softmax(scale query key^T + mask) value, over the keys of each query (Vaswani et al., 2017).

    The scores of all queries are never in memory at once: forward and backward go through them in chunks, and
    backward computes them again. A query that may attend to no key gets zeros.

    Args:
        query: (..., queries, width).
        key: (..., keys, width). Leading axes broadcast, so heads can share keys and values.
        value: (..., keys, value width).
        attn_mask: broadcasts to (..., queries, keys), and may have leading axes that the others have not: booleans,
            True where a query may attend to a key, or numbers that are added to the scores.
        dropout_p: the share of weights that is set to zero, at least 0 and below 1; the others grow by 1 / (1 - p).
        is_causal: query i attends to keys 0 to i only.
        scale: 1 / sqrt(width) where it is None.
        enable_gqa: heads of queries, on the third axis from the end, share in groups those of keys and values, which
            may be fewer (Ainslie et al., 2023).
        rng: a ``numpy.random.Generator`` or a seed for the dropout.

    Returns:
        (..., queries, value width).

    Raises:
        TypeError: for a mask of integers.
        ValueError: for shapes that do not fit, and for ``dropout_p`` out of range.
    """
    name = "scaled_dot_product_attention"
    arrays: list[Any] = [x if hasattr(x, "ndim") else Tensor(x) for x in (query, key, value)]
    if any(x.ndim < 2 for x in arrays):
        raise ValueError(
            f"{name}: query, key and value need two axes or more, got the shapes "
            f"{', '.join(str(x.shape) for x in arrays)}"
        )
    q, k, v = arrays
    mask = _checked(name, attn_mask, dropout_p)
    heads, groups, others = (x.shape[-3] if enable_gqa and x.ndim > 2 else 1 for x in arrays)
    if heads != groups:
        if groups == 0 or heads % groups or others not in (1, groups):
            raise ValueError(
                f"{name}: {heads} heads of queries can't share {groups} of keys and {others} of values in equal groups"
            )
        mask = _grouped_mask(name, mask, heads, groups)
        q, k, v = kernels.group_heads(q, groups), expand_dims(k, -3), expand_dims(v, -3)
    ndim = max(x.ndim for x in (q, k, v, mask) if x is not None)
    q, k, v, mask = (None if x is None else _with_axes(x, max(ndim, 3)) for x in (q, k, v, mask))
    scale = 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else float(number(name, "scale", scale))
    seed = generator(rng).integers(2**63) if dropout_p else 0
    out = _scaled_dot_product_attention(q, k, v, mask, is_causal, scale, dropout_p, seed)
    if heads != groups:
        return reshape(out, (*out.shape[:-4], heads, *out.shape[-2:]))
    return reshape(out, out.shape[1:]) if ndim == 2 else out


def self_attention(
    qkv: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    rng: Rng = None,
) -> Tensor:
    """:func:`scaled_dot_product_attention` of heads that lie side by side, as one projection gives them, joined again.

    The gradient of ``qkv`` is put together in one array, without those of its parts in between.

    Args:
        qkv: (..., T, (num_heads + 2 num_kv_heads) width): the queries of all heads, then their keys, their values.
        attn_mask: broadcasts to (..., num_heads, T, T).
        dropout_p, is_causal, scale, rng: as there.
        num_heads: of the queries.
        num_kv_heads: of the keys and values, a divisor of ``num_heads``, which is what None stands for.

    Returns:
        (..., T, num_heads width).

    Raises:
        TypeError: for a mask of integers, and numbers of heads that are none.
        ValueError: for shapes that do not fit, and for ``dropout_p`` out of range.
    """
    name = "self_attention"
    num_heads = integer(name, "num_heads", num_heads)
    num_kv_heads = num_heads if num_kv_heads is None else integer(name, "num_kv_heads", num_kv_heads)
    x: Any = qkv if hasattr(qkv, "ndim") else Tensor(qkv)
    if min(num_heads, num_kv_heads) < 1 or num_heads % num_kv_heads:
        raise ValueError(f"{name}: num_heads must be a multiple of num_kv_heads, got {num_heads} and {num_kv_heads}")
    together = num_heads + 2 * num_kv_heads
    if x.ndim < 2 or x.shape[-1] % together:
        raise ValueError(
            f"{name}: expected (..., T, n) with n a multiple of {together}, for the queries of {num_heads} heads and "
            f"the keys and values of {num_kv_heads}; got shape {x.shape}"
        )
    mask = _checked(name, attn_mask, dropout_p)
    scores = (*x.shape[:-2], num_heads, x.shape[-2], x.shape[-2])
    if mask is not None:
        if mask.ndim > len(scores) or any(
            m not in (1, n) for m, n in zip(mask.shape[::-1], scores[::-1], strict=False)
        ):
            raise ValueError(f"{name}: attn_mask must broadcast to {scores}, got shape {mask.shape}")
        mask = _with_axes(mask, len(scores))
        mask = _grouped_mask(name, mask, num_heads, num_kv_heads) if num_kv_heads < num_heads else mask
    scale = 1 / math.sqrt(max(1, x.shape[-1] // together)) if scale is None else float(number(name, "scale", scale))
    seed = generator(rng).integers(2**63) if dropout_p else 0
    return _self_attention(x, mask, num_heads, num_kv_heads, is_causal, scale, dropout_p, seed)


def _checked(operation: str, attn_mask: Any, dropout_p: float) -> Any:
    """The mask, None or with an ndim. Raises for a dropout out of range, and for a mask of integers."""
    if not 0 <= number(operation, "dropout_p", dropout_p) < 1:
        raise ValueError(f"{operation}: dropout_p must be at least 0 and below 1, got {dropout_p}")
    mask = attn_mask if attn_mask is None or hasattr(attn_mask, "ndim") else Tensor(attn_mask)
    if mask is not None and mask.dtype.kind in "iu":
        raise TypeError(f"{operation}: attn_mask must be boolean or floating-point, got {mask.dtype}")
    return mask


def _grouped_mask(operation: str, mask: Any, heads: int, groups: int) -> Any:
    """(..., heads, queries, keys) -> (..., groups, heads / groups, queries, keys), where there is an axis of heads."""
    if mask is None or mask.ndim < 3:
        return mask
    if mask.shape[-3] not in (1, heads):
        raise ValueError(f"{operation}: attn_mask must have {heads} heads, or 1, got shape {mask.shape}")
    return expand_dims(mask, -3) if mask.shape[-3] == 1 else kernels.group_heads(mask, groups)


def _with_axes(x: Any, ndim: int) -> Any:
    """x with axes of length 1 in front."""
    return x if x.ndim == ndim else reshape(x, (1,) * (ndim - x.ndim) + x.shape)


@fused(kernels.attention, "query", "key", "value", conversion=in_low_precision)
def _scaled_dot_product_attention(
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    is_causal: bool = False,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    scores = matmul(query * scale, swapaxes(key, -1, -2))
    if scores.shape[-1] == 0:
        return matmul(scores, value)  # no keys: zeros
    xp = NAMESPACES[scores.data.__class__]
    visible = xp.tri(*scores.shape[-2:], dtype=bool) if is_causal else xp.ones(scores.shape[-2:], bool)
    if attn_mask is not None and attn_mask.dtype.kind == "b":
        visible = attn_mask & visible
    elif attn_mask is not None:
        visible = (attn_mask != -math.inf) & visible
        scores = scores + astype(where(visible, attn_mask, 0.0), scores.dtype)
    # A query that sees nothing would get NaN from minus infinity alone.
    hidden = where(visible.any(axis=-1, keepdims=True), -math.inf, 0.0)
    weights = softmax(where(visible, scores, astype(hidden, scores.dtype)))
    weights = where(visible, weights, 0.0)
    if dropout_p:
        leading = np.broadcast_shapes(weights.shape[:-2], value.shape[:-2])
        shape = (*leading, *weights.shape[-2:])
        weights = weights * _dropout_factors(xp, shape, weights.dtype, is_causal, dropout_p, seed)
    return matmul(weights, value)


@fused(kernels.self_attention, "qkv", conversion=in_low_precision)
def _self_attention(
    qkv: Operand,
    attn_mask: Operand | None = None,
    num_heads: int = 1,
    num_kv_heads: int = 1,
    is_causal: bool = False,
    scale: float = 1.0,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    heads = kernels.split_qkv(qkv, num_heads, num_kv_heads)
    out = _scaled_dot_product_attention(*heads, attn_mask, is_causal, scale, dropout_p, seed)
    return kernels.join_heads(out, qkv.ndim)


def _dropout_factors(xp: Any, shape: tuple[int, ...], dtype: Any, is_causal: bool, dropout_p: float, seed: int) -> Any:
    """The factors that the kernel draws chunk by chunk, in one array."""
    factors = xp.zeros(shape, dtype)
    for chunk in chunks(shape, is_causal):
        at = (chunk.batch, ..., chunk.rows, slice(chunk.keys))
        factors[at] = dropout_factor(xp, chunk.number, factors[at].shape, dtype, dropout_p, seed)
    return factors


@primitive(x=lambda g, xp, cos, sin: xp.rotate_halves(g, cos, -sin), cos=None, sin=None)
def rotate_halves(xp: Any, x: Operand, cos: Operand, sin: Operand) -> Any:
    """Each pair of elements i and i + n / 2 of the last axis turned, as a point of the plane, by an angle of its own.

    ``x`` is (..., n) with an even n; ``cos`` and ``sin`` of the angles broadcast to (..., n / 2) and have no
    gradient. Rotary positions turn queries and keys so (Su et al., 2021).
    """
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError("the last axis of x must have an even length")
    return xp.rotate_halves(x, cos, sin)
