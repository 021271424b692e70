"""Attention: weighted means of values, with weights from products of queries and keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autocast import in_low_precision
from ..backends import NAMESPACES
from ..fused import fused
from ..kernels import attention as kernels
from ..primitive import primitive
from ..randomness import generator
from ..tensor import Tensor
from .arithmetic import where
from .linalg import matmul
from .reductions import softmax
from .shaping import astype, reshape, swapaxes

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
    rng: Rng = None,
) -> Tensor:
    """softmax(scale query key^T + mask) value, over the keys of each query (Vaswani et al., 2017).

    The scores of all queries are never in memory at once: forward and backward go through them in chunks, and
    backward computes them again. A query that may attend to no key gets zeros.

    Args:
        query: (..., queries, width).
        key: (..., keys, width). Leading axes broadcast, so heads can share keys and values.
        value: (..., keys, value width).
        attn_mask: broadcasts to (..., queries, keys): booleans, True where a query may attend to a key, or
            numbers that are added to the scores.
        dropout_p: the share of weights that is set to zero, at least 0 and below 1; the others grow by 1 / (1 - p).
        is_causal: query i attends to keys 0 to i only.
        scale: 1 / sqrt(width) where it is None.
        rng: a ``numpy.random.Generator`` or a seed for the dropout.

    Returns:
        (..., queries, value width).

    Raises:
        TypeError: for a mask of integers.
        ValueError: for shapes that do not fit, and for ``dropout_p`` out of range.
    """
    if not 0 <= dropout_p < 1:
        raise ValueError(f"scaled_dot_product_attention: dropout_p must be at least 0 and below 1, got {dropout_p}")
    arrays: list[Any] = [x if x is None or hasattr(x, "ndim") else Tensor(x) for x in (query, key, value, attn_mask)]
    if any(x.ndim < 2 for x in arrays[:3]):
        raise ValueError(
            "scaled_dot_product_attention: query, key and value need two axes or more, got the shapes "
            f"{', '.join(str(x.shape) for x in arrays[:3])}"
        )
    if arrays[3] is not None and arrays[3].dtype.kind in "iu":
        raise TypeError(
            f"scaled_dot_product_attention: attn_mask must be boolean or floating-point, got {arrays[3].dtype}"
        )
    ndim = max([x.ndim for x in arrays if x is not None])
    q, k, v, mask = (None if x is None else _with_axes(x, max(ndim, 3)) for x in arrays)
    scale = 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else float(scale)
    seed = generator(rng).integers(2**63) if dropout_p else 0
    out = _scaled_dot_product_attention(q, k, v, mask, is_causal, scale, dropout_p, seed)
    return reshape(out, out.shape[1:]) if ndim == 2 else out


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
    # Not minus infinity, from which a query that sees nothing would get NaN.
    weights = softmax(where(visible, scores, float(np.finfo(scores.dtype).min) / 2))
    weights = where(visible, weights, 0.0)
    if dropout_p:
        weights = weights * _dropout_factors(xp, weights.shape, weights.dtype, is_causal, dropout_p, seed)
    return matmul(weights, value)


def _dropout_factors(xp: Any, shape: tuple[int, ...], dtype: Any, is_causal: bool, dropout_p: float, seed: int) -> Any:
    """The factors that the kernel draws chunk by chunk, in one array."""
    factors = xp.zeros(shape, dtype)
    for chunk in kernels.chunks(shape, is_causal):
        at = (chunk.batch, ..., chunk.rows, slice(chunk.keys))
        factors[at] = kernels.dropout_factor(xp, chunk.number, factors[at].shape, dtype, dropout_p, seed)
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
