"""Transformers and their layers say what they expected of arguments that do not fit."""

import math
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.transformer_formulas import TOKENS, D, X, attention, normal, transformer

TRACKED = mg.tensor(normal(2, 3, D), requires_grad=True)
INTEGERS, SEEN = np.tri(3, dtype=int), np.zeros((2, 3), bool)
REFUSED = [
    (ValueError, "approximate must be 'none' or 'tanh', got 'erf'", lambda: nn.GELU("erf")),
    (ValueError, "steep", lambda: nn.LeakyReLU("steep")),
    (ValueError, r"LayerNorm: sizes must be at least 1, got \(\)", lambda: nn.LayerNorm(())),
    (ValueError, r"RMSNorm: sizes must be at least 1, got \(3, -1\)", lambda: nn.RMSNorm((3, -1))),
    (ValueError, r"LayerNorm: .* ends in \(3, 2\), got \(2, 3, 8\)", lambda: nn.LayerNorm((3, 2))(X)),
    (ValueError, r"RMSNorm: .* ends in \(1, 2, 3, 8\), got \(2, 3, 8\)", lambda: nn.RMSNorm((1, 2, 3, 8))(X)),
    (ValueError, "sizes must be at least 1, got 0 and 3", lambda: nn.Embedding(0, 3)),
    (ValueError, "padding_idx must lie in 0 to 4, got -1", lambda: nn.Embedding(5, 3, -1)),
    (TypeError, "tokens must be integers, got float64", lambda: nn.Embedding(5, 3)([1.0, 2.0])),
    (TypeError, "tokens must be integers, got bool", lambda: nn.Embedding(5, 3)([True])),
    (IndexError, "tokens must lie in 0 to 4, got 0 to 5", lambda: nn.Embedding(5, 3)([[0], [5]])),
    (IndexError, "tokens must lie in 0 to 4, got -1 to 3", lambda: nn.Embedding(5, 3)(np.array([3, -1]))),
    (ValueError, "LearnedPositions: there are 4 positions, got 2 to 5", lambda: nn.LearnedPositions(4, D)(X, 2)),
    (ValueError, "RotaryPositions: there are 4 positions, got 2 to 5", lambda: nn.RotaryPositions(4, D)(X, 2)),
    (ValueError, "d_model must be even, got 5", lambda: nn.SinusoidalPositions(4, 5)),
    (ValueError, "head_dim must be even, got 5", lambda: nn.RotaryPositions(4, 5)),
    (ValueError, "p must lie between 0 and 1, got -0.1", lambda: nn.Dropout(-0.1)),
    (ValueError, "p must lie between 0 and 1, got nan", lambda: nn.Dropout(math.nan)),
    (TypeError, "Dropout: rng must be a generator, a seed or None, got True", lambda: nn.Dropout(0.5, True)),
    (TypeError, "dropout: rng must be a generator, a seed or None, got False", lambda: mg.dropout([1.0], 0.5, False)),
    (ValueError, "num_kv_heads, got 8, 3 and 3", lambda: nn.MultiHeadAttention(8, 3)),
    (ValueError, "num_kv_heads, got 8, 4 and 3", lambda: nn.MultiHeadAttention(8, 4, 3)),
    (ValueError, "num_kv_heads, got 8, 4 and 8", lambda: nn.MultiHeadAttention(8, 4, 8)),
    (ValueError, "at least 0 and below 1, got 1", lambda: nn.MultiHeadAttention(8, 4, dropout=1)),
    (TypeError, "boolean or floating-point, got int", lambda: attention()(X, attn_mask=INTEGERS)),
    (TypeError, "boolean or floating", lambda: attention()(X, attn_mask=INTEGERS, key_padding_mask=SEEN)),
    (TypeError, "key_padding_mask must be boolean, got int", lambda: attention()(X, key_padding_mask=INTEGERS[:2])),
    (ValueError, r"must broadcast to \(2, 3\), got shape \(\)", lambda: attention()(X, key_padding_mask=np.True_)),
    (ValueError, r"got the shapes \(2, 3, 8\), \(8,\) and \(8,\)", lambda: attention()(X, np.ones(8))),
    (ValueError, "capacity must be at least 1, got -1", lambda: nn.KVCache(-1)),
    (TypeError, "KVCache: capacity must be an integer, got 'a'", lambda: nn.KVCache("a")),
    (TypeError, "Embedding: padding_idx must be an integer, got 1.5", lambda: nn.Embedding(5, 3, 1.5)),
    (TypeError, "LayerNorm: normalized_shape must be an integer, got 2.5", lambda: nn.LayerNorm(2.5)),
    (TypeError, "Dropout: p must be a number, got 'a'", lambda: nn.Dropout("a")),
    (TypeError, "Linear: dtype must be floating-point, got int64", lambda: nn.Linear(3, 2, dtype=int)),
    (TypeError, "MLP: activation must make a layer", lambda: nn.MLP([3, 2, 1], mg.relu)),
    (TypeError, r"MLP: expected sizes, such as \[64, 128, 10\], got 5", lambda: nn.MLP(5)),
    (RuntimeError, "lose their gradients", lambda: nn.KVCache(5).append(TRACKED, X)),
    (RuntimeError, "lose their gradients", lambda: nn.KVCache(5).append(X, TRACKED)),
    (RuntimeError, "lose their gradients", lambda: transformer()([1], transformer().caches())),
    (ValueError, "max_len is 8 tokens, got 9", lambda: transformer()(np.zeros((1, 9), int))),
    (ValueError, "any of learned, sinusoidal, rotary, got 'none'", lambda: transformer("none")),
    (ValueError, "one layer, head and position, got 0, 2, 8", lambda: nn.Transformer(5, 8, 2, 0, 8)),
    (ValueError, "head and position, got 2, 0, 8", lambda: nn.Transformer(5, 8, 0, 2, 8, positions="rotary")),
    (ValueError, "head_dim must be even, got 1", lambda: nn.Transformer(5, 8, 8, 2, 8, positions="rotary")),
    (ValueError, r"at least one token, got shape \(\)", lambda: transformer().generate(3, 2)),
    (TypeError, r"^generate: max_new_tokens must be an integer, got 2\.0", lambda: transformer().generate([3], 2.0)),
    (TypeError, r"^generate: top_k must be an integer, got 2\.5", lambda: transformer().generate([3], 2, top_k=2.5)),
    (ValueError, r"at least one token, got shape \(2, 0\)", lambda: transformer().generate([[], []], 2)),
    (TypeError, "^generate: max_new_tokens must be an integer, got None", lambda: transformer().generate([3], None)),
    (
        TypeError,
        "^generate: temperature must be a number, got 'x'",
        lambda: transformer().generate([3], 2, temperature="x"),
    ),
    (TypeError, "tokens must be integers, got float64", lambda: transformer().generate([1.0], 0)),
    (TypeError, r"^MultiHeadAttention: d_model must be an integer, got 8\.0", lambda: nn.MultiHeadAttention(8.0, 2)),
    (TypeError, r"^MultiHeadAttention: num_heads must be an integer, got 2\.0", lambda: nn.MultiHeadAttention(8, 2.0)),
    (TypeError, "^MultiHeadAttention: dropout must be a number", lambda: nn.MultiHeadAttention(8, 2, dropout="a")),
    (ValueError, "got -1, 2 and None", lambda: transformer().generate([1], 2, temperature=-1)),
    (ValueError, "got 1.0, -2 and None", lambda: transformer().generate([1], -2)),
    (ValueError, "got 1.0, 2 and 0", lambda: transformer().generate([1], 2, top_k=0)),
]


