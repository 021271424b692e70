"""float16 near the ends of its range, and other places where a formula as it stands gives 0, infinity or NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.low_precision import wide

KERNELS = pytest.mark.parametrize("kernels", ["numpy", "auto"])


def gradient(f: Callable[[Any], Any], x: Any) -> Any:
    t = mg.tensor(x, requires_grad=True)
    f(t).sum().backward()
    assert t.grad is not None
    assert t.grad.dtype == x.dtype
    return t.grad.numpy()


@KERNELS
@pytest.mark.parametrize(
    ("function", "expected"),
    [(mg.softmax, 1 / 70_000), (mg.log_softmax, -np.log(70_000)), (mg.logsumexp, np.log(70_000))],
)
def test_sums_of_more_exponentials_than_float16_can_count(function: Any, expected: float, kernels: str) -> None:
    x = np.zeros(70_000, np.float16)
    with mg.kernels(kernels):
        out = function(x, axis=-1)
        assert out.dtype == np.float16
        np.testing.assert_allclose(out.numpy().astype(float), expected, rtol=0.01)
        # The gradient of the first element of the result, or of the result itself.
        found = gradient(lambda t: function(t, axis=-1).reshape(-1)[:1], x).astype(float)
    p = 1 / 70_000
    first, rest = {mg.softmax: (p, 0), mg.log_softmax: (1, -p), mg.logsumexp: (p, p)}[function]
    np.testing.assert_allclose(found[0], first, rtol=0.01)
    np.testing.assert_allclose(found[1:], rest, rtol=0.01)


def test_second_order_of_logsumexp_in_float16() -> None:
    x = mg.tensor(np.zeros(4, np.float16), requires_grad=True)
    mg.logsumexp(x).backward(create_graph=True)
    first = x.grad
    assert first is not None
    assert first.dtype == np.float16
    x.zero_grad()
    first[0].backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [3 / 16, -1 / 16, -1 / 16, -1 / 16], rtol=1e-3)


def test_small_standard_deviations_have_gradients() -> None:
    found = gradient(mg.std, np.array([1e-5, -1e-5, 2e-5, 0], np.float16))
    exact = gradient(mg.std, np.array([1e-5, -1e-5, 2e-5, 0], np.float16).astype(np.float64))
    np.testing.assert_allclose(found.astype(float), exact, rtol=0.05)


@KERNELS
def test_sigmoid_far_below_zero(kernels: str, device: Any) -> None:
    x = np.array([-12, -14, 3], np.float16)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    with mg.kernels(kernels):
        t = mg.tensor(device.array(x), requires_grad=True)
        out = mg.sigmoid(t)
        out.sum().backward()
    assert t.grad is not None
    assert out.dtype == t.grad.dtype == np.float16
    np.testing.assert_allclose(wide(out), expected, rtol=0.02)
    np.testing.assert_allclose(wide(t.grad), expected * (1 - expected), rtol=0.02)


@pytest.mark.parametrize(("dtype", "value"), [("f2", 1e-5), ("f4", 1e-39), ("f8", 1e-310), ("f8", np.nan), ("f8", 0.0)])
def test_exponents_of_zero_in_an_array(dtype: str, value: float) -> None:
    x = np.array([value, 2.0], dtype)
    assert gradient(lambda t: t ** np.array([0, 3], dtype), x).tolist() == [0, 12]


def test_the_mixed_derivative_at_an_exponent_of_zero() -> None:
    """That of x^y with respect to both, x^(y - 1) (1 + y log x), is 1 / x there."""
    x, y = mg.tensor([0.5, 4.0], requires_grad=True), mg.tensor([0.0, 0.0], requires_grad=True)
    (x**y).sum().backward(create_graph=True)
    first = x.grad
    y.zero_grad()
    first.sum().backward()  # type: ignore[union-attr]
    assert y.grad is not None
    np.testing.assert_allclose(y.grad.numpy(), [2, 0.25])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_one_hot_targets_leave_float32_logits_their_dtype(dtype: Any) -> None:
    logits, targets = np.arange(6, dtype=np.float32).reshape(2, 3), np.eye(3)[:2].astype(dtype)
    found = mg.cross_entropy(logits, targets)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.numpy(), mg.cross_entropy(logits, np.array([0, 1])).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "index", "shape"),
    [
        (np.arange(1.0, 4.0), np.zeros((2, 3), int), (1,)),
        (np.arange(1.0, 4.0), np.array([[0, 1, 1], [2, 0, 0]]), (3,)),
        (np.arange(1.0, 4.0, dtype=np.float32), (np.zeros((4, 2, 3), int),), (2,)),
        (np.array(2.0), np.zeros((2, 3), int), (1,)),
        (np.ones((3, 1)), (np.zeros((3, 2), int), np.ones((3, 2), int)), (2, 2)),
        (np.arange(2.0), np.array([True, False, True]), (3,)),
        (np.ones((2, 1, 4)), np.array([[0, 1, 1], [2, 0, 0]]), (3, 4)),
    ],
)
def test_scatter_add_of_what_broadcasts_to_the_index(x: Any, index: Any, shape: tuple[int, ...]) -> None:
    target = np.zeros(shape, x.dtype)[index].shape
    expected = np.zeros(shape, x.dtype)
    places = np.arange(expected.size).reshape(shape)[index]
    for place, value in zip(places.ravel(), np.broadcast_to(x, target).ravel(), strict=True):
        expected.reshape(-1)[place] += value
    np.testing.assert_array_equal(mg.scatter_add(x, index, shape).numpy(), expected)
    mg.check_grads(lambda t: mg.scatter_add(t, index, shape), x)
