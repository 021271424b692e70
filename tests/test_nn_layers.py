import functools

import numpy as np
import pytest

import microgradnd as mg
import nn

SHAPES = [(7, 4), (2, 3, 4), (4,), (0, 4), (2, 0, 4), (1, 4)]


def numeric_gradient(f, x, h=1e-6):
    """Central differences of a scalar function of an array."""
    g = np.empty_like(x)
    for i in np.ndindex(x.shape):
        steps = []
        for sign in (1, -1):
            moved = x.copy()
            moved[i] += sign * h
            steps.append(float(f(moved)))
        g[i] = (steps[0] - steps[1]) / (2 * h)
    return g


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients(shape, bias):
    rng = np.random.default_rng(0)
    layer = nn.Linear(4, 3, bias, dtype=np.float64, rng=rng)
    if bias:
        layer.bias.data = rng.standard_normal(3)
    W, b = layer.weight.data, layer.bias.data if bias else 0
    x = mg.tensor(rng.standard_normal(shape), requires_grad=True)
    g = rng.standard_normal((*shape[:-1], 3))
    out = layer(x)
    assert out.shape == g.shape
    np.testing.assert_allclose(out.data, x.data @ W + b, rtol=1e-13, atol=1e-14)
    out.backward(g)
    rows, g_rows = x.data.reshape(-1, 4), g.reshape(-1, 3)
    np.testing.assert_allclose(x.grad.data, g @ W.T, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(layer.weight.grad.data, rows.T @ g_rows, rtol=1e-13, atol=1e-14)
    if bias:
        np.testing.assert_allclose(layer.bias.grad.data, g_rows.sum(axis=0), rtol=1e-13, atol=1e-14)


def test_linear_parameters_and_dtype():
    layer = nn.Linear(5, 2)
    assert [(name, p.shape, p.dtype) for name, p in layer.named_parameters()] == [
        ("weight", (5, 2), np.float32),
        ("bias", (2,), np.float32),
    ]
    assert not layer.bias.data.any()
    assert layer(np.ones((3, 5), np.float32)).dtype == np.float32
    double = nn.Linear(5, 2, bias=False, dtype="float64")
    assert double.bias is None
    assert [p.dtype for p in double.parameters()] == [np.float64]


def test_linear_takes_an_initialiser():
    layer = nn.Linear(3, 2, init=nn.init.he_uniform, dtype=np.float64, rng=4)
    np.testing.assert_array_equal(layer.weight.data, nn.init.he_uniform((3, 2), 4, np.float64))
    layer = nn.Linear(3, 2, init=lambda shape, rng, dtype: np.full(shape, 0.5), rng=4)
    assert layer.weight.dtype == np.float32
    np.testing.assert_array_equal(layer.weight.data, np.full((3, 2), 0.5))


def test_same_seed_same_bits():
    a, b, other = (nn.MLP([6, 5, 4], rng=seed) for seed in (3, 3, 4))
    assert [p.data.tobytes() for p in a.parameters()] == [p.data.tobytes() for p in b.parameters()]
    assert not np.array_equal(a[0].weight.data, other[0].weight.data)
    double = nn.MLP([6, 5, 4], rng=3, dtype=np.float64)
    for single, p in zip(a.parameters(), double.parameters(), strict=True):
        np.testing.assert_array_equal(single.data, p.data.astype(np.float32))
    rng = np.random.default_rng(3)
    first, second = nn.Linear(6, 5, rng=rng), nn.Linear(5, 4, rng=rng)  # as the MLP draws, in turn
    np.testing.assert_array_equal(first.weight.data, a[0].weight.data)
    np.testing.assert_array_equal(second.weight.data, a[2].weight.data)
    assert not np.array_equal(nn.Linear(6, 5).weight.data, nn.Linear(6, 5).weight.data)  # a new seed each time


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "sizes must be at least 1, got 0 and 3"),
        ((3, -1), ValueError, "sizes must be at least 1, got 3 and -1"),
        ((3.0, 3), TypeError, "Linear: in_features must be an integer, got 3.0"),
        (("3", 3), TypeError, "Linear: in_features must be an integer, got '3'"),
    ],
)
def test_linear_refuses_bad_sizes(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.Linear(*arguments)


@pytest.mark.parametrize("dtype", [int, bool, complex])
def test_linear_refuses_dtypes_that_are_not_floating_point(dtype):
    with pytest.raises(TypeError, match="floating-point"):
        nn.Linear(2, 2, dtype=dtype)


@pytest.mark.parametrize("operation", [mg.linear, mg.linear_relu, mg.linear_gelu])
def test_linear_refuses_a_number(operation):
    with pytest.raises(ValueError, match=f"{operation.operation.name}: x must have at least one axis"):
        operation(mg.tensor(1.0), mg.tensor(np.ones((1, 2))))


def test_linear_refuses_other_features():
    with pytest.raises(ValueError, match=r"linear: .*\b5\b.*\b4\b"):
        nn.Linear(4, 3)(np.ones((2, 5)))


def test_relu_has_slope_zero_at_zero():
    x = mg.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    y = nn.ReLU()(x)
    np.testing.assert_array_equal(y.data, [0, 0, 3])
    y.backward(np.array([5.0, 5.0, 5.0]))
    np.testing.assert_array_equal(x.grad.data, [0, 0, 5])


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(axis):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 4, 5))
    e = np.exp(x)
    p = e / e.sum(axis=axis, keepdims=True)
    t = mg.tensor(x, requires_grad=True)
    out = nn.Softmax(axis)(t)
    np.testing.assert_allclose(out.data, p, rtol=1e-14)
    g = rng.standard_normal(x.shape)
    out.backward(g)
    np.testing.assert_allclose(t.grad.data, p * (g - (g * p).sum(axis=axis, keepdims=True)), rtol=1e-12, atol=1e-15)


