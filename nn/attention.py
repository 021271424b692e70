"""Multi-head attention, and the cache of keys and values that generation goes on from."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import microgradnd as mg
from microgradnd.arguments import integer, number
from microgradnd.backends import NAMESPACES, as_array
from microgradnd.dtypes import is_floating
from microgradnd.kernels.attention import join_heads, split_heads

from .embedding import RotaryPositions
from .init import lecun_normal
from .linear import Linear
from .module import Module, as_tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng
    from microgradnd.tensor import Operand


class KVCache:
    """Keys and values of the tokens so far: each further token is attended from without computing them again.

    Memory for ``capacity`` tokens is taken at the first use, so that one more token costs the same at any length.
    Holds values alone, no gradients: use it within ``mg.no_grad()``.

    Attributes:
        capacity: how many tokens there is room for, at least 1 (else ValueError).
        length: how many it holds.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = integer("KVCache", "capacity", capacity)
        if self.capacity < 1:
            raise ValueError(f"KVCache: capacity must be at least 1, got {capacity}")
        self.length = 0
        self._keys: Any = None
        self._values: Any = None

    def append(self, keys: mg.Tensor, values: mg.Tensor) -> tuple[mg.Tensor, mg.Tensor]:
        """Take (..., T, width) keys and values of T more tokens; returns those of all tokens.

        Raises ValueError where they are more than ``capacity``, not as many keys as values, or unlike those before, in
        batch, width or dtype (an empty cache takes any), and RuntimeError for tensors with a gradient.
        """
        if keys.requires_grad or values.requires_grad:
            raise RuntimeError("KVCache: keys and values lose their gradients in a cache; use it within mg.no_grad()")
        stop = self.length + keys.shape[-2]
        if stop > self.capacity:
            raise ValueError(f"KVCache: there is room for {self.capacity} tokens, got {stop}")
        if keys.shape[-2] != values.shape[-2]:
            raise ValueError(f"KVCache: there must be as many keys as values, got shapes {keys.shape}, {values.shape}")
        pairs = [(self._keys, keys), (self._values, values)]
        unlike = [(held, x) for held, x in pairs if held is None or _apart_from_tokens(held) != _apart_from_tokens(x)]
        if unlike and self.length:
            held, x = unlike[0]
            raise ValueError(f"KVCache: {x.dtype} {x.shape} do not fit to the {held.dtype} {held.shape} that it holds")
        if unlike:
            xp = NAMESPACES[keys.data.__class__]
            self._keys, self._values = (
                xp.empty((*x.shape[:-2], self.capacity, x.shape[-1]), x.dtype) for x in (keys, values)
            )
        self._keys[..., self.length : stop, :] = keys.data
        self._values[..., self.length : stop, :] = values.data
        self.length = stop
        return mg.tensor(self._keys[..., :stop, :]), mg.tensor(self._values[..., :stop, :])


