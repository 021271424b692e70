"""The engine retraces the hand-written gradients of demos/mlp_numpy.py, step by step."""

import numpy as np
import pytest

import microgradnd as mg
import nn
from demos import mlp_engine, mlp_numpy

NAMES = ["W1", "b1", "W2", "b2"]
# n, d, h, k, batch size (None: all rows), learning rate; the last batch of an epoch is short in some
CASES = [
    (1, 1, 1, 2, None, 0.3),
    (40, 5, 1, 3, None, 0.3),
    (60, 8, 16, 10, None, 0.3),
    (60, 8, 16, 10, 16, 0.3),
    (33, 3, 7, 2, 8, 0.1),
    (20, 64, 32, 4, 1, 0.01),
    (50, 6, 40, 5, 64, 0.3),
]


def data(n, d, k, seed, dtype=np.float64):
    rng = np.random.default_rng([seed, 99])
    X = rng.standard_normal((n, d)).astype(dtype)
    labels = rng.integers(0, k, n)
    return X, labels, mlp_numpy.one_hot(labels, k, dtype)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry: single weights may pass through zero."""
    expected = np.asarray(expected)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def train_nn(model, X, targets, lr, epochs, batch_size, rng):
    """Like mlp_numpy.train: the loss at each step, before its update."""
    optimizer = nn.SGD(model.parameters(), lr)
    losses = []
    for _ in range(epochs):
        for X_batch, y_batch in nn.batches(X, targets, batch_size or len(X), shuffle=batch_size is not None, rng=rng):
            loss = nn.cross_entropy(model(X_batch), y_batch)
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("n", "d", "h", "k", "batch_size", "lr"), CASES)
def test_trajectory_of_plain_tensors(n, d, h, k, batch_size, lr, seed):
    X, _, y = data(n, d, k, seed)
    rng, rng_reference = (np.random.default_rng(seed) for _ in range(2))
    params = mlp_engine.init_params(rng, (d, h, k))
    reference = mlp_numpy.init_params(rng_reference, (d, h, k))
    for name in NAMES:
        np.testing.assert_array_equal(params[name].data, reference[name])
    for _ in range(4):  # the weights are compared after every five epochs
        losses = mlp_engine.train(params, X, y, lr, 5, batch_size, rng)
        expected = mlp_numpy.train(reference, X, y, lr, 5, batch_size, rng_reference)
        assert len(losses) == 5 * -(-n // (batch_size or n))
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
        for name in NAMES:
            assert_close(params[name].data, reference[name], 1e-12)
    assert np.abs(reference["b2"]).max() > 1e-3  # it started at zero: the weights have moved


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(("n", "d", "h", "k", "batch_size", "lr"), CASES)
def test_trajectory_of_layers(n, d, h, k, batch_size, lr, one_hot, seed):
    X, labels, y = data(n, d, k, seed)
    rng, rng_reference = (np.random.default_rng(seed) for _ in range(2))
    model = nn.MLP([d, h, k], dtype=np.float64, rng=rng)
    reference = mlp_numpy.init_params(rng_reference, (d, h, k))
    params = dict(zip(NAMES, model.parameters(), strict=True))
    for name in NAMES:  # one divides by sqrt(fan_in), the other multiplies by sqrt(1 / fan_in)
        np.testing.assert_array_equal(params[name].data, reference[name])
    for _ in range(4):
        losses = train_nn(model, X, y if one_hot else labels, lr, 5, batch_size, rng)
        expected = mlp_numpy.train(reference, X, y, lr, 5, batch_size, rng_reference)
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
        for name in NAMES:
            assert_close(params[name].data, reference[name], 1e-12)


def test_the_seed_of_an_mlp_is_that_of_its_generator():
    model = nn.MLP([6, 5, 3], dtype=np.float64, rng=7)
    reference = mlp_numpy.init_params(np.random.default_rng(7), (6, 5, 3))
    for parameter, name in zip(model.parameters(), NAMES, strict=True):
        np.testing.assert_array_equal(parameter.data, reference[name])


def test_class_indices_and_one_hot_rows_agree():
    X, labels, y = data(50, 6, 4, seed=3)
    models = [nn.MLP([6, 12, 4], dtype=np.float64, rng=3) for _ in range(2)]
    losses = [
        train_nn(model, X, targets, 0.2, 20, 8, np.random.default_rng(3))
        for model, targets in zip(models, (labels, y), strict=True)
    ]
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-13)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_close(a.data, b.data, 1e-13)


@pytest.mark.parametrize(("n", "d", "h", "k", "batch_size", "lr"), CASES)
def test_float32_follows_float32_and_float64(n, d, h, k, batch_size, lr):
    X, labels, y = data(n, d, k, 4, np.float32)
    sizes = (d, h, k)
    params = mlp_engine.init_params(np.random.default_rng(4), sizes, np.float32)
    model = nn.MLP(sizes, rng=4)
    references = [mlp_numpy.init_params(np.random.default_rng(4), sizes, dtype) for dtype in (np.float32, np.float64)]
    losses = mlp_engine.train(params, X, y, lr, 10, batch_size, np.random.default_rng(5))
    losses_nn = train_nn(model, X, labels, lr, 10, batch_size, np.random.default_rng(5))
    for reference in references:
        expected = mlp_numpy.train(reference, X, y, lr, 10, batch_size, np.random.default_rng(5))
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
        np.testing.assert_allclose(losses_nn, expected, rtol=1e-4)
        for parameter, name in zip(model.parameters(), NAMES, strict=True):
            for tensor in (params[name], parameter):
                assert tensor.dtype == np.float32
                assert_close(tensor.data.astype(np.float64), reference[name].astype(np.float64), 1e-4)


def test_gradients_of_one_step_are_the_formulas():
    X, _, y = data(12, 5, 3, seed=6)
    params = mlp_engine.init_params(np.random.default_rng(6), (5, 7, 3))
    arrays = {name: tensor.data for name, tensor in params.items()}
    mlp_engine.cross_entropy(mlp_engine.forward(params, X), y).backward()
    expected = mlp_numpy.backward(arrays, mlp_numpy.forward(arrays, X), y)
    for name in NAMES:
        assert np.abs(expected[name]).max() > 1e-3
        assert_close(params[name].grad.data, expected[name], 1e-14)


def test_step_updates_in_place_and_forgets_the_gradient():
    p = mg.tensor([1.0, 2.0], requires_grad=True)
    (p * p).sum().backward()
    memory = p.data
    mlp_engine.sgd_step({"p": p}, np.float32(0.25))
    assert p.data is memory
    assert p.grad is None
    np.testing.assert_array_equal(memory, [0.5, 1.0])


def test_accuracy_agrees_and_records_nothing():
    X, _, y = data(30, 5, 3, seed=8)
    params = mlp_engine.init_params(np.random.default_rng(8), (5, 7, 3))
    arrays = {name: tensor.data for name, tensor in params.items()}
    expected = mlp_numpy.accuracy(arrays, X, y)
    assert 0 < expected < 1
    assert mlp_engine.accuracy(params, X, y) == expected


def test_main_prints_what_the_numpy_demo_prints(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr(mlp_engine, "EPOCHS", 3)
    mlp_engine.main([])
    lines = capsys.readouterr().out.splitlines()
    mlp_numpy.main(["--epochs", "3", "--out", str(tmp_path / "mlp.png")])
    assert len(lines) == 3
    assert lines == capsys.readouterr().out.splitlines()[:3]
