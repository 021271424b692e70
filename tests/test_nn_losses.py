import math
import re

import numpy as np
import pytest

import microgradnd as mg
import nn


def problem(shape, seed=0, probabilities=False):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal(shape)
    k = shape[-1]
    return logits, rng.dirichlet(np.ones(k), shape[:-1]) if probabilities else rng.integers(0, k, shape[:-1])


def naive(logits, targets):
    """Mean of -sum(target * log softmax), with Python's own exp and log, one row at a time."""
    k = logits.shape[-1]
    rows = targets if targets.shape == logits.shape else nn.one_hot(targets, k, np.float64)
    total, count = 0.0, 0
    for z, t in zip(logits.reshape(-1, k).tolist(), rows.reshape(-1, k).tolist(), strict=True):
        log_total = math.log(sum(math.exp(x) for x in z))
        total -= sum(p * (x - log_total) for p, x in zip(t, z, strict=True))
        count += 1
    return total / count


def log_sum_exp(logits):
    """log(sum(exp)) over the last axis, the largest term taken out."""
    top = logits.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))[..., 0]


def central_differences(f, x, h=1e-5):
    """The derivative of f(x) by every entry of x: x.shape + f(x).shape."""
    out = []
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        out.append((f(x + step) - f(x - step)) / (2 * h))
    return np.reshape(out, (*x.shape, *np.shape(out[0])))


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (1, 2), (5, 1), (2, 3, 4), (4,), (6, 32), (6, 33), (2, 3, 80), (40,)])
def test_cross_entropy_against_the_naive_formula(shape, probabilities):
    logits, targets = problem(shape, probabilities=probabilities)
    loss = nn.cross_entropy(mg.tensor(logits), targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive(logits, targets), rel=1e-13, abs=1e-15)


def test_cross_entropy_against_log_sum_exp():
    logits, labels = problem((50, 10), seed=1)
    expected = (log_sum_exp(logits) - logits[np.arange(50), labels]).mean()
    assert nn.cross_entropy(mg.tensor(logits), labels).item() == pytest.approx(expected, rel=1e-14)


def test_cross_entropy_survives_huge_logits():
    x = mg.tensor([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], requires_grad=True)
    for targets in (np.array([2, 0]), np.array([[0, 0, 1.0], [1, 0, 0]])):
        x.zero_grad()
        loss = nn.cross_entropy(x, targets)
        assert loss.item() == pytest.approx((2e4 + math.log(3)) / 2, rel=1e-15)
        loss.backward()
        np.testing.assert_allclose(x.grad.data, [[0.5, 0, -0.5], [-1 / 3, 1 / 6, 1 / 6]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4), (4,), (6, 32), (6, 33), (2, 3, 80), (40,)])
def test_gradient_is_softmax_minus_one_hot(shape, dtype):
    logits, labels = problem(shape)
    rows = nn.one_hot(labels, shape[-1], np.float64)
    e = np.exp(logits)
    expected = (e / e.sum(axis=-1, keepdims=True) - rows) / (logits.size // shape[-1])
    for targets in (np.asarray(labels, dtype), rows, rows.astype(dtype), mg.tensor(rows)):
        x = mg.tensor(logits, requires_grad=True)
        nn.cross_entropy(x, targets).backward()
        np.testing.assert_allclose(x.grad.data, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (6, 50), (2, 3, 4), (2, 3, 50)])
def test_layout_in_memory_does_not_matter(shape, probabilities):
    logits, targets = problem(shape, probabilities=probabilities)
    expected = mg.grad(lambda x: nn.cross_entropy(x, targets))(logits).data
    wide = np.repeat(logits, 2, axis=-1)[..., ::2]
    for array in (np.asfortranarray(logits), wide, logits[::-1].copy()[::-1]):
        for rows in (targets, np.asfortranarray(targets)):
            x = mg.tensor(array, requires_grad=True)
            loss = nn.cross_entropy(x, rows)
            loss.backward()
            assert loss.item() == pytest.approx(naive(logits, targets), rel=1e-13)
            np.testing.assert_allclose(x.grad.data, expected, rtol=1e-12, atol=1e-16)
            np.testing.assert_array_equal(array, logits)


