"""Activations, norms, embeddings, positions and dropout against formulas in NumPy."""

import array
import math

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.transformer_formulas import close, float64, gradients, normal, normed, randomized, reference, turned

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


@pytest.mark.parametrize("value", [100.1, 1000.1, 10000.1])
@pytest.mark.parametrize("shape", [(1, 768), (4, 768), (4, 512), (2, 3, 1000)], ids=str)
def test_layer_norm_of_equal_numbers_is_nearly_zero(value, shape):
    out = mg.layer_norm(np.full(shape, value, np.float32))
    assert np.abs(out.data).max() < 1e-4 * value / 100


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


def test_norms_of_sums_take_lists_and_several_axes() -> None:
    x, residual = normal(5, 3, 4), normal(5, 3, 4)
    for norm in (nn.LayerNorm((3, 4)), nn.RMSNorm((3, 4))):
        expected = norm(mg.tensor(x + residual))
        np.testing.assert_allclose(norm(x.tolist(), residual.tolist()).data, expected.data, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r"\(3, 4\)|shape of x"):
            norm(x, residual[:2])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_])
@pytest.mark.parametrize("op", [mg.rms_norm, mg.layer_norm, mg.sigmoid, mg.silu, mg.gelu])
def test_operations_of_integers_are_those_of_their_values(op, dtype):
    x = np.array([[0, 1, 100, 7], [5, 50, 3, 127]]).astype(dtype)
    found, expected = op(x), op(x.astype(np.float64))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-14)


def test_arguments_that_are_numpy_numbers_keep_float32():
    x = np.ones((2, 4), np.float32)
    for out in (
        mg.dropout(x, np.float64(0.5), 0),
        mg.leaky_relu(x, np.float64(0.1)),
        mg.rms_norm(x, eps=np.float64(1e-5)),
        mg.layer_norm(x, eps=np.float64(1e-5)),
    ):
        assert out.dtype == np.float32


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


def test_tokens_may_be_changed_after_the_lookup():
    for tokens in (np.array([1, 2, 2]), mg.tensor([1, 2, 2]), array.array("q", [1, 2, 2])):
        layer = nn.Embedding(4, 2, rng=0)
        out = layer(tokens).sum()
        np.asarray(tokens.data if isinstance(tokens, mg.Tensor) else tokens)[:] = 0
        out.backward()
        assert layer.weight.grad.numpy().tolist() == [[0, 0], [1, 1], [2, 2], [0, 0]]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint64])
def test_tokens_of_small_integer_dtypes(dtype):
    embedding = nn.Embedding(300, 4, rng=0, dtype=np.float64)
    tokens = np.array([1, 100, 1], dtype)
    embedding(tokens).sum().backward()
    expected = np.zeros((300, 4))
    expected[1], expected[100] = 2, 1
    np.testing.assert_array_equal(embedding.weight.grad.data, expected)


@pytest.mark.parametrize("start", [0, 2, 5])
def test_positions_against_their_formulas(start):
    table = [[(math.cos if j % 2 else math.sin)(t / 10000 ** ((j - j % 2) / 6)) for j in range(6)] for t in range(9)]
    learned, *others = nn.LearnedPositions(9, 6, **float64), nn.SinusoidalPositions(9, 6), nn.RotaryPositions(9, 6)
    for layer in (learned, *others):
        x = np.arange(24.0).reshape(4, 6)
        for given in (x, x.tolist()):
            np.testing.assert_array_equal(layer(given).data, layer(mg.tensor(x)).data)
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


def test_positions_of_integers_are_no_integers():
    x = np.arange(8).reshape(2, 4)
    for positions in (nn.RotaryPositions(5, 4), nn.SinusoidalPositions(5, 4)):
        np.testing.assert_array_equal(positions(mg.tensor(x)).data, positions(mg.tensor(x.astype(float))).data)


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
