"""Layers of the transformer against formulas in NumPy, differences, and the same model without caches."""

import contextlib
import functools
import math

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.op_table import OPS

VOCAB, D, HEADS, LAYERS = 11, 8, 4, 2
POSITIONS = ["learned", "sinusoidal", "rotary"]
TOKENS = np.random.default_rng(2).integers(0, VOCAB, (2, 6))
float64 = {"dtype": np.float64, "rng": 0}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(ours, expected, tolerance):
    """Within ``tolerance`` of the largest element, which is not zero."""
    scale = np.abs(expected).max(initial=0.0)
    assert np.shape(ours) == np.shape(expected)
    assert scale > 0 or np.size(expected) == 0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def randomized(module, seed=2):
    """With random parameters, so that no bias is zero and no scale is one."""
    rng = np.random.default_rng(seed)
    for name, p in module.named_parameters():
        p.data = rng.normal(p.ndim == 1 and name.endswith("weight"), 0.5, p.shape)
    return module


def transformer(positions="learned", max_len=8, **options):
    return randomized(nn.Transformer(VOCAB, D, HEADS, LAYERS, max_len, positions=positions, **float64, **options))


def attention(num_kv_heads=None, **options):
    return randomized(nn.MultiHeadAttention(D, HEADS, num_kv_heads, **float64, **options))


def gradients(out, *tensors):
    for tensor in tensors:
        tensor.zero_grad()
    (out * normal(*out.shape, seed=3).astype(out.dtype)).sum().backward()
    return [tensor.grad.data for tensor in tensors]


X, TRACKED = mg.tensor(normal(2, 3, D)), mg.tensor(normal(2, 3, D), requires_grad=True)
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
    (ValueError, "num_kv_heads, got 8, 3 and 3", lambda: nn.MultiHeadAttention(8, 3)),
    (ValueError, "num_kv_heads, got 8, 4 and 3", lambda: nn.MultiHeadAttention(8, 4, 3)),
    (ValueError, "num_kv_heads, got 8, 4 and 8", lambda: nn.MultiHeadAttention(8, 4, 8)),
    (ValueError, "at least 0 and below 1, got 1", lambda: nn.MultiHeadAttention(8, 4, dropout=1)),
    (TypeError, "boolean or floating-point, got int", lambda: attention()(X, attn_mask=INTEGERS)),
    (TypeError, "boolean or floating", lambda: attention()(X, attn_mask=INTEGERS, key_padding_mask=SEEN)),
    (TypeError, "key_padding_mask must be boolean, got int", lambda: attention()(X, key_padding_mask=INTEGERS[:2])),
    (RuntimeError, "lose their gradients", lambda: nn.KVCache(5).append(TRACKED, X)),
    (RuntimeError, "lose their gradients", lambda: nn.KVCache(5).append(X, TRACKED)),
    (RuntimeError, "lose their gradients", lambda: transformer()([1], transformer().caches())),
    (ValueError, "max_len is 8 tokens, got 9", lambda: transformer()(np.zeros((1, 9), int))),
    (ValueError, "any of learned, sinusoidal, rotary, got 'none'", lambda: transformer("none")),
    (ValueError, "one layer, head and position, got 0, 2, 8", lambda: nn.Transformer(5, 8, 2, 0, 8)),
    (ValueError, "head and position, got 2, 0, 8", lambda: nn.Transformer(5, 8, 0, 2, 8, positions="rotary")),
    (ValueError, "head_dim must be even, got 1", lambda: nn.Transformer(5, 8, 8, 2, 8, positions="rotary")),
    (ValueError, r"at least one token, got shape \(\)", lambda: transformer().generate(3, 2)),
    (ValueError, r"at least one token, got shape \(2, 0\)", lambda: transformer().generate([[], []], 2)),
    (TypeError, "tokens must be integers, got float64", lambda: transformer().generate([1.0], 0)),
    (ValueError, "got -1, 2 and None", lambda: transformer().generate([1], 2, temperature=-1)),
    (ValueError, "got 1.0, -2 and None", lambda: transformer().generate([1], -2)),
    (ValueError, "got 1.0, 2 and 0", lambda: transformer().generate([1], 2, top_k=0)),
]


