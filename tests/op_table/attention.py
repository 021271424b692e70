"""Attention and rotary positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rows import Op, Sample, mask, shapes

_NO_KEY_FOR_SOME = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)


def _hidden(shape: tuple[int, ...], attn_mask: Any, is_causal: bool) -> tuple[Any, Any]:
    """Which scores do not count, and what is added to the others."""
    hidden = ~np.tri(*shape[-2:], dtype=bool) if is_causal else np.zeros(shape[-2:], bool)
    if attn_mask is None:
        return hidden, 0.0
    if attn_mask.dtype.kind == "b":
        return hidden | ~attn_mask, 0.0
    return hidden | (attn_mask == -np.inf), np.where(attn_mask == -np.inf, 0.0, attn_mask)


def dropped(shape: tuple[int, ...], dropout_p: float, rng: int) -> Any:
    seed = np.random.default_rng(rng).integers(2**63) if dropout_p else 0
    generator = np.random.Generator(np.random.Philox(key=[int(seed), 0]))
    return (generator.random(shape, np.float32) >= dropout_p) / (1 - dropout_p)


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, rng: int = 0,
) -> Any:  # fmt: skip
    scores = q @ np.swapaxes(k, -1, -2) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    hidden, added = _hidden(scores.shape, attn_mask, is_causal)
    e = np.where(hidden, 0, np.exp(scores + added))
    total = np.sum(e, axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total) * dropped(e.shape, dropout_p, rng) @ v


def _torch_attention(
    torch: Any, q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, rng: int = 0,
) -> Any:  # fmt: skip
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden, added = _hidden(tuple(scores.shape), None if attn_mask is None else attn_mask.numpy(), is_causal)
    scores = scores + torch.as_tensor(added)
    hidden = torch.from_numpy(np.broadcast_to(hidden, scores.shape).copy())
    weights = torch.softmax(scores.masked_fill(hidden, -1e300), -1).masked_fill(hidden, 0)
    return weights * torch.from_numpy(dropped(tuple(weights.shape), dropout_p, rng)) @ v


def _heads(columns: Any, stack: Any, heads: int, num_kv_heads: int | None) -> list[Any]:
    """Queries, keys and values, each of ``heads`` heads, of which some may share theirs, from columns per head."""
    shared = num_kv_heads or heads
    keys = [heads + h * shared // heads for h in range(heads)]
    return [stack([columns[i] for i in at]) for at in (range(heads), keys, [i + shared for i in keys])]


def _self_attention(
    qkv: Any, attn_mask: Any = None, *, num_heads: int, num_kv_heads: int | None = None, **options: Any
) -> Any:
    columns = np.split(qkv, num_heads + 2 * (num_kv_heads or num_heads), axis=-1)
    heads = _heads(columns, lambda x: np.stack(x, axis=-3), num_heads, num_kv_heads)
    return np.concatenate(list(np.moveaxis(_attention(*heads, attn_mask, **options), -3, 0)), axis=-1)


def _torch_self_attention(
    torch: Any, qkv: Any, attn_mask: Any = None, *, num_heads: int, num_kv_heads: int | None = None, **options: Any
) -> Any:
    columns = torch.chunk(qkv, num_heads + 2 * (num_kv_heads or num_heads), -1)
    heads = _heads(columns, lambda x: torch.stack(x, -3), num_heads, num_kv_heads)
    return torch.cat(list(torch.unbind(_torch_attention(torch, *heads, attn_mask, **options), -3)), dim=-1)


OPS = (
    Op(
        "scaled_dot_product_attention",
        _attention,
        (
            shapes((2, 3, 4), (2, 5, 4), (2, 5, 3)),
            shapes((2, 2, 4, 3), (2, 2, 4, 3), (2, 2, 4, 3), is_causal=True),
            shapes((5, 3), (2, 3), (2, 4), is_causal=True),
            shapes((2, 3), (5, 3), (5, 4), is_causal=True, scale=0.3),
            shapes((2, 2, 3, 4, 2), (2, 2, 1, 5, 2), (2, 2, 1, 5, 2)),  # heads that share keys and values
            Sample(((2, 3, 4), (2, 5, 4), (2, 5, 3), mask(2, 3, 5))),
            Sample(((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3), _NO_KEY_FOR_SOME), {"is_causal": True}),
            Sample(((3, 4), (5, 4), (5, 3), np.where(mask(2, 3, 5), 0.3, -np.inf))),
            shapes((0, 2, 3), (0, 4, 3), (0, 4, 2)),
            shapes((2, 3), (0, 3), (0, 2)),
            shapes((2, 3, 4), (2, 5, 4), (2, 5, 3), dropout_p=0.4, rng=3),
            shapes((4, 3), (4, 3), (4, 3), dropout_p=0.4, rng=3, is_causal=True),
        ),
        differentiable=(0, 1, 2),
        torch=_torch_attention,
    ),
    Op(
        "self_attention",
        _self_attention,
        (
            shapes((2, 5, 24), num_heads=2),
            shapes((5, 6), num_heads=1, is_causal=True, scale=0.7),
            shapes((2, 4, 6), num_heads=2, is_causal=True),  # heads of one number
            shapes((2, 5, 16), num_heads=4, num_kv_heads=2, is_causal=True),
            shapes((4, 12), num_heads=4, num_kv_heads=1),
            shapes((3, 2, 4, 12), num_heads=2),
            Sample(((2, 5, 12), mask(2, 1, 5, 5)), {"num_heads": 2}),
            Sample(((2, 4, 16), mask(4, 4, 4)), {"num_heads": 4, "num_kv_heads": 2}),
            Sample(((2, 4, 16), np.where(mask(4), 0.3, -np.inf)), {"num_heads": 4, "num_kv_heads": 2}),
            shapes((2, 3, 12), num_heads=2, dropout_p=0.4, rng=3),
            shapes((0, 3, 12), num_heads=2),
        ),
        torch=_torch_self_attention,
    ),
    Op(
        "rotate_halves",
        lambda x, cos, sin: np.concatenate(
            [
                x[..., : len(cos.T)] * cos - x[..., len(cos.T) :] * sin,
                x[..., len(cos.T) :] * cos + x[..., : len(cos.T)] * sin,
            ],
            axis=-1,
        ),
        (
            Sample(((2, 3, 4), np.cos(np.arange(6.0).reshape(3, 2)), np.sin(np.arange(6.0).reshape(3, 2)))),
            Sample(((6,), np.cos(np.arange(3.0)), np.sin(np.arange(3.0)))),
        ),
    ),
)
