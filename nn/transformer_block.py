"""The block of transformers, and the feed-forward sublayer in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import microgradnd as mg

from .activations import GELU, SiLU, made
from .attention import KVCache, MultiHeadAttention
from .containers import Sequential
from .dropout import Dropout
from .embedding import RotaryPositions
from .init import lecun_normal
from .linear import Linear
from .module import Module, as_tensor, is_plain
from .normalization import LayerNorm, RMSNorm

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng
    from microgradnd.tensor import Operand


class FeedForward(Module):
    """The position-wise sublayer of a transformer block: linear, activation, linear (Vaswani et al., 2017).

        linear2(dropout(activation(linear1(x))))                      (..., d_model) -> (..., d_model)
        linear2(dropout(activation(gate(x)) * linear1(x)))            gated (Shazeer, 2020; SwiGLU with nn.SiLU)

    Args:
        d_model, d_ff: width outside and inside.
        activation: makes the activation layer.
        dropout: the share of inner elements that training drops.
        gated: whether the activation goes to a second projection, which scales the first.
        bias: whether the linear layers have one.
        init, dtype, rng: as for :class:`Linear`; ``rng`` also draws the dropout.

    Raises ValueError for sizes below 1 and a dropout out of range.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Callable[[], Callable[[Any], Any]] = GELU,
        dropout: float = 0.0,
        gated: bool = False,
        *,
        bias: bool = True,
        init: Callable[..., Any] = lecun_normal,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        rng = np.random.default_rng(rng)
        options: dict[str, Any] = {"bias": bias, "init": init, "dtype": dtype, "rng": rng}
        self.linear1 = Linear(d_model, d_ff, **options)
        self.gate = Linear(d_model, d_ff, **options) if gated else None
        self.activation = made("FeedForward", activation)
        self.dropout = Dropout(dropout, rng)
        self.linear2 = Linear(d_ff, d_model, **options)

    def forward(self, x: mg.Tensor) -> mg.Tensor:
        if self.gate is None:
            inner = Sequential(self.linear1, self.activation)(x)  # in one operation, where there is one for the two
        elif is_plain(self.activation, SiLU):
            inner = mg.swiglu(self.gate(x), self.linear1(x))
        else:
            inner = self.activation(self.gate(x)) * self.linear1(x)
        out: mg.Tensor = self.linear2(self.dropout(inner))
        return out


class TransformerBlock(Module):
    """Attention and feed-forward sublayer, each with a residual connection and a normalisation.

        x = x + self_attn(norm1(x)); x = x + feed_forward(norm2(x))       norm_first (Xiong et al., 2020)
        x = norm1(x + self_attn(x)); x = norm2(x + feed_forward(x))       else (Vaswani et al., 2017)

    Corresponds to PyTorch's TransformerEncoderLayer with ``batch_first=True``, whose defaults are ``norm_first=False``,
    ``activation=nn.ReLU``, ``d_ff=2048`` and ``dropout=0.1``.

    Args:
        d_model, num_heads, num_kv_heads, rotary: as for :class:`MultiHeadAttention`.
        d_ff, activation, gated: as for :class:`FeedForward`; ``d_ff`` is 4 d_model where it is None.
        norm_first: normalise the sublayers' inputs, not the sums.
        causal: each position attends to itself and those before it only.
        dropout: the share that training drops: of attention weights, of inner elements, of what sublayers add.
        norm: makes the normalisation from ``d_model`` and ``dtype``.
        bias, init, dtype, rng: as for :class:`FeedForward`.

    Raises ValueError for sizes that do not fit, and a dropout out of range.
    """

    pytorch_names: ClassVar = {"feed_forward.": ""}  # see nn.pytorch

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int | None = None,
        activation: Callable[[], Callable[[Any], Any]] = GELU,
        norm_first: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        *,
        num_kv_heads: int | None = None,
        gated: bool = False,
        norm: Callable[..., Module] = LayerNorm,
        rotary: RotaryPositions | None = None,
        bias: bool = True,
        init: Callable[..., Any] = lecun_normal,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        rng = np.random.default_rng(rng)
        options: dict[str, Any] = {"dropout": dropout, "bias": bias, "init": init, "dtype": dtype, "rng": rng}
        self.self_attn = MultiHeadAttention(d_model, num_heads, num_kv_heads, rotary=rotary, **options)
        d_ff = 4 * d_model if d_ff is None else d_ff
        self.feed_forward = FeedForward(d_model, d_ff, activation, gated=gated, **options)
        self.norm1 = norm(d_model, dtype=dtype)
        self.norm2 = norm(d_model, dtype=dtype)
        self.dropout = Dropout(dropout, rng)
        self.norm_first = norm_first
        self.causal = causal

    def forward(
        self,
        x: mg.Tensor,
        *,
        key_padding_mask: Operand | None = None,
        attn_mask: Operand | None = None,
        cache: KVCache | None = None,
    ) -> mg.Tensor:
        """(..., T, d_model) -> (..., T, d_model); the masks and the cache are those of :class:`MultiHeadAttention`."""
        attend = functools.partial(
            self.self_attn,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=self.causal,
            cache=cache,
        )
        x = as_tensor(x)
        if self.norm_first:
            x = self.dropout(attend(self.norm1(x)), residual=x)
            x = self.dropout(self.feed_forward(self.norm2(x)), residual=x)
        else:
            x = self._normed(self.norm1, attend(x), x)
            x = self._normed(self.norm2, self.feed_forward(x), x)
        return x

    def _normed(self, norm: Any, x: mg.Tensor, residual: mg.Tensor) -> mg.Tensor:
        """The normalised sum, in one operation where there is one for the two."""
        drops = not is_plain(self.dropout, Dropout) or (self.dropout.p and self.dropout.training)
        if is_plain(norm, LayerNorm, RMSNorm) and not drops:
            return norm(x, residual)  # type: ignore[no-any-return]
        return norm(self.dropout(x, residual=residual))  # type: ignore[no-any-return]