@pytest.mark.parametrize(("error", "message", "call"), REFUSED)
def test_bad_arguments_are_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def reference(activation):
    """The formula in the table of operations."""
    name = "leaky_relu" if isinstance(activation, nn.LeakyReLU) else type(activation).__name__.lower()
    return {op.name: op.reference for op in OPS}[name]


ACTIVATIONS = [  # layer, repr, options of the formula, slopes far from zero
    (nn.GELU(), "GELU(approximate='none')", {}, [0, 1]),
    (nn.GELU("tanh"), "GELU(approximate='tanh')", {"approximate": "tanh"}, [0, 1]),
    (nn.SiLU(), "SiLU()", {}, [0, 1]),
    (nn.LeakyReLU(0.25), "LeakyReLU(negative_slope=0.25)", {"negative_slope": 0.25}, [0.25, 1]),
    (nn.LeakyReLU(), "LeakyReLU(negative_slope=0.01)", {"negative_slope": 0.01}, [0.01, 1]),
    (nn.Sigmoid(), "Sigmoid()", {}, [0, 0]),
    (nn.Tanh(), "Tanh()", {}, [0, 0]),
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("layer", "text", "options", "slopes"), ACTIVATIONS)
def test_activations_near_and_far_from_zero(layer, text, options, slopes, dtype):
    x = mg.tensor(np.array([-300, *3 * normal(8), 0, 300], dtype), requires_grad=True)
    out, tolerance = layer(x), 4 * float(np.finfo(dtype).eps)
    expected = reference(layer)(x.data.astype(float), **options)
    assert (out.dtype, repr(layer)) == (dtype, text)
    np.testing.assert_allclose(out.data, expected, rtol=tolerance, atol=tolerance)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.data[[0, -1]], slopes, rtol=tolerance, atol=tolerance)


