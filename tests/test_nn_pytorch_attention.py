"""Attention and blocks of a transformer against PyTorch's, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.against_pytorch import (
    BLOCKS,
    B,
    E,
    F,
    H,
    T,
    close,
    compare,
    f64,
    in_pytorch,
    plain,
    randomized,
    torch,
)

S = 7
PADDING = np.array([[False, False, True, False, True], [False, True, False, False, False]])
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "attn_mask": ~np.tri(T, dtype=bool)},
    "padding": {"key_padding_mask": PADDING},
    "mask": {"attn_mask": np.random.default_rng(0).random((T, T)) < 0.3},
    "numbers": {"attn_mask": np.random.default_rng(0).standard_normal((T, T))},
    "padding and mask": {"key_padding_mask": PADDING, "attn_mask": ~np.tri(T, dtype=bool)},
    "mask per head": {"attn_mask": np.random.default_rng(0).random((B, H, T, T)) < 0.3},
}


def our_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in options.items() if not (options.get("is_causal") and name == "attn_mask")}


def their_options(options: dict[str, Any]) -> dict[str, Any]:
    def converted(x: Any) -> Any:
        return torch.from_numpy(x.reshape(-1, *x.shape[-2:]) if x.ndim == 4 else x) if isinstance(x, np.ndarray) else x

    return {name: converted(x) for name, x in options.items()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ATTENTION)
def test_self_attention(name: str, bias: bool, tmp_path: Path) -> None:
    options = ATTENTION[name]
    ours = randomized(nn.MultiHeadAttention(E, H, bias=bias, **f64))
    theirs = in_pytorch(ours, torch.nn.MultiheadAttention(E, H, bias=bias, batch_first=True), tmp_path)
    x = np.random.default_rng(0).standard_normal((B, T, E))
    compare(
        ours,
        theirs,
        lambda module, x: module(x, **our_options(options)),
        lambda module, x: module(x, x, x, need_weights=False, **their_options(options))[0],
        x,
    )
    out, weights = ours(mg.tensor(x), need_weights=True, **our_options(options))
    their_out, their_weights = theirs(
        *[torch.from_numpy(x)] * 3, average_attn_weights=False, **{**their_options(options), "is_causal": False}
    )
    close(out.numpy(), their_out)
    close(weights.numpy(), their_weights)


@pytest.mark.parametrize("value", [False, True], ids=["values are the keys", "values of their own"])
def test_attention_to_another_sequence(value: bool, tmp_path: Path) -> None:
    ours = randomized(nn.MultiHeadAttention(E, H, **f64))
    theirs = in_pytorch(ours, torch.nn.MultiheadAttention(E, H, batch_first=True), tmp_path)
    rng = np.random.default_rng(0)
    padding = rng.random((B, S)) < 0.3
    xs = [rng.standard_normal((B, n, E)) for n in (T, S, S)][: 3 if value else 2]
    compare(
        ours,
        theirs,
        lambda module, *xs: module(*xs, key_padding_mask=padding),
        lambda module, q, k, v=None: module(q, k, k if v is None else v, torch.from_numpy(padding), False)[0],
        *xs,
    )


def test_attention_without_a_batch(tmp_path: Path) -> None:
    ours = randomized(nn.MultiHeadAttention(E, H, **f64))
    theirs = in_pytorch(ours, torch.nn.MultiheadAttention(E, H), tmp_path)
    x = np.random.default_rng(0).standard_normal((T, E))
    compare(ours, theirs, plain, lambda module, x: module(x, x, x)[0], x)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_heads(num_kv_heads: int, causal: bool) -> None:
    """Against PyTorch's function with the heads of keys and values repeated."""
    E, H = 8, 4
    ours = randomized(nn.MultiHeadAttention(E, H, num_kv_heads, **f64))
    x = mg.tensor(np.random.default_rng(0).standard_normal((B, T, E)), requires_grad=True)
    w_in, b_in, w_out, b_out = (
        torch.tensor(p.data, requires_grad=True)
        for p in (ours.in_proj.weight, ours.in_proj.bias, ours.out_proj.weight, ours.out_proj.bias)
    )
    their_x = torch.tensor(x.data, requires_grad=True)
    q, k, v = torch.split(their_x @ w_in + b_in, [E, 2 * num_kv_heads, 2 * num_kv_heads], -1)
    q, k, v = (y.unflatten(-1, (-1, 2)).transpose(1, 2) for y in (q, k, v))
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    their_out = heads.transpose(1, 2).flatten(-2) @ w_out + b_out
    out = ours(x, is_causal=causal)
    close(out.numpy(), their_out)
    _, weights = ours(x, is_causal=causal, need_weights=True)
    assert weights.shape == (B, H, T, T)
    np.testing.assert_allclose(weights.numpy().sum(-1), 1, rtol=1e-12)
    (out * out).sum().backward()
    (their_out * their_out).sum().backward()
    close(x.grad.data, their_x.grad)  # type: ignore[union-attr]
    for parameter, theirs in zip(ours.parameters(), (w_in, b_in, w_out, b_out), strict=True):
        close(parameter.grad.data, theirs.grad)  # type: ignore[union-attr]


@pytest.mark.parametrize("mask", ["plain", "causal", "padding"])
@pytest.mark.parametrize(("norm_first", "activation"), BLOCKS)
def test_block_is_an_encoder_layer(norm_first: bool, activation: str, mask: str, tmp_path: Path) -> None:
    make = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]
    ours = randomized(nn.TransformerBlock(E, H, 20, make, norm_first, mask == "causal", **f64))
    theirs = in_pytorch(
        ours,
        torch.nn.TransformerEncoderLayer(
            E, H, 20, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
        ),
        tmp_path,
    )
    options = {"key_padding_mask": PADDING} if mask == "padding" else {}
    their = {"src_key_padding_mask": torch.from_numpy(PADDING)} if mask == "padding" else {}
    if mask == "causal":
        their = {"src_mask": torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)}
    compare(
        ours,
        theirs,
        lambda module, x: module(x, **options),
        lambda module, x: module(x, **their),
        np.random.default_rng(0).standard_normal((B, T, E)),
    )