@pytest.mark.parametrize(("error", "message", "call"), REFUSED)
def test_bad_arguments_are_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_layers_say_what_they_expected():
    x = mg.tensor(np.ones(4))
    for call, message in (
        (lambda: nn.LearnedPositions(3, 4, rng=0)(x), r"LearnedPositions: expected \(\.\.\., T, 4\), got shape \(4,\)"),
        (lambda: nn.LearnedPositions(0, 5), "LearnedPositions: sizes must be at least 1, got 0 and 5"),
        (lambda: nn.SinusoidalPositions(0, 4), "SinusoidalPositions: max_len, d_model and base must be positive"),
        (lambda: nn.RotaryPositions(4, 4, base=0), "RotaryPositions: max_len, head_dim and base must be positive"),
        (lambda: nn.Embedding(5, 2, init=lambda *_: np.zeros((3, 7))), r"Embedding: init gave the shape \(3, 7\)"),
        (lambda: nn.MultiHeadAttention(4, 2, rng=0)(x), "query, key and value need two axes or more"),
        (lambda: transformer()(TOKENS, caches=[]), "Transformer: expected a cache for each of 2 blocks, got 0"),
        (
            lambda: nn.MultiHeadAttention(4, 2, rng=0)(
                mg.tensor(np.ones((1, 3, 4))), key_padding_mask=np.ones((5, 3), bool)
            ),
            r"key_padding_mask must broadcast to \(1, 3\), got shape \(5, 3\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    np.testing.assert_allclose(nn.LayerNorm(4)([[1.0, 2, 3, 4]]).data, nn.LayerNorm(4)(np.arange(1.0, 5)[None]).data)


@pytest.mark.parametrize(
    "positions", [nn.LearnedPositions(6, 4), nn.SinusoidalPositions(6, 4), nn.RotaryPositions(6, 4)]
)
def test_positions_that_are_not_there(positions: nn.Module) -> None:
    for length, start in ((1, -1), (2, -2), (1, 6), (7, 0)):
        with pytest.raises(ValueError, match=f"there are 6 positions, got {start} to {start + length}"):
            positions(mg.tensor(np.zeros((length, 4))), start)
    assert repr(positions).endswith("Positions(6, 4)")


def test_rotary_positions_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"RotaryPositions: expected \(\.\.\., T, 2\), got shape \(3, 4\)"):
        nn.RotaryPositions(6, 2)(mg.tensor(np.zeros((3, 4))))


def test_a_cache_takes_only_what_fits_to_what_it_holds() -> None:
    cache = nn.KVCache(8)
    x = mg.tensor(np.zeros((2, 3, 4)))
    cache.append(x, x)
    for other in (np.zeros((1, 3, 4)), np.zeros((2, 3, 2)), np.zeros((2, 3, 4), np.float32)):
        with pytest.raises(ValueError, match=r"KVCache: .* do not fit to the float64 \(2, 8, 4\) that it holds"):
            cache.append(mg.tensor(other), mg.tensor(other))
    assert cache.length == 3


def test_a_call_that_was_refused_leaves_no_tokens_in_the_cache() -> None:
    layer, cache = nn.MultiHeadAttention(4, 2, rng=0), nn.KVCache(8)
    x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    with mg.no_grad():
        layer(x, cache=cache, is_causal=True)
        for masks in ({"attn_mask": np.zeros((5, 5), bool)}, {"key_padding_mask": np.zeros((2, 4), bool)}):
            with pytest.raises(ValueError, match=r"MultiHeadAttention: .*_mask must broadcast"):
                layer(x, cache=cache, is_causal=True, **masks)
            assert cache.length == 3
        both = layer(np.concatenate([x, x], axis=1), is_causal=True).data
        np.testing.assert_allclose(layer(x, cache=cache, is_causal=True).data, both[:, 3:], rtol=1e-5, atol=1e-6)


def test_as_many_values_as_keys_are_cached() -> None:
    """One would be broadcast over the others."""
    x = mg.tensor(np.zeros((2, 3, 4)))
    cache = nn.KVCache(8)
    for values in (x[:, :1], x[:, :2]):
        with pytest.raises(ValueError, match=r"KVCache: there must be as many keys as values, got .*\(2, 3, 4\)"):
            cache.append(x, values)
    assert cache.length == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_cache_is_empty_after_a_first_call_that_failed(error: type[BaseException], monkeypatch: Any) -> None:
    layer, cache = nn.MultiHeadAttention(4, 2, rng=0), nn.KVCache(8)
    x = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)

    def fail(_: Any) -> Any:
        raise error

    with mg.no_grad():
        monkeypatch.setattr(layer.out_proj, "forward", fail)
        with pytest.raises(error):
            layer(x, cache=cache)
        monkeypatch.undo()
        assert cache.length == 0
        np.testing.assert_allclose(layer(x[:1], cache=cache).data, layer(x[:1]).data, rtol=1e-5)  # of another batch


def test_lists_are_taken() -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    layers = [nn.MultiHeadAttention(4, 2, rng=0)]
    layers += [nn.TransformerBlock(4, 2, norm_first=first, rng=0) for first in (False, True)]  # type: ignore[list-item]
    for layer in layers:
        np.testing.assert_allclose(layer(x.tolist()).data, layer(x).data, rtol=1e-5, atol=1e-6)