def normed(layer, x):
    """The formula in NumPy, over as many axes as the layer has."""
    axes = tuple(range(-len(layer.normalized_shape), 0))
    x = x - x.mean(axes, keepdims=True) if isinstance(layer, nn.LayerNorm) else x
    x = x / np.sqrt((x * x).mean(axes, keepdims=True) + (np.finfo(x.dtype).eps if layer.eps is None else layer.eps))
    x = x if layer.weight is None else x * layer.weight.data
    return x if getattr(layer, "bias", None) is None else x + layer.bias.data


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (0, 3, 4)], ids=str)
@pytest.mark.parametrize("normalized", [4, (3, 4), [3, 4]], ids=str)
@pytest.mark.parametrize("options", [{}, {"eps": 0.1}, {"elementwise_affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_and_their_parameters(norm, options, normalized, shape):
    layer = norm(normalized, dtype=np.float64, **({} if norm is nn.RMSNorm and "bias" in options else options))
    names = [] if "elementwise_affine" in options else ["weight", "bias"]
    names = names[:1] if norm is nn.RMSNorm or "bias" in options else names
    initial = {name: np.full((3, 4) if normalized != 4 else 4, name == "weight") for name in names}
    assert {name: x.tolist() for name, x in layer.state_dict().items()} == {k: x.tolist() for k, x in initial.items()}
    close(randomized(layer)(mg.tensor(normal(*shape))).data, normed(layer, normal(*shape)), 1e-14)
    assert (nn.LayerNorm(4).eps, nn.RMSNorm(4).eps) == (1e-5, None)
    assert repr(layer) == f"{norm.__name__}({layer.normalized_shape}, elementwise_affine={bool(names)})"


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize(("dtype", "largest", "tolerance"), [(np.float16, 2e4, 2e-3), (np.float32, 1e17, 1e-6)])
def test_norms_keep_the_dtype_and_survive_huge_values(norm, dtype, largest, tolerance):
    layer = norm(6, eps=1e-5, dtype=dtype)
    for scale in (1.0, largest):
        x = mg.tensor((normal(5, 6).clip(-3, 3) * scale).astype(dtype), requires_grad=True)
        out = layer(x)
        close(out.data, normed(layer, x.data.astype(np.float64)), tolerance)
        found = gradients(out, x, *layer.parameters())
        assert {out.dtype, *(g.dtype for g in found)} == {np.dtype(dtype)}
        assert all(np.isfinite(g).all() for g in found)


@pytest.mark.parametrize("n", [4, 7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.25, -300.0, 6e4])
def test_norms_of_constant_rows(value, dtype, n):
    layer, x = nn.LayerNorm(n, dtype=dtype), mg.tensor(np.full((2, n), value, dtype), requires_grad=True)
    layer.bias.data = np.arange(n)
    np.testing.assert_allclose(layer(x).data, [range(n)] * 2, rtol=0, atol=1e-3)
    assert np.isfinite(gradients(layer(x), x)[0]).all()
    expected = np.full((2, n), np.sign(value))
    np.testing.assert_allclose(nn.RMSNorm(n, 1e-6, dtype=dtype)(x).data, expected, rtol=1e-3)


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("tokens", [[0, 2, 2, 0, 0], [[1, 2], [4, 4]], 3, np.zeros((2, 0), np.uint8)], ids=str)
def test_embedding_and_its_gradient_with_repeated_tokens(tokens, padding_idx):
    layer = nn.Embedding(5, 3, padding_idx, **float64)
    no_vector = [] if padding_idx is None else padding_idx
    drawn, total = normal(5, 3), np.zeros((5, 3))
    drawn[no_vector] = 0
    np.testing.assert_array_equal(layer.weight.data, drawn)
    out = randomized(layer)(tokens)
    np.testing.assert_array_equal(out.data, layer.weight.data[np.asarray(tokens)])
    np.add.at(total, np.asarray(tokens), normal(*out.shape, seed=3))
    total[no_vector] = 0
    np.testing.assert_allclose(gradients(out, layer.weight)[0], total, rtol=1e-14)
    assert repr(layer) == f"Embedding(5, 3{'' if padding_idx is None else ', padding_idx=2'})"


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_embedding_on_a_device_takes_tokens_of_the_host(padding_idx, device):
    layer = nn.Embedding(5, 3, padding_idx, rng=0)
    expected = layer.weight.data[[1, 4]]
    layer.to(device.name)
    for tokens in (device.array(np.array([1, 4])), [1, 4]):
        np.testing.assert_array_equal(layer(tokens).numpy(), expected)


def turned(x, start=0):
    """Rotary positions by complex numbers."""
    half = x.shape[-1] // 2
    angles = np.arange(start, start + x.shape[-2])[:, None] * 10000.0 ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("start", [0, 2, 5])
def test_positions_against_their_formulas(start):
    table = [[(math.cos if j % 2 else math.sin)(t / 10000 ** ((j - j % 2) / 6)) for j in range(6)] for t in range(9)]
    learned, *others = nn.LearnedPositions(9, 6, **float64), nn.SinusoidalPositions(9, 6), nn.RotaryPositions(9, 6)
    x, at, g = normal(2, 4, 6, seed=1), slice(start, start + 4), np.zeros((9, 6))
    found = [layer(mg.tensor(x), start) for layer in (learned, *others)]
    for out, expected in zip(found, (x + normal(9, 6)[at], x + np.array(table)[at], turned(x, start)), strict=True):
        close(out.data, expected, 1e-15)
    g[at] = normal(2, 4, 6, seed=3).sum(axis=0)
    close(gradients(found[0], learned.weight)[0], g, 1e-15)
    for layer in (nn.LearnedPositions(9, 6), *others):
        assert layer(mg.tensor(x.astype(np.float32))).dtype == np.float32
        assert len(layer.parameters()) == isinstance(layer, nn.LearnedPositions)


def test_products_of_rotated_queries_and_keys_depend_on_the_distance_alone():
    rotary, every = nn.RotaryPositions(40, 6), range(0, 40, 3)
    q, k = (mg.tensor(normal(1, 6, seed=seed)) for seed in (0, 1))
    products = np.array([[float((rotary(q, i) * rotary(k, j)).sum()) for j in every] for i in every])
    for distance in range(-10, 11):
        np.testing.assert_allclose(np.ptp(np.diagonal(products, distance)), 0, atol=1e-13)
    assert len(np.unique(np.append(products[0], products[:, 0]).round(6))) == 27  # another one for each distance


def test_dropout():
    x, layer = mg.tensor(np.ones((50, 40)), requires_grad=True), nn.Dropout(0.25, rng=3)
    first, second = layer(x), layer(x)
    assert set(np.unique(first.data)) == {0, 1 / 0.75}
    assert (first.data == 0).mean() == pytest.approx(0.25, abs=0.05)
    np.testing.assert_array_equal(gradients(first, x)[0], first.data * normal(50, 40, seed=3))
    np.testing.assert_array_equal(nn.Dropout(0.25, rng=3)(x).data, first.data)
    assert all((other.data != first.data).any() for other in (second, nn.Dropout(0.25, rng=4)(x)))
    assert layer.eval()(x) is nn.Dropout(0)(x) is x
    assert not (layer.train()(x).data == 1).any()
    np.testing.assert_array_equal(nn.Dropout(1)(x).data, np.zeros((50, 40)))
    assert repr(nn.Dropout(0.1)) == "Dropout(p=0.1)"


def affine(layer, x):
    return x @ layer.weight.data + layer.bias.data


def attended(layer, x, causal=False):
    """Self-attention in NumPy, and its weights: keys and values are repeated for the queries that share them."""
    d, h, kv = layer.head_dim, layer.num_heads, layer.num_kv_heads
    parts = np.split(affine(layer.in_proj, x), [h * d, (h + kv) * d], axis=-1)
    q, k, v = (np.swapaxes(part.reshape(*part.shape[:-1], -1, d), -2, -3) for part in parts)
    q, k = (q, k) if layer.rotary is None else (turned(q), turned(k))
    k, v = (np.repeat(part, h // kv, axis=-3) for part in (k, v))
    e = np.exp(q @ np.swapaxes(k, -1, -2) / math.sqrt(d)) * (np.tri(x.shape[-2]) if causal else 1)
    weights = e / e.sum(axis=-1, keepdims=True)
    return affine(layer.out_proj, np.swapaxes(weights @ v, -2, -3).reshape(x.shape)), weights


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


def fed_forward(layer, x):
    inner = affine(layer.linear1, x)
    active = reference(layer.activation)(inner if layer.gate is None else affine(layer.gate, x))
    return affine(layer.linear2, active if layer.gate is None else active * inner)


VARIANTS = [{"positions": positions, "num_kv_heads": kv} for positions in POSITIONS for kv in (None, 2, 1)]
VARIANTS += [{"gated": True, "activation": nn.SiLU, "norm": nn.RMSNorm, "tie_weights": False}]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(map(str, options.values())))
def test_logits_against_numpy_and_with_caches(options):
    model = transformer(**options)
    x = model.embedding.weight.data[TOKENS]
    x = x if model.positions is None else model.positions(mg.tensor(x)).data
    for block in model.blocks:
        x = x + attended(block.self_attn, normed(block.norm1, x), causal=True)[0]
        x = x + fed_forward(block.feed_forward, normed(block.norm2, x))
    head = model.embedding.weight.data.T if model.head is None else model.head.weight.data
    logits = model(TOKENS).data
    close(logits, normed(model.norm, x) @ head, 1e-12)
    for pieces in ([1, 3, 2], [4, 1, 1], [6]):
        caches, stops = model.caches(), np.cumsum(pieces)
        with mg.no_grad():
            found = [model(TOKENS[:, stop - n : stop], caches).data for n, stop in zip(pieces, stops, strict=True)]
            with pytest.raises(ValueError, match="max_len is 8 tokens, got 9"):
                model(TOKENS[:, :3], caches)
        np.testing.assert_allclose(np.concatenate(found, axis=1), logits, rtol=1e-10, atol=1e-12)
        assert [cache.length for cache in caches] == [6] * LAYERS


def test_padding_and_masks_with_a_cache():
    block = randomized(nn.TransformerBlock(D, HEADS, 5, causal=True, num_kv_heads=2, **float64))
    x, padding, mask = mg.tensor(normal(2, 6, D)), np.arange(6) < [[0], [2]], normal(HEADS, 6, 6)
    full, cache = block(x, key_padding_mask=padding, attn_mask=mask).data, nn.KVCache(6)
    with mg.no_grad():
        for start, stop in ((0, 1), (1, 4), (4, 6)):
            options = {"key_padding_mask": padding[:, :stop], "attn_mask": mask[:, start:stop, :stop]}
            close(block(x[:, start:stop], cache=cache, **options).data, full[:, start:stop], 1e-13)


def test_tied_embedding_gets_the_gradient_of_both_uses():
    tied, untied = transformer(), transformer(tie_weights=False)
    assert [*tied.state_dict(), "head.weight"] == list(untied.state_dict())
    untied.load_state_dict(tied.state_dict() | {"head.weight": tied.embedding.weight.data.T})
    close(untied(TOKENS).data, tied(TOKENS).data, 1e-14)
    embedding, head = gradients(untied(TOKENS), untied.embedding.weight, untied.head.weight)
    close(gradients(tied(TOKENS), tied.embedding.weight)[0], embedding + head.T, 1e-13)


def test_same_seed_same_bits_and_initial_deviations():
    a, b, other = (nn.Transformer(40, 48, 4, 8, 32, gated=True, dropout=0.1, rng=seed) for seed in (5, 5, 6))
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert p.dtype == np.float32
        assert p.data.tobytes() == q.data.tobytes()
        if p.ndim == 1:
            np.testing.assert_array_equal(p.data, "norm" in name and name.endswith("weight"))
        else:
            residual = name.endswith(("out_proj.weight", "linear2.weight"))
            assert p.data.std() == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.08), name  # 4 = sqrt(2 * 8)
            assert abs(p.data.mean()) < 0.1 * p.data.std(), name
    assert (a.embedding.weight.data != other.embedding.weight.data).all()
    first = a(range(32)).data
    assert first.tobytes() == b(range(32)).data.tobytes() != a(range(32)).data.tobytes()  # dropout draws on


def test_state_dict_there_and_back():
    a, b = transformer(), randomized(transformer(), seed=8)
    assert len(a.state_dict()) == 2 + LAYERS * 12 + 2
    assert (a(TOKENS).data != b(TOKENS).data).all()
    b.load_state_dict(a.state_dict())
    np.testing.assert_array_equal(a(TOKENS).data, b(TOKENS).data)
    with pytest.raises(ValueError, match=r"missing head\.weight; unexpected positions\.weight"):
        transformer("rotary", tie_weights=False).load_state_dict(a.state_dict())


def continued(model, tokens, n):
    """Greedy continuation without a cache: the window starts anew with its last half when it is full."""
    tokens = np.asarray(tokens)
    window = tokens[..., -model.max_len :]
    for _ in range(n):
        if window.shape[-1] > model.max_len:
            window = tokens[..., -max(1, model.max_len // 2) :]
        new = model(window).data[..., -1, :].argmax(axis=-1)[..., None]
        tokens, window = (np.concatenate([part, new], axis=-1) for part in (tokens, window))
    return tokens


@pytest.mark.parametrize(("positions", "max_len"), [("learned", 8), ("sinusoidal", 7), ("rotary", 8), ("rotary", 1)])
def test_greedy_generation_equals_the_model_without_caches(positions, max_len):
    model, seen = transformer(positions, max_len, num_kv_heads=2, dropout=0.5), set()
    for prompt in ([4], TOKENS[0, :3], np.tile(TOKENS, 2), [[[1, 2]], [[3, 4]]]):
        expected = continued(transformer(positions, max_len, num_kv_heads=2), prompt, 30)
        for options in ({"temperature": 0}, {"top_k": 1, "rng": 3}, {"temperature": 1e-320, "rng": 3}):
            found = model.generate(prompt, 30, **options)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(model.generate(mg.tensor(prompt), 0, **options), prompt)
        seen |= {*found[..., -24:].flat}
    assert len(seen) > (3 if max_len > 1 else 0)  # not one token over and over


def test_each_further_token_costs_the_same_number_of_rows(monkeypatch):
    model, rows = transformer(max_len=64), []
    for name in ("linear", "linear_gelu"):
        op = getattr(mg, name)
        monkeypatch.setattr(mg, name, lambda x, *rest, op=op: rows.append(x.size // x.shape[-1]) or op(x, *rest))
    for n in (1, 2, 33):
        rows.clear()
        model.generate([1, 2, 3, 4], n, temperature=0)
        calls = len(rows) // n
        assert calls == LAYERS * 4 + 1  # queries, keys and values; their output; two of the feed-forward; the head
        assert rows == [4] * calls + [1] * calls * (n - 1)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.5, VOCAB + 1), (0.7, 4)])
def test_sampled_tokens_have_the_probabilities_of_the_model(temperature, top_k):
    model, n = transformer(), 5000
    for parameter in model.norm.parameters():
        parameter.data = parameter.data / 3
    logits = model([1, 2, 3]).data[-1] / temperature
    p = np.exp(logits) * (logits >= np.sort(logits)[-min(VOCAB, top_k or VOCAB)])
    p /= p.sum()
    assert np.sort(p)[-4] > 0.02
    prompts, options = np.tile([1, 2, 3], (n, 1)), {"temperature": temperature, "top_k": top_k}
    first, again, other = (model.generate(prompts, 1, rng=seed, **options) for seed in (0, 0, 1))
    frequency = np.bincount(first[:, 3], minlength=VOCAB) / n
    assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()
    np.testing.assert_array_equal(again, first)
    assert (other != first).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_generated_tokens_are_integers_for_prompts_of_every_integer_dtype(dtype):
    found = transformer().generate(np.array([1, 2], dtype), 12, temperature=0)
    assert found.dtype.kind in "iu"
    np.testing.assert_array_equal(found, continued(transformer(), [1, 2], 12))


def test_generate_evaluates_and_restores_the_mode():
    model, seen = transformer(dropout=0.5), []
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    model.norm.forward = lambda x: seen.append({module.training for module in model.modules()}) or x
    for prompt, outcome in (([1, 2], contextlib.nullcontext()), ([1, VOCAB], pytest.raises(IndexError, match="to 10"))):
        with outcome:
            model.generate(prompt, 1)
        assert [module.training for module in model.modules()] == modes
    assert seen == [{False}]
    assert set(modes) == {True, False}


def training_step(model, array, where="cpu"):
    """Gradients and generated tokens, once it is clear that a small step does what the gradients say."""
    model.to(where)
    losses, rng, rate = [], model.dropout.rng.bit_generator, 1e-7
    state = rng.state
    for _ in range(2):
        rng.state = state  # the same elements are dropped
        losses.append(nn.cross_entropy(model(array(TOKENS[:, :-1])), array(TOKENS[:, 1:])))
        if len(losses) == 1:
            losses[0].backward()
            nn.SGD(model.parameters(), lr=rate).step()
    found = [p.grad.numpy() for p in model.parameters()]
    assert float(losses[0] - losses[1]) / rate == pytest.approx(sum((g * g).sum() for g in found), rel=1e-4)
    return found, model.generate(mg.tensor(array(TOKENS[:, :2])), 8, temperature=0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_training_step_on_each_device(positions, device):
    make = functools.partial(transformer, positions, num_kv_heads=2)
    training_step(transformer(positions, num_kv_heads=2, dropout=0.1), device.array, device.name)
    ours, tokens = training_step(make(), device.array, device.name)
    expected, their_tokens = training_step(make(), np.asarray)
    for name, gradient, other in zip(make().state_dict(), ours, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=0, atol=1e-12 * max(1, np.abs(other).max()), err_msg=name)
    np.testing.assert_array_equal(tokens, their_tokens)


def test_a_cache_takes_only_what_fits_to_what_it_holds() -> None:
    cache = nn.KVCache(8)
    x = mg.tensor(np.zeros((2, 3, 4)))
    cache.append(x, x)
    for other in (np.zeros((1, 3, 4)), np.zeros((2, 3, 2)), np.zeros((2, 3, 4), np.float32)):
        with pytest.raises(ValueError, match=r"KVCache: .* do not fit to the float64 \(2, 8, 4\) that it holds"):
            cache.append(mg.tensor(other), mg.tensor(other))
    assert cache.length == 3


def test_of_equal_logits_top_k_takes_k() -> None:
    model = nn.Transformer(9, 4, 1, 1, 64, rng=0)
    for parameter in model.parameters():
        parameter.data = np.zeros(parameter.shape)
    tokens = model.generate([0], 60, top_k=3, rng=0)[1:]
    assert len(set(tokens.tolist())) == 3
    assert len(set(model.generate([0], 60, top_k=1, rng=0)[1:].tolist())) == 1


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


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint64])
def test_tokens_of_small_integer_dtypes(dtype):
    embedding = nn.Embedding(300, 4, rng=0, dtype=np.float64)
    tokens = np.array([1, 100, 1], dtype)
    embedding(tokens).sum().backward()
    expected = np.zeros((300, 4))
    expected[1], expected[100] = 2, 1
    np.testing.assert_array_equal(embedding.weight.grad.data, expected)


@pytest.mark.parametrize("value", [100.1, 1000.1, 10000.1])
@pytest.mark.parametrize("shape", [(1, 768), (4, 768), (4, 512), (2, 3, 1000)], ids=str)
def test_layer_norm_of_equal_numbers_is_nearly_zero(value, shape):
    out = mg.layer_norm(np.full(shape, value, np.float32))
    assert np.abs(out.data).max() < 1e-4 * value / 100


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_])
@pytest.mark.parametrize("op", [mg.rms_norm, mg.layer_norm, mg.sigmoid, mg.silu, mg.gelu])
def test_operations_of_integers_are_those_of_their_values(op, dtype):
    x = np.array([[0, 1, 100, 7], [5, 50, 3, 127]]).astype(dtype)
    found, expected = op(x), op(x.astype(np.float64))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-14)