def test_softmax_survives_huge_logits():
    np.testing.assert_array_equal(nn.Softmax()(mg.tensor([1e4, 0.0, -1e4])).data, [1, 0, 0])


def test_sequential_applies_its_layers_in_turn():
    model = nn.Sequential(nn.Linear(2, 3, rng=0), mg.tanh, nn.Linear(3, 1, rng=1))
    x = np.ones((4, 2), np.float32)
    expected = np.tanh(x @ model[0].weight.data) @ model[2].weight.data
    np.testing.assert_allclose(model(x).data, expected, rtol=1e-6)
    assert len(model) == 3
    assert list(model) == [model[0], mg.tanh, model[-1]]
    assert [name for name, _ in model.named_parameters()] == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.2.weight",
        "layers.2.bias",
    ]
    assert nn.Sequential()(5) == 5


@pytest.mark.parametrize("layer", [3, None, nn.ReLU, "relu"])
def test_sequential_refuses_what_is_no_layer(layer):
    with pytest.raises(TypeError, match="Sequential: layer 1 must be a module or function"):
        nn.Sequential(nn.ReLU(), layer)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, functools.partial(nn.GELU, "tanh")])
def test_sequential_computes_linear_and_activation_in_one_operation(activation):
    rng = np.random.default_rng(0)
    layers = [nn.Linear(3, 4, rng=rng, dtype=np.float64), activation(), nn.Linear(4, 2, bias=False, rng=rng)]
    layers.append(activation())
    x = mg.tensor(rng.standard_normal((5, 3)), requires_grad=True)
    fused = nn.Sequential(*layers)(x)
    name = "linear_relu" if activation is nn.ReLU else "linear_gelu"
    assert fused._node.op.name == name
    assert fused._node.edges[0].op.name == name
    one_by_one = x
    for layer in layers:
        one_by_one = layer(one_by_one)
    np.testing.assert_array_equal(fused.data, one_by_one.data)
    found = []
    for out in (fused, one_by_one):
        for tensor in (x, *(p for layer in layers for p in layer.parameters())):
            tensor.zero_grad()
        (out * out).sum().backward()
        found.append([x.grad.data, *(p.grad.data for layer in layers for p in layer.parameters())])
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_sequential_calls_layers_that_are_not_quite_linear_and_relu():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2.0

    class Leaking(nn.ReLU):
        def forward(self, x):
            return x

    x = -np.ones((1, 1))
    weight = {"init": lambda shape, rng, dtype: np.ones(shape)}
    assert nn.Sequential(Doubled(1, 1, **weight), nn.ReLU())(-x).item() == 2
    assert nn.Sequential(nn.Linear(1, 1, **weight), Leaking())(x).item() == -1
    for position in (0, 1):
        model = nn.Sequential(nn.Linear(1, 1, **weight), nn.ReLU())
        model[position].forward = lambda x: mg.tensor(-7.0)
        assert model(x).item() == (0 if position == 0 else -7)


def test_mlp_structure():
    model = nn.MLP([4, 8, 6, 3])
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [p.shape for p in model.parameters()] == [(4, 8), (8,), (8, 6), (6,), (6, 3), (3,)]
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    assert model(np.ones((2, 5, 4), np.float32)).shape == (2, 5, 3)
    assert len(nn.MLP([4, 3])) == 1
    assert nn.MLP(np.array([4, 8, 3]))[0].out_features == 8


def test_mlp_takes_activations_and_initialisers():
    made = []

    def activation():
        made.append(lambda x: mg.tanh(x) + len(made))
        return made[-1]

    model = nn.MLP([2, 3, 3, 1], activation, init=nn.init.glorot_normal, dtype=np.float64, rng=0)
    assert model[1] is made[0]
    assert model[3] is made[1]  # every hidden layer has its own
    np.testing.assert_array_equal(model[0].weight.data, nn.init.glorot_normal((2, 3), 0, np.float64))


@pytest.mark.parametrize("sizes", [[], [3]])
def test_mlp_refuses_fewer_than_two_sizes(sizes):
    with pytest.raises(ValueError, match=r"MLP: expected at least an input and an output size, got \["):
        nn.MLP(sizes)


@pytest.mark.parametrize("activation", [nn.ReLU(), "relu", None])
@pytest.mark.parametrize("make", [lambda x: nn.MLP([2, 3, 1], x), lambda x: nn.FeedForward(2, 3, x)])
def test_activations_are_made(make, activation):
    with pytest.raises(TypeError, match=r"activation must make a layer, as the class nn.ReLU does; got"):
        make(activation)


def test_mlp_gradients_against_central_differences():
    rng = np.random.default_rng(2)
    model = nn.MLP([3, 5, 4], nn.Softmax, dtype=np.float64, rng=rng)  # smooth everywhere, unlike the rectifier
    x, labels = rng.standard_normal((6, 3)), rng.integers(0, 4, 6)
    nn.cross_entropy(model(x), labels).backward()
    for p in model.parameters():
        start = p.data.copy()

        def loss(values, p=p):
            p.data = values
            with mg.no_grad():
                return nn.cross_entropy(model(x), labels)

        expected = numeric_gradient(loss, start)
        p.data = start
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(p.grad.data, expected, rtol=1e-6, atol=1e-9)
