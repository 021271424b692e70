import math
import re

import numpy as np
import pytest

from demos import mlp_numpy
from demos.mlp_numpy import accuracy, backward, cross_entropy, forward, init_params, one_hot, softmax, train

NAMES = ["W1", "b1", "W2", "b2"]
SHAPES = [(1, 1, 1, 2), (1, 4, 6, 3), (5, 1, 3, 2), (7, 3, 1, 4), (6, 4, 5, 1), (20, 8, 16, 10)]  # n, d, h, k


def problem(n, d, h, k, seed=0, dtype=np.float64):
    """Random parameters (biases too), inputs and one-hot rows."""
    rng = np.random.default_rng(seed)
    params = init_params(rng, (d, h, k), dtype)
    for name in ("b1", "b2"):
        params[name] += rng.standard_normal(params[name].shape).astype(dtype)
    X = rng.standard_normal((n, d)).astype(dtype)
    return params, X, one_hot(rng.integers(0, k, n), k, dtype)


def loss(params, X, y):
    return cross_entropy(forward(params, X)["z2"], y)


def gradient(params, X, y, derivative):
    """derivative(f, x) of the loss for each entry of each parameter, x at its place."""
    grads = {}
    for name in NAMES:
        grads[name] = np.empty_like(params[name])
        for i in np.ndindex(params[name].shape):

            def f(value, name=name, i=i):
                moved = params[name].astype(np.result_type(params[name], type(value)))
                moved[i] = value
                return loss({**params, name: moved}, X, y)

            grads[name][i] = derivative(f, params[name][i].item())
    return grads


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_against_central_differences(shape):
    params, X, y = problem(*shape)
    expected = gradient(params, X, y, lambda f, x: (f(x + 1e-6) - f(x - 1e-6)) / 2e-6)
    grads = backward(params, forward(params, X), y)
    assert list(grads) == NAMES
    for name in NAMES:
        np.testing.assert_allclose(grads[name], expected[name], rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_against_complex_step(shape):
    params, X, y = problem(*shape, seed=1)
    expected = gradient(params, X, y, lambda f, x: f(complex(x, 1e-30)).imag / 1e-30)
    grads = backward(params, forward(params, X), y)
    scale = max(np.abs(grad).max() for grad in expected.values())
    assert (scale > 1e-3) == (shape[-1] > 1)  # with a single class p is always 1 and nothing is learned
    for name in NAMES:
        assert grads[name].shape == params[name].shape
        np.testing.assert_allclose(grads[name], expected[name], rtol=0, atol=1e-12 * scale, err_msg=name)


def test_forward_and_backward_by_hand():
    params = {"W1": [[1.0]], "b1": [0.0], "W2": [[math.log(3) / 2, 0.0]], "b2": [0.0, 0.0]}
    params = {name: np.array(value) for name, value in params.items()}
    y = np.array([[0.0, 1.0]])
    cache = forward(params, np.array([[2.0]]))  # z1 = a1 = 2, z2 = (log 3, 0), p = (3/4, 1/4)
    np.testing.assert_allclose(cache["p"], [[0.75, 0.25]], rtol=1e-15)
    assert cross_entropy(cache["z2"], y) == pytest.approx(math.log(4), rel=1e-15)
    grads = backward(params, cache, y)
    slope = 0.75 * math.log(3) / 2  # delta = (3/4, -3/4), times W2
    np.testing.assert_allclose(grads["W2"], [[1.5, -1.5]], rtol=1e-15)
    np.testing.assert_allclose(grads["b2"], [0.75, -0.75], rtol=1e-15)
    np.testing.assert_allclose(grads["W1"], [[2 * slope]], rtol=1e-15)
    np.testing.assert_allclose(grads["b1"], [slope], rtol=1e-15)


def test_relu_has_slope_zero_at_the_kink():
    params, X, y = problem(3, 2, 4, 3)
    params["b1"][:] = 0
    grads = backward(params, forward(params, 0 * X), y)  # z1 is exactly 0 everywhere
    assert not grads["b1"].any()
    assert not grads["W1"].any()
    assert grads["b2"].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_against_the_naive_formula(shape):
    params, X, y = problem(*shape, seed=2)
    total = 0.0
    for x, target in zip(X, y.argmax(axis=1), strict=True):
        z1 = [sum(x * params["W1"][:, j]) + params["b1"][j] for j in range(len(params["b1"]))]
        a1 = np.array([max(z, 0.0) for z in z1])
        z2 = [sum(a1 * params["W2"][:, c]) + params["b2"][c] for c in range(len(params["b2"]))]
        total -= math.log(math.exp(z2[target]) / sum(math.exp(z) for z in z2))
    assert loss(params, X, y) == pytest.approx(total / len(X), rel=1e-13, abs=1e-15)


def test_softmax_and_loss_survive_huge_logits():
    z = np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]])
    np.testing.assert_allclose(softmax(z), [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-15)
    np.testing.assert_allclose(mlp_numpy.log_softmax(z), [[0, -1e4, -2e4], [-math.log(3)] * 3], rtol=1e-15)
    # The target has probability exactly zero, yet the loss is finite: the logits still know it.
    assert softmax(z)[0, 2] == 0
    assert cross_entropy(z, one_hot(np.array([2, 0]), 3)) == pytest.approx((2e4 + math.log(3)) / 2, rel=1e-15)


def test_softmax_rows_sum_to_one_and_ignore_a_shift():
    z = np.random.default_rng(0).standard_normal((6, 5))
    np.testing.assert_allclose(softmax(z).sum(axis=1), np.ones(6), rtol=1e-15)
    np.testing.assert_allclose(softmax(z + 100), softmax(z), rtol=1e-12)
    np.testing.assert_allclose(np.exp(mlp_numpy.log_softmax(z)), softmax(z), rtol=1e-14)


def test_init_has_variance_one_over_fan_in():
    params = init_params(np.random.default_rng(0), (400, 300, 10))
    assert {name: params[name].shape for name in NAMES} == dict(
        zip(NAMES, [(400, 300), (300,), (300, 10), (10,)], strict=True)
    )
    assert params["W1"].std() == pytest.approx(1 / 20, rel=0.02)
    assert params["W2"].std() == pytest.approx(1 / math.sqrt(300), rel=0.05)
    assert not params["b1"].any()
    assert not params["b2"].any()


def test_sgd_step_is_in_place():
    params, grads = {"W1": np.array([1.0, 2.0])}, {"W1": np.array([10.0, -4.0])}
    kept = params["W1"]
    mlp_numpy.sgd_step(params, grads, 0.25)
    assert params["W1"] is kept
    np.testing.assert_array_equal(kept, [-1.5, 3.0])


def test_train_full_batch_is_gradient_descent():
    params, X, y = problem(12, 4, 6, 3)
    expected = {name: value.copy() for name, value in params.items()}
    expected_losses = []
    for _ in range(5):
        expected_losses.append(loss(expected, X, y))
        grads = backward(expected, forward(expected, X), y)
        expected = {name: expected[name] - 0.5 * grads[name] for name in NAMES}
    assert train(params, X, y, lr=0.5, epochs=5) == expected_losses
    assert expected_losses[-1] < expected_losses[0]
    for name in NAMES:
        np.testing.assert_array_equal(params[name], expected[name])


def test_train_mini_batches_are_slices_of_one_permutation_per_epoch():
    params, X, y = problem(10, 4, 6, 3)
    expected = {name: value.copy() for name, value in params.items()}
    expected_losses, rng = [], np.random.default_rng(9)
    for _ in range(2):
        order = rng.permutation(10)
        for rows in (order[0:4], order[4:8], order[8:10]):  # the short last batch is kept
            expected_losses.append(loss(expected, X[rows], y[rows]))
            mlp_numpy.sgd_step(expected, backward(expected, forward(expected, X[rows]), y[rows]), 0.1)
    assert train(params, X, y, 0.1, 2, batch_size=4, rng=np.random.default_rng(9)) == expected_losses
    for name in NAMES:
        np.testing.assert_array_equal(params[name], expected[name])


def test_same_seed_same_bits():
    results = []
    for seed in (4, 4, 5):
        params, X, y = problem(30, 5, 8, 3)
        losses = train(params, X, y, 0.1, 3, batch_size=7, rng=np.random.default_rng(seed))
        results.append((losses, [params[name].tobytes() for name in NAMES]))
    assert results[0] == results[1] != results[2]
    a, b = (init_params(np.random.default_rng(6), (3, 4, 2)) for _ in range(2))
    assert all(a[name].tobytes() == b[name].tobytes() for name in NAMES)


def test_float32_stays_float32():
    params, X, y = problem(9, 4, 6, 3, dtype=np.float32)
    double = init_params(np.random.default_rng(0), (4, 6, 3))
    np.testing.assert_array_equal(params["W1"], double["W1"].astype(np.float32))  # the same network
    cache = forward(params, X)
    grads = backward(params, cache, y.astype(np.float64))  # one-hot rows of another dtype do not promote
    assert {array.dtype for array in (*cache.values(), *grads.values())} == {np.dtype(np.float32)}
    assert cross_entropy(cache["z2"], y.astype(np.float64)).dtype == np.float32
    # Neither float64 rows nor a float64 learning rate change the arithmetic: the same result, bit by bit.
    again = {name: value.copy() for name, value in params.items()}
    losses = train(params, X, y, 0.1, 20)
    assert train(again, X.astype(np.float64), y, np.float64(0.1), 20) == losses
    assert losses[-1] < losses[0]
    for name in NAMES:
        assert params[name].dtype == again[name].dtype == np.float32
        np.testing.assert_array_equal(again[name], params[name])


def test_wrong_shapes_and_settings_are_refused():
    params, X, y = problem(6, 4, 5, 3)
    cache = forward(params, X)
    with pytest.raises(ValueError, match=r"X has shape \(6, 3\), but W1 of shape \(4, 5\)"):
        forward(params, X[:, :3])
    with pytest.raises(ValueError, match=r"X has shape \(4,\), but W1 of shape \(4, 5\)"):
        forward(params, X[0])
    with pytest.raises(ValueError, match=r"X has shape \(0, 4\)"):
        forward(params, X[:0])
    for bad in (y[:5], y[:, :2], y.argmax(axis=1)):
        message = re.escape(f"y has shape {bad.shape}") + r".* output of the network has shape \(6, 3\)"
        with pytest.raises(ValueError, match=message):
            cross_entropy(cache["z2"], bad)
        with pytest.raises(ValueError, match=message):
            backward(params, cache, bad)
    for bad in (0 * y, y + np.eye(3)[0], 0.5 * y):
        with pytest.raises(ValueError, match="one-hot"):
            cross_entropy(cache["z2"], bad)
    with pytest.raises(ValueError, match=r"\(6, 4\).*\(5, 3\)"):
        train(params, X, y[:5], 0.1, 1)
    with pytest.raises(ValueError, match=r"\(0, 4\).*\(0, 3\)"):
        train(params, X[:0], y[:0], 0.1, 1)
    with pytest.raises(ValueError, match="lr must be positive"):
        train(params, X, y, math.nan, 1)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        train(params, X, y, 0.1, 0)
    for batch_size, rng in ((0, np.random.default_rng(0)), (2, None)):
        with pytest.raises(ValueError, match="mini-batches need"):
            train(params, X, y, 0.1, 1, batch_size, rng)
    for sizes in ((4, 3), (4, 0, 3), (4, 5, 5, 3)):
        with pytest.raises(ValueError, match="three positive numbers"):
            init_params(np.random.default_rng(0), sizes)


def test_digits():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    X, y, X_test, y_test = mlp_numpy.load_digits(rng)
    assert (X.shape, y.shape, X_test.shape, y_test.shape) == ((1438, 64), (1438, 10), (359, 64), (359, 10))
    np.testing.assert_allclose(X.mean(axis=0), np.zeros(64), atol=1e-13)
    assert set(np.round(X.std(axis=0), 12)) == {0.0, 1.0}  # 0: a pixel that is always blank
    params = init_params(rng, (64, 32, 10))
    losses = train(params, X, y, 0.1, 15, batch_size=32, rng=rng)
    assert len(losses) == 15 * 45
    assert np.mean(losses[-45:]) < 0.1 < np.mean(losses[:45])
    assert accuracy(params, X_test, y_test) > 0.95


def test_main_repeats_itself_and_writes_the_picture(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    results = []
    for _ in range(2):
        mlp_numpy.main(["--epochs", "2", "--hidden", "8", "--seed", "3", "--out", str(tmp_path / "mlp.png")])
        results.append((capsys.readouterr().out, (tmp_path / "mlp.png").read_bytes()))
    assert results[0] == results[1]
    assert results[0][0].count("test accuracy") == 2
    assert results[0][1].startswith(b"\x89PNG")
    mlp_numpy.main(["--epochs", "1", "--batch-size", "0", "--out", str(tmp_path / "full.pdf")])
    assert (tmp_path / "full.pdf").read_bytes().startswith(b"%PDF")


def test_main_says_so_when_the_loss_diverges(tmp_path):
    pytest.importorskip("sklearn")
    with pytest.raises(SystemExit, match="no longer finite in epoch 1"):
        mlp_numpy.main(["--lr", "1e200", "--out", str(tmp_path / "mlp.png")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["--batch-size", "-1"], "--batch-size must not be negative, got -1"),
        (["--lr", "0"], "--lr must be positive and finite, got 0.0"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--out", "picture.gif"], "--out must end in .png, .pdf or .svg, got 'picture.gif'"),
        (["--out", "missing/picture.png"], "--out 'missing/picture.png' cannot be written"),
    ],
)
def test_main_refuses_before_training(argv, message, tmp_path, monkeypatch, capsys):
    def no_data(*args):
        raise AssertionError("loaded the data")

    monkeypatch.setattr(mlp_numpy, "load_digits", no_data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        mlp_numpy.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