def test_weight_on_the_targets_counts():
    """Rows need not sum to one: the loss is linear in the targets, and so is its gradient."""
    logits, targets = problem((3, 4), probabilities=True)
    gradients = []
    for weights in (targets, 3 * targets):
        x = mg.tensor(logits, requires_grad=True)
        nn.cross_entropy(x, weights).backward()
        gradients.append(x.grad.data)
    np.testing.assert_allclose(gradients[1], 3 * gradients[0], rtol=1e-13)


def test_float32_stays_float32():
    logits, labels = problem((6, 4))
    x = mg.tensor(logits, np.float32, requires_grad=True)
    for targets in (labels, nn.one_hot(labels, 4)):
        loss = nn.cross_entropy(x, targets)
        loss.backward()
        assert loss.dtype == x.grad.dtype == np.float32
        assert loss.item() == pytest.approx(naive(logits, labels), rel=1e-6)


@pytest.mark.parametrize("probabilities", [False, True])
def test_second_derivatives_by_grad_of_grad(probabilities):
    logits, targets = problem((3, 4), seed=2, probabilities=probabilities)
    v = np.random.default_rng(3).standard_normal(logits.shape)
    gradient = mg.grad(lambda x: nn.cross_entropy(x, targets))
    product = mg.grad(lambda x: (gradient(x) * v).sum())(logits)  # Hessian times v
    hessian = central_differences(lambda x: gradient(x).data, logits)
    expected = np.tensordot(hessian, v, 2)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(product.data, expected, rtol=1e-7, atol=1e-9)


def test_second_derivatives_by_create_graph_through_a_model():
    rng = np.random.default_rng(4)
    model = nn.MLP([3, 5, 4], mg_tanh, dtype=np.float64, rng=rng)
    x, labels = rng.standard_normal((6, 3)), rng.integers(0, 4, 6)
    parameters = model.parameters()

    def squared_gradient():
        model.zero_grad()
        nn.cross_entropy(model(x), labels).backward(create_graph=True)
        gradients = [p.grad for p in parameters]
        model.zero_grad()
        return sum((g * g).sum() for g in gradients)

    squared_gradient().backward()
    second = [p.grad.data for p in parameters]
    for p, g in zip(parameters, second, strict=True):
        start = p.data.copy()

        def f(values, p=p):
            p.data = values
            return squared_gradient().item()

        expected = central_differences(f, start)
        p.data = start
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(g, expected, rtol=1e-6, atol=1e-9)


def mg_tanh():
    return mg.tanh


def test_targets_can_be_differentiated_too():
    logits, targets = problem((3, 4), probabilities=True)
    t = mg.tensor(targets, requires_grad=True)
    nn.cross_entropy(logits, t).backward()
    np.testing.assert_allclose(t.grad.data, (log_sum_exp(logits)[:, None] - logits) / 3, rtol=1e-13)


