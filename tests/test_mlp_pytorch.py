"""The same networks in PyTorch: losses, gradients and weights agree at every step."""

import numpy as np
import pytest

import microgradnd as mg
import nn

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

STEPS = 50
OPTIMIZERS = [
    {"lr": 0.1},
    {"lr": 0.05, "momentum": 0.9},
    {"lr": 0.1, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1},
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(sizes, seed, dtype=np.float64):
    """The same MLP twice. torch.nn.Linear keeps its weight as (out, in)."""
    ours = nn.MLP(sizes, dtype=dtype, rng=seed)
    layers = []
    for layer in ours:
        if isinstance(layer, nn.Linear):
            theirs = torch.nn.Linear(layer.in_features, layer.out_features)
            theirs.weight = torch.nn.Parameter(torch.tensor(layer.weight.data.T.copy()))
            theirs.bias = torch.nn.Parameter(torch.tensor(layer.bias.data))
            layers.append(theirs)
        else:
            layers.append(torch.nn.ReLU())
    return ours, torch.nn.Sequential(*layers)


def problem(n, d, k, seed, probabilities, dtype=np.float64):
    """Inputs (n, d), and targets: class indices (n,) or probabilities (n, k)."""
    rng = np.random.default_rng([seed, 7])
    X = rng.standard_normal((n, d)).astype(dtype)
    if probabilities:
        return X, rng.dirichlet(np.ones(k), n).astype(dtype)
    return X, rng.integers(0, k, n)


def values(model):
    """Weights and gradients of a PyTorch model in our layout."""
    for p in model.parameters():
        yield (p.detach().numpy().T, p.grad.numpy().T)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry: single weights may pass through zero."""
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_same_training(sizes, n, probabilities, options, tolerance, dtype=np.float64, batch_size=None):
    ours, theirs = pair(sizes, seed=0, dtype=dtype)
    X, targets = problem(n, sizes[0], sizes[-1], 0, probabilities, dtype)
    optimizer = nn.SGD(ours.parameters(), **options)
    their_optimizer = torch.optim.SGD(theirs.parameters(), **options)
    rng = np.random.default_rng(0)
    losses = []
    while len(losses) < STEPS:
        for X_batch, y_batch in nn.batches(X, targets, batch_size or n, rng=rng):
            loss = nn.cross_entropy(ours(X_batch), y_batch)
            their_loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(X_batch)), torch.tensor(y_batch))
            np.testing.assert_allclose(loss.item(), their_loss.item(), rtol=tolerance)
            optimizer.zero_grad()
            their_optimizer.zero_grad()
            loss.backward()
            their_loss.backward()
            optimizer.step()
            their_optimizer.step()
            for p, (weight, gradient) in zip(ours.parameters(), values(theirs), strict=True):
                assert_close(p.grad.data, gradient, 10 * tolerance)  # of a difference softmax - target
                assert_close(p.data, weight, tolerance)
            losses.append(loss.item())
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize(("sizes", "n"), [((5, 8, 3), 20), ((16, 32, 12, 10), 64), ((4, 2), 7), ((1, 1, 2), 1)])
def test_training_step_by_step(sizes, n, options, probabilities):
    assert_same_training(sizes, n, probabilities, options, 1e-12)


@pytest.mark.parametrize("options", OPTIMIZERS, ids=lambda options: "-".join(options))
def test_training_with_mini_batches(options):
    assert_same_training((6, 20, 4), 45, False, options, 1e-12, batch_size=10)


def test_training_in_float32():
    assert_same_training((6, 20, 4), 45, False, OPTIMIZERS[1], 1e-4, dtype=np.float32)


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3), (3,), (1, 1), (5, 40)])
@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("probabilities", [False, True])
def test_cross_entropy_and_its_gradient(shape, scale, probabilities):
    rng = np.random.default_rng(1)
    logits = scale * rng.standard_normal(shape)
    k = shape[-1]
    targets = rng.dirichlet(np.ones(k), shape[:-1]) if probabilities else rng.integers(0, k, shape[:-1])
    x = mg.tensor(logits, requires_grad=True)
    loss = nn.cross_entropy(x, targets)
    loss.backward()
    theirs = torch.tensor(logits, requires_grad=True)
    # PyTorch wants the classes in the second axis: all rows in one axis gives the same mean.
    flat = torch.tensor(targets).reshape((-1, k) if probabilities else (-1,))
    expected = torch.nn.functional.cross_entropy(theirs.reshape(-1, k), flat)
    expected.backward()
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(x.grad.data, theirs.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_linear_and_mse_loss(shape):
    rng = np.random.default_rng(2)
    ours = nn.Linear(4, 6, dtype=np.float64, rng=2)
    theirs = torch.nn.Linear(4, 6, dtype=torch.float64)
    theirs.load_state_dict({"weight": torch.tensor(ours.weight.data.T.copy()), "bias": torch.tensor(ours.bias.data)})
    x, y = rng.standard_normal(shape), rng.standard_normal((*shape[:-1], 6))
    inputs = mg.tensor(x, requires_grad=True)
    loss = nn.mse_loss(ours(inputs), y)
    loss.backward()
    their_inputs = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.mse_loss(theirs(their_inputs), torch.tensor(y))
    expected.backward()
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-14)
    assert_close(inputs.grad.data, their_inputs.grad.numpy(), 1e-14)
    assert_close(ours.weight.grad.data, theirs.weight.grad.numpy().T, 1e-14)
    assert_close(ours.bias.grad.data, theirs.bias.grad.numpy(), 1e-14)
