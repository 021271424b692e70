"""A language model of transformer blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import microgradnd as mg
from microgradnd.arguments import integer, number

from .activations import GELU
from .attention import KVCache
from .dropout import Dropout
from .embedding import Embedding, LearnedPositions, RotaryPositions, SinusoidalPositions
from .init import normal
from .linear import Linear
from .module import Module
from .normalization import LayerNorm
from .transformer_block import TransformerBlock

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng

POSITIONS = ("learned", "sinusoidal", "rotary")


class Transformer(Module):
    """A decoder-only language model: embeddings, causal blocks, a norm, logits (Radford et al., 2019).

    Args:
        vocab_size: number of tokens.
        d_model, num_heads, num_layers: width, heads per block, blocks.
        max_len: tokens that the model can look at.
        positions: "learned" vectors or "sinusoidal" ones are added to the embeddings; "rotary" positions turn
            queries and keys.
        tie_weights: the embedding is the last projection too (Press and Wolf, 2017).
        d_ff, activation, gated, norm, num_kv_heads, dropout, bias: as for :class:`TransformerBlock`.
        dtype: of the parameters.
        rng: a ``numpy.random.Generator`` or a seed for weights and dropout.

    Weights start normal with deviation 0.02, those of the projections that end in a residual sum with
    0.02 / sqrt(2 num_layers), as in GPT-2.

    Raises ValueError for sizes that do not fit, and for unknown ``positions``.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        num_layers: int,
        max_len: int,
        *,
        positions: str = "learned",
        num_kv_heads: int | None = None,
        d_ff: int | None = None,
        activation: Callable[[], Callable[[Any], Any]] = GELU,
        gated: bool = False,
        norm: Callable[..., Module] = LayerNorm,
        dropout: float = 0.0,
        bias: bool = True,
        tie_weights: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        if positions not in POSITIONS:
            raise ValueError(f"Transformer: positions must be any of {', '.join(POSITIONS)}, got {positions!r}")
        if min(num_layers, num_heads, max_len) < 1:
            raise ValueError(
                f"Transformer: expected at least one layer, head and position, got {num_layers}, {num_heads}, {max_len}"
            )
        rng = np.random.default_rng(rng)
        init = functools.partial(normal, std=0.02)
        shared: dict[str, Any] = {"init": init, "dtype": dtype, "rng": rng}
        self.max_len = max_len
        self.embedding = Embedding(vocab_size, d_model, **shared)
        self.positions: Module | None = None
        if positions == "learned":
            self.positions = LearnedPositions(max_len, d_model, **shared)
        elif positions == "sinusoidal":
            self.positions = SinusoidalPositions(max_len, d_model)
        rotary = RotaryPositions(max_len, d_model // num_heads) if positions == "rotary" else None
        self.dropout = Dropout(dropout, rng)
        self.blocks = [
            TransformerBlock(
                d_model, num_heads, d_ff, activation, causal=True, dropout=dropout, num_kv_heads=num_kv_heads,
                gated=gated, norm=norm, rotary=rotary, bias=bias, **shared,
            )
            for _ in range(num_layers)
        ]  # fmt: skip
        for block in self.blocks:
            for layer in (block.self_attn.out_proj, block.feed_forward.linear2):
                layer.weight.data = layer.weight.data / math.sqrt(2 * num_layers)
        self.norm = norm(d_model, dtype=dtype)
        self.head = None if tie_weights else Linear(d_model, vocab_size, bias=False, **shared)

    def forward(self, tokens: Any, caches: Sequence[KVCache] | None = None) -> mg.Tensor:
        """Logits (..., T, vocab_size) for the token after each of (..., T) tokens.

        ``caches``, one per block, hold the tokens before: see :meth:`caches`. They hold as many as before where an
        error or an interrupt comes in between. Raises ValueError for more than ``max_len`` tokens, those in the caches
        included.
        """
        if caches is not None and len(caches) != len(self.blocks):
            raise ValueError(f"Transformer: expected a cache for each of {len(self.blocks)} blocks, got {len(caches)}")
        lengths = [0] if caches is None else [cache.length for cache in caches]
        start = lengths[0]
        if any(length != start for length in lengths):
            raise ValueError(f"Transformer: expected caches that hold the same number of tokens, got {lengths}")
        x = self.embedding(tokens)  # (..., T, d_model)
        if x.ndim < 2:
            raise ValueError("Transformer: expected tokens (..., T), got a single one; give it an axis")
        if start + x.shape[-2] > self.max_len:
            raise ValueError(f"Transformer: max_len is {self.max_len} tokens, got {start + x.shape[-2]}")
        if self.positions is not None:
            x = self.positions(x, start)
        x = self.dropout(x)
        try:
            for i, block in enumerate(self.blocks):
                x = block(x, cache=None if caches is None else caches[i])
            x = self.norm(x)
            logits: mg.Tensor = mg.linear(x, self.embedding.weight.T) if self.head is None else self.head(x)
            return logits
        except BaseException:
            for cache in caches or ():
                cache.length = start
            raise

    def caches(self) -> list[KVCache]:
        """An empty cache for each block."""
        return [KVCache(self.max_len) for _ in self.blocks]

    @mg.no_grad()
    def generate(
        self,
        tokens: Any,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        rng: Rng = None,
    ) -> Any:
        """``tokens`` (..., T) followed by ``max_new_tokens`` sampled ones, as integers on the host.

        Each token is computed from cached keys and values. Once they fill ``max_len`` positions, the cache is made
        anew from the last half of them. Layers are in evaluation mode meanwhile.

        Args:
            tokens: the prompt, at least one token; of a longer one than ``max_len`` the end counts.
            temperature: divides the logits; 0 takes the largest one.
            top_k: sample from the k largest logits only; from all where there are no more than k.
            rng: a ``numpy.random.Generator`` or a seed.

        Raises ValueError for an empty prompt and options out of range, TypeError for tokens and numbers that are no
        integers.
        """
        tokens = tokens.numpy() if isinstance(tokens, mg.Tensor) else np.asarray(tokens)
        if tokens.ndim == 0 or tokens.shape[-1] == 0:
            raise ValueError(f"generate: expected a prompt of at least one token, got shape {tokens.shape}")
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"generate: tokens must be integers, got {tokens.dtype}")
        tokens = tokens.astype(np.int64)
        max_new_tokens = integer("generate", "max_new_tokens", max_new_tokens)
        top_k = None if top_k is None else integer("generate", "top_k", top_k)
        if (
            not number("generate", "temperature", temperature) >= 0
            or max_new_tokens < 0
            or (top_k is not None and top_k < 1)
        ):
            raise ValueError(
                "generate: temperature and max_new_tokens must not be negative and top_k be at least 1, got "
                f"{temperature}, {max_new_tokens} and {top_k}"
            )
        rng = np.random.default_rng(rng)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            caches, fed = self.caches(), tokens[..., -self.max_len :]
            for _ in range(max_new_tokens):
                if caches[0].length + fed.shape[-1] > self.max_len:
                    caches, fed = self.caches(), tokens[..., -max(1, self.max_len // 2) :]
                logits = self(fed, caches).numpy()[..., -1, :]  # (..., vocab_size)
                fed = _sampled(logits.astype(np.float64), temperature, top_k, rng)[..., None]
                tokens = np.concatenate([tokens, fed], axis=-1)
        finally:
            for module, training in modes:
                module.training = training
        return tokens


def _sampled(logits: Any, temperature: float, top_k: int | None, rng: np.random.Generator) -> Any:
    """A token for each row of (..., vocab_size) logits: the largest of logits / temperature + Gumbel noise."""
    if np.isnan(logits).any():
        raise ValueError("generate: the model gives NaN for the next token")
    if temperature == 0:
        return logits.argmax(axis=-1)
    with np.errstate(over="ignore"):  # minus infinity is as good as any large number
        logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        largest = np.argpartition(logits, -top_k, axis=-1)[..., -top_k:]  # of equal ones no more than k either
        kept = np.full_like(logits, -np.inf)
        np.put_along_axis(kept, largest, np.take_along_axis(logits, largest, axis=-1), axis=-1)
        logits = kept
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