def test_positions_of_integers_are_no_integers():
    x = np.arange(8).reshape(2, 4)
    for positions in (nn.RotaryPositions(5, 4), nn.SinusoidalPositions(5, 4)):
        np.testing.assert_array_equal(positions(mg.tensor(x)).data, positions(mg.tensor(x.astype(float))).data)


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


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
def test_norms_in_half_precision_have_one_gradient_in_both_modes(norm):
    values = (np.arange(8.0) * 100).astype(np.float16)[None]
    weights = np.linspace(-1, 1, 8).astype(np.float16) ** 3
    gradients = []
    for create_graph in (False, True):
        x = mg.tensor(values, requires_grad=True)
        (norm(x) * weights).sum().backward(create_graph=create_graph)
        gradients.append(x.grad.data)
        x.zero_grad()
    assert np.abs(gradients[0]).max() > 0
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=0.02, atol=1e-5)


def test_arguments_that_are_numpy_numbers_keep_float32():
    x = np.ones((2, 4), np.float32)
    for out in (
        mg.dropout(x, np.float64(0.5), 0),
        mg.leaky_relu(x, np.float64(0.1)),
        mg.rms_norm(x, eps=np.float64(1e-5)),
        mg.layer_norm(x, eps=np.float64(1e-5)),
    ):
        assert out.dtype == np.float32