@pytest.mark.parametrize(
    ("shape", "targets", "error", "message"),
    [
        ((3, 4), np.array([0, -1, 2]), IndexError, "class indices must lie in 0 to 3, got -1 to 2"),
        ((3, 4), np.array([0, 4, 2]), IndexError, "class indices must lie in 0 to 3, got 0 to 4"),
        ((3, 4), np.array([0.0, 1.0, 2.0]), TypeError, "class indices must be integers, got float64"),
        ((3, 4), np.array([True, False, True]), TypeError, "class indices must be integers, got bool"),
        ((3, 4), np.array([0, 1]), ValueError, "class indices of shape (3,) or rows of shape (3, 4), got (2,)"),
        ((3, 4), np.zeros((3, 5)), ValueError, "class indices of shape (3,) or rows of shape (3, 4), got (3, 5)"),
        ((3, 4), np.zeros((3, 1), int), ValueError, "got (3, 1)"),
        ((0, 4), np.zeros(0, int), ValueError, "there are no rows"),
        ((0, 4), np.zeros((0, 4)), ValueError, "there are no rows"),
        ((2, 0, 4), np.zeros((2, 0), int), ValueError, "there are no rows"),
        ((), 0, ValueError, "logits must have at least one axis"),
        ((4,), np.int32(-1), IndexError, "class indices must lie in 0 to 3, got -1"),
        ((4,), 1.0, ValueError, "targets must be an array, got 1.0"),
        ((4,), True, TypeError, "class indices must be integers, got bool"),
    ],
)
def test_cross_entropy_refuses(shape, targets, error, message):
    with pytest.raises(error, match=re.escape(message)):
        nn.cross_entropy(mg.tensor(np.zeros(shape)), targets)


@pytest.mark.parametrize("shape", [(5,), (3, 2), (1,), ()])
def test_mse_loss_and_its_gradient(shape):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal(shape), rng.standard_normal(shape)
    x, y = mg.tensor(a, requires_grad=True), mg.tensor(b, requires_grad=True)
    loss = nn.mse_loss(x, y)
    assert loss.item() == pytest.approx(np.mean((a - b) ** 2), rel=1e-14)
    assert nn.mse_loss(x, b).item() == loss.item()
    loss.backward()
    np.testing.assert_allclose(x.grad.data, 2 * (a - b) / a.size, rtol=1e-14)
    np.testing.assert_allclose(y.grad.data, -2 * (a - b) / a.size, rtol=1e-14)


@pytest.mark.parametrize(("a", "b"), [((3, 1), (3,)), ((3,), (3, 1)), ((3,), ()), ((2, 3), (3,))])
def test_mse_loss_refuses_to_broadcast(a, b):
    message = f"mse_loss: expected equal shapes, got predictions {a} and targets {b}"
    with pytest.raises(ValueError, match=re.escape(message)):
        nn.mse_loss(mg.tensor(np.zeros(a)), np.zeros(b))


@pytest.mark.parametrize(("rows", "classes"), [(12_000, 502), (70_000, 3)])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_float16_of_many_rows(rows, classes, kind):
    logits = np.random.default_rng(0).standard_normal((rows, classes)).astype(np.float16)
    labels = np.arange(rows) % classes
    targets = labels if kind == "indices" else np.eye(classes, dtype=np.float16)[labels]
    half, double = (mg.tensor(logits, dtype, requires_grad=True) for dtype in (np.float16, np.float64))
    losses = [nn.cross_entropy(x, targets) for x in (half, double)]
    assert losses[0].dtype == np.float16
    np.testing.assert_allclose(losses[0].item(), losses[1].item(), rtol=1e-3)
    for loss in losses:
        loss.backward(1000.0)
    assert half.grad.dtype == np.float16
    np.testing.assert_allclose(half.grad.data, double.grad.data, rtol=0.01, atol=1e-6)


def test_a_class_given_as_a_number_has_second_derivatives():
    x = np.array([0.3, -0.2, 0.9])
    for label in (1, np.int64(1), np.array([2, 1], np.uint8)[1]):
        mg.check_grads(lambda t: nn.cross_entropy(t, label), x)  # noqa: B023  # called at once


def test_mse_loss_of_unsigned_integers():
    a, b = np.array([0, 255], np.uint8), np.array([200, 0], np.uint8)
    assert nn.mse_loss(a, b).item() == (200**2 + 255**2) / 2


def test_mse_loss_of_integers_of_python():
    assert nn.mse_loss(np.array(200, np.uint8), 255).item() == 55**2
    assert nn.mse_loss([0], [2**40]).item() == 2.0**80
    assert nn.mse_loss([True], [False]).item() == 1
