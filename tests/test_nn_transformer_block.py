"""Attention with masks and caches, and blocks of it, against formulas in NumPy and differences."""

import functools

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.transformer_formulas import (
    HEADS,
    TOKENS,
    D,
    X,
    attended,
    attention,
    close,
    float64,
    gradients,
    normal,
    normed,
    randomized,
    transformer,
)


@pytest.mark.parametrize("shape", [(5, D), (2, 5, D), (2, 3, 5, D)], ids=str)
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("rotary", [None, nn.RotaryPositions(5, 2)], ids=["plain", "rotary"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_and_its_weights(causal, rotary, num_kv_heads, shape):
    layer, x = attention(num_kv_heads, rotary=rotary), normal(*shape)
    out, weights = layer(mg.tensor(x), is_causal=causal, need_weights=True)
    for ours, expected in zip((out, weights), attended(layer, x, causal), strict=True):
        close(ours.data, expected, 1e-13)
    np.testing.assert_allclose(weights.data.sum(axis=-1), np.ones((*shape[:-2], HEADS, 5)), rtol=1e-13)
    if causal:
        masked = layer(mg.tensor(x), attn_mask=~np.tri(5, dtype=bool), need_weights=True)  # True hides here
        close(masked[0].data, out.data, 1e-13)
        close(masked[1].data, weights.data, 1e-13)
    x[..., 3:, :] += 1
    unchanged = layer(mg.tensor(x), is_causal=causal).data[..., :3, :] == out.data[..., :3, :]
    assert unchanged.all() if causal else not unchanged.any()


@pytest.mark.parametrize("num_kv_heads", [None, 2])
@pytest.mark.parametrize("mask", [None, normal(HEADS, 3, 5) > 0.8, normal(3, 5)], ids=["plain", "booleans", "numbers"])
def test_padded_keys_are_as_if_cut_off(mask, num_kv_heads):
    layer, x, keys = attention(num_kv_heads), mg.tensor(normal(2, 3, D)), mg.tensor(normal(2, 5, D, seed=1))
    padding = np.arange(5) >= np.array([[4], [2]])
    out = layer(x, keys, key_padding_mask=padding, attn_mask=mask)
    for i, n in enumerate((4, 2)):
        cut = layer(x[i], keys[i, :n], attn_mask=None if mask is None else mask[..., :n])
        close(out.data[i], cut.data, 1e-13)
        close(layer(x[i], keys[i], key_padding_mask=padding[i], attn_mask=mask).data, cut.data, 1e-13)


@pytest.mark.parametrize("padding", [None, np.arange(3) >= np.array([[3], [2]])], ids=["plain", "padding"])
def test_a_mask_of_numbers_gets_its_gradient(padding):
    layer = attention(2)
    mg.check_grads(lambda mask: layer(X, attn_mask=mask, key_padding_mask=padding), normal(3, 3), order=1)


@pytest.mark.parametrize("shape", [(0, 3, D), (2, 0, D)], ids=str)
def test_attention_of_nothing_is_nothing(shape):
    assert attention()(mg.tensor(np.zeros(shape))).shape == attention(2)(mg.tensor(np.zeros(shape))).shape == shape


def test_attention_in_half_precision_survives_many_keys_and_large_scores():
    q, k, v = np.zeros((1, 4, 8)), np.zeros((1, 2048, 8)), np.full((1, 2048, 8), 40.0)
    large = np.full((1, 3, 64), 100.0)
    for arrays in ((q, k, v), (large, large, large[..., :2])):
        half = [mg.tensor(x.astype(np.float16), requires_grad=True) for x in arrays]
        out = mg.scaled_dot_product_attention(*half)
        assert out.dtype == np.float16
        np.testing.assert_allclose(out.data, mg.scaled_dot_product_attention(*arrays).data, rtol=2e-3)
        out.sum().backward()
        assert all(np.isfinite(x.grad.data).all() and x.grad.dtype == np.float16 for x in half)


def test_cache_keeps_what_is_appended():
    cache, keys, values = nn.KVCache(5), mg.tensor(normal(2, 3, 5, 4)), mg.tensor(normal(2, 3, 5, 1, seed=1))
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        found = cache.append(keys[..., start:stop, :], values[..., start:stop, :])
        assert cache.length == stop
        np.testing.assert_array_equal(found[0].data, keys.data[..., :stop, :])
        np.testing.assert_array_equal(found[1].data, values.data[..., :stop, :])
    with pytest.raises(ValueError, match="room for 5 tokens, got 6"):
        cache.append(keys[..., :1, :], values[..., :1, :])


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_block_and_feed_forward_against_central_differences(norm_first, gated):
    options = {"num_kv_heads": 1, "gated": gated, "rotary": nn.RotaryPositions(3, 2)} | float64
    block = randomized(nn.TransformerBlock(4, 2, 3, norm_first=norm_first, causal=True, **options))
    feed_forward = [f"feed_forward.{name}" for name in ("linear1", "gate", "linear2") if gated or name != "gate"]
    layers = ["self_attn.in_proj", "self_attn.out_proj", *feed_forward, "norm1", "norm2"]
    parameters = dict(block.named_parameters())
    assert list(parameters) == [f"{name}.{part}" for name in layers for part in ("weight", "bias")]
    count = (4 + 1) * 8 + (4 + 1) * 4 + (4 + 1) * 3 * (1 + gated) + (3 + 1) * 4 + 2 * 2 * 4
    assert sum(p.size for p in parameters.values()) == count

    def as_function(x, *values):
        for name, value in zip(parameters, values, strict=True):
            *path, last = name.split(".")
            setattr(functools.reduce(getattr, path, block), last, value)
        return block(x)

    mg.check_grads(as_function, normal(3, 4), *parameters.values(), order=2)


def test_dropout_acts_on_sublayers_inner_elements_embeddings_and_attention_weights():
    for norm_first in (True, False):
        block = randomized(nn.TransformerBlock(D, HEADS, norm_first=norm_first, **float64))
        block.dropout.p = block.feed_forward.dropout.p = 1.0
        unchanged = X.data if norm_first else normed(block.norm2, normed(block.norm1, X.data))
        close(block(X).data, unchanged, 1e-13)
        np.testing.assert_array_equal(block.feed_forward(X).data, block.feed_forward.linear2.bias.data + 0 * X.data)
    model, dropping = transformer("rotary"), attention(dropout=0.5)
    model.dropout.p = 1.0
    np.testing.assert_array_equal(model(TOKENS).data, model(0 * TOKENS).data)
    assert (dropping(X).data != dropping(X).data).any()
    np.testing.assert_array_equal(dropping.eval()(X).data, attention()(X).data)


@pytest.mark.parametrize("norm_first", [True, False])
def test_checkpointed_block_has_the_same_gradients(norm_first):
    found = []
    for wrapped in (lambda block: block, mg.checkpoint):
        block = nn.TransformerBlock(D, HEADS, 5, norm_first=norm_first, dropout=0.3, **float64)
        x = mg.tensor(normal(2, 3, D), requires_grad=True)
        out = wrapped(randomized(block))(x, attn_mask=np.triu(np.ones((3, 3), bool), 1))
        found.append([out.data, *gradients(out, x, *block.parameters())])
    for name, plain, repeated in zip(["out", "x", *block.state_dict()], *found, strict=True):
        np.testing.assert_allclose(repeated, plain, rtol=1e-13, atol=1e-15, err_msg=name)
        assert plain.any()


def test_padding_and_masks_with_a_cache():
    block = randomized(nn.TransformerBlock(D, HEADS, 5, causal=True, num_kv_heads=2, **float64))
    x, padding, mask = mg.tensor(normal(2, 6, D)), np.arange(6) < [[0], [2]], normal(HEADS, 6, 6)
    full, cache = block(x, key_padding_mask=padding, attn_mask=mask).data, nn.KVCache(6)
    with mg.no_grad():
        for start, stop in ((0, 1), (1, 4), (4, 6)):
            options = {"key_padding_mask": padding[:, :stop], "attn_mask": mask[:, start:stop, :stop]}
            close(block(x[:, start:stop], cache=cache, **options).data, full[:, start:stop], 1e-13)


def test_layers_of_a_block_that_were_changed_are_used_as_they_are() -> None:
    """Also by a block that normalises sums, for which there is one operation."""
    x = normal(2, 3, 8)

    def outputs(block):
        return [block(mg.tensor(x)).data for _ in range(2)]

    block = nn.TransformerBlock(8, 2, norm_first=False, dropout=0.5, rng=0).eval()
    first, second = outputs(block)
    np.testing.assert_array_equal(first, second)
    block.dropout.train()  # as for Monte Carlo estimates
    assert not np.array_equal(*outputs(block))
    block.dropout.eval()
    block.norm2.forward = lambda y: y * 0
    assert not outputs(block)[0].any()
    block.norm2.forward = lambda y: y
    block.dropout.forward = lambda y, residual: residual * 0
    assert not outputs(block)[0].any()