def test_layers_say_what_they_expected():
    x = mg.tensor(np.ones(4))
    for call, message in (
        (lambda: nn.LearnedPositions(3, 4, rng=0)(x), r"LearnedPositions: expected \(\.\.\., T, 4\), got shape \(4,\)"),
        (lambda: nn.LearnedPositions(0, 5), "LearnedPositions: sizes must be at least 1, got 0 and 5"),
        (lambda: nn.RotaryPositions(4, 4, base=0), "positions: max_len, width and base must be positive"),
        (lambda: nn.Embedding(5, 2, init=lambda *_: np.zeros((3, 7))), r"Embedding: init gave the shape \(3, 7\)"),
        (lambda: nn.MultiHeadAttention(4, 2, rng=0)(x), r"MultiHeadAttention: expected queries \(\.\.\., L, d_model\)"),
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


def test_norms_of_sums_take_lists_and_several_axes() -> None:
    x, residual = normal(5, 3, 4), normal(5, 3, 4)
    for norm in (nn.LayerNorm((3, 4)), nn.RMSNorm((3, 4))):
        expected = norm(mg.tensor(x + residual))
        np.testing.assert_allclose(norm(x.tolist(), residual.tolist()).data, expected.data, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r"\(3, 4\)|shape of x"):
            norm(x, residual[:2])