class MultiHeadAttention(Module):
    """Attention by several heads at once, each with queries, keys and values of its own (Vaswani et al., 2017).

    The last axis is projected to queries, keys and values, cut into heads; each head computes
    softmax(q k^T / sqrt(head_dim)) v; the heads are joined and projected again. Batches come first:
    (..., T, d_model), unlike in PyTorch by default.

    Args:
        d_model: width of input and output, a multiple of ``num_heads``.
        num_heads: of the queries.
        num_kv_heads: of the keys and values, where queries share them (Ainslie et al., 2023); ``num_heads`` where
            it is None, else a divisor of it.
        dropout: the share of attention weights that training drops.
        bias: whether the projections have one.
        rotary: turns queries and keys by their positions.
        init, dtype, rng: as for :class:`Linear`; ``rng`` also draws the dropout.

    Raises:
        ValueError: for sizes that do not divide, and a dropout out of range.

    ``in_proj.weight`` holds the columns of queries, keys and values side by side: (d_model, d_model + 2
    num_kv_heads head_dim).
    """

    pytorch_names: ClassVar = {"in_proj.": "in_proj_"}  # see nn.pytorch

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        rotary: RotaryPositions | None = None,
        init: Callable[..., Any] = lecun_normal,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        name = "MultiHeadAttention"
        d_model, num_heads = integer(name, "d_model", d_model), integer(name, "num_heads", num_heads)
        num_kv_heads = num_heads if num_kv_heads is None else integer(name, "num_kv_heads", num_kv_heads)
        self.dropout = number(name, "dropout", dropout)
        if min(d_model, num_heads, num_kv_heads) < 1 or d_model % num_heads or num_heads % num_kv_heads:
            raise ValueError(
                "MultiHeadAttention: d_model must be a multiple of num_heads, and num_heads of num_kv_heads, got "
                f"{d_model}, {num_heads} and {num_kv_heads}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"MultiHeadAttention: dropout must be at least 0 and below 1, got {dropout}")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = d_model // num_heads
        self.rotary = rotary
        self.rng = np.random.default_rng(rng)
        options: dict[str, Any] = {"bias": bias, "init": init, "dtype": dtype, "rng": self.rng}
        self.in_proj = Linear(d_model, d_model + 2 * num_kv_heads * self.head_dim, **options)
        self.out_proj = Linear(d_model, d_model, **options)

    def forward(
        self,
        query: mg.Tensor,
        key: mg.Tensor | None = None,
        value: mg.Tensor | None = None,
        *,
        key_padding_mask: Operand | None = None,
        attn_mask: Operand | None = None,
        is_causal: bool = False,
        need_weights: bool = False,
        cache: KVCache | None = None,
    ) -> Any:
        """Attend from ``query`` (..., L, d_model) to ``key`` and ``value`` (..., S, d_model).

        Args:
            key, value: None for self-attention; ``value`` None: the same as ``key``.
            key_padding_mask: (..., S) booleans, True for keys that no query may attend to.
            attn_mask: broadcasts to (..., heads, L, S): booleans, True where a query may *not* attend to a key (as
                in PyTorch's module; its function and ``mg.scaled_dot_product_attention`` have it the other way
                round), or numbers that are added to the scores.
            is_causal: query i attends to keys up to its own position only; with a cache, to all before it too.
            need_weights: return the weights too: the result and (..., heads, L, S).
            cache: of the tokens so far; keys and values are appended to it.

        Returns:
            (..., L, d_model), or a pair with ``need_weights``.

        Raises ValueError for queries, keys, values and masks of other shapes, TypeError for masks of integers.
        """
        key = query if key is None else key
        value = key if value is None else value
        tensors = {id(x): as_tensor(x) for x in (query, key, value)}  # what is one stays one: it takes one product
        query, key, value = (tensors[id(x)] for x in (query, key, value))
        if any(x.ndim < 2 for x in (query, key, value)):
            raise ValueError(
                "MultiHeadAttention: query, key and value need two axes or more, got the shapes "
                f"{query.shape}, {key.shape} and {value.shape}"
            )
        dropout = self.dropout if self.training else 0.0
        if key is query and value is query and self.rotary is None and cache is None and not need_weights:
            mask = self._mask(key_padding_mask, attn_mask, query.shape[-2], query.shape[:-1])
            sizes = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads}
            joined = mg.self_attention(self.in_proj(query), mask, dropout, is_causal, **sizes, rng=self.rng)
            return self.out_proj(joined)
        q, k, v = (split_heads(x, x.shape[-1] // self.head_dim) for x in self._projected(query, key, value))
        start = 0 if cache is None else cache.length
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        mask = self._mask(key_padding_mask, attn_mask, q.shape[-2], (*k.shape[:-3], start + k.shape[-2]))
        if cache is not None:
            k, v = cache.append(k, v)
        try:
            attend = functools.partial(
                mg.scaled_dot_product_attention, is_causal=is_causal and not start, enable_gqa=True
            )
            if is_causal and start:  # the queries are the last tokens: what comes before is seen by all of them
                seen = np.tri(q.shape[-2], k.shape[-2], start, dtype=bool)
                mask = _both(mask, as_array(seen, like=q.data))
            heads = attend(q, k, v, mask, dropout, rng=self.rng)
            out = self.out_proj(join_heads(heads, heads.ndim - 1))
            if not need_weights:
                return out
            identity = NAMESPACES[k.data.__class__].eye(k.shape[-2], dtype=k.dtype)  # as values it gives the weights
            return out, attend(q, k, mg.tensor(identity), mask)
        except BaseException:
            if cache is not None:
                cache.length = start  # the call can be done again, with another mask for example
            raise

    def _projected(self, query: mg.Tensor, key: mg.Tensor, value: mg.Tensor) -> list[mg.Tensor]:
        """Queries, keys and values, heads side by side in the last axis."""
        width = self.num_heads * self.head_dim
        bounds = [0, width, width + self.num_kv_heads * self.head_dim, self.in_proj.out_features]
        parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        if key is query and value is query:  # one product is faster than three
            together = self.in_proj(query)
            return [together[..., part] for part in parts]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        return [
            mg.linear(x, weight[:, part], None if bias is None else bias[part])
            for x, part in zip((query, key, value), parts, strict=True)
        ]

    def _mask(self, key_padding_mask: Any, attn_mask: Any, queries: int, keys_shape: tuple[int, ...]) -> Any:
        """Both masks as one: True where a query may attend, or numbers to add; for the keys' shape (..., S)."""
        if attn_mask is not None:
            attn_mask = attn_mask if isinstance(attn_mask, mg.Tensor) else mg.tensor(attn_mask)
            if attn_mask.dtype.kind != "b" and not is_floating(attn_mask.dtype):
                raise TypeError(
                    f"MultiHeadAttention: attn_mask must be boolean or floating-point, got {attn_mask.dtype}"
                )
            expected = queries, keys_shape[-1]
            if any(n not in (1, m) for n, m in zip(attn_mask.shape[::-1], expected[::-1], strict=False)):
                raise ValueError(
                    f"MultiHeadAttention: attn_mask must broadcast to (..., heads, {expected[0]}, {expected[1]}), got "
                    f"shape {attn_mask.shape}"
                )
            attn_mask = ~attn_mask if attn_mask.dtype.kind == "b" else attn_mask
        if key_padding_mask is None:
            return attn_mask
        padding = mg.tensor(key_padding_mask)
        if padding.dtype.kind != "b":
            raise TypeError(f"MultiHeadAttention: key_padding_mask must be boolean, got {padding.dtype}")
        if not 0 < padding.ndim <= len(keys_shape) or any(
            n not in (1, m) for n, m in zip(padding.shape, keys_shape[-padding.ndim :], strict=True)
        ):
            raise ValueError(
                f"MultiHeadAttention: key_padding_mask must broadcast to {keys_shape}, got shape {padding.shape}"
            )
        return _both(attn_mask, ~padding[..., None, None, :])  # (..., heads, queries, keys)


def _apart_from_tokens(x: Any) -> tuple[Any, ...]:
    """What keys or values of further tokens have in common with those before: dtype, batch, heads and width."""
    return (x.dtype, *x.shape[:-2], x.shape[-1])


def _both(mask: Any, visible: Any) -> Any:
    """A mask, boolean or of numbers or None, with what is not ``visible`` hidden too."""
    if mask is None:
        return mg.tensor(visible)
    return mask & visible if mask.dtype.kind == "b" else mg.where(visible, mask, -math.inf)
