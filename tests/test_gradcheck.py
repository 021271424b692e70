"""mg.check_grads finds wrong gradients, says where, and accepts right ones."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import microgradnd as mg


def operation(factor: float) -> Any:
    @mg.primitive(x=lambda g, x, y: factor * g * x * y, y=lambda g, x: g * x * x)
    def squared_times(xp: Any, x: Any, y: Any) -> Any:
        return x * x * y

    return squared_times


def test_right_gradients_pass(device: Any) -> None:
    x, y = device.array(np.array([[1.0, -2.0], [0.5, 3.0]])), device.array(np.array([2.0, 5.0]))
    mg.check_grads(operation(2.0), x, y, order=3)
    mg.check_grads(lambda x: mg.softmax(mg.sin(x)) @ x, device.array(np.array([0.3, 0.1, -1.0])))
    mg.check_grads(lambda x, i: x[i], x, device.array(np.array([0, 0, 1])))
    mg.check_grads(lambda x: x, 2.0)


def test_a_wrong_gradient_is_named_with_position_and_both_numbers() -> None:
    x, y = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([2.0, 5.0])
    with pytest.raises(AssertionError) as caught:
        mg.check_grads(operation(3.0), x, y)
    message = str(caught.value)
    assert "squared_times" in message
    assert "argument 0 at position (1, 1)" in message
    ours, numbers = map(float, re.findall(r"is (\S+), central differences give (\S+)", message)[0])
    assert ours == pytest.approx(1.5 * numbers, rel=1e-9)


def test_the_operations_inside_of_a_function_are_named() -> None:
    wrong = operation(2.001)
    with pytest.raises(AssertionError, match=r"operations: exp, squared_times, sum"):
        mg.check_grads(lambda x: wrong(mg.exp(x), 2.0).sum(), np.ones(3))


@pytest.mark.parametrize("error", [1e-5, 1e-3, 1.0])
def test_small_errors_are_caught(error: float) -> None:
    with pytest.raises(AssertionError):
        mg.check_grads(operation(2.0 + error), np.ones(2), np.ones(2), order=1)


def test_a_wrong_second_order_is_caught() -> None:
    # The first order is right: its own derivative, hidden from the engine by .data, is missing.
    @mg.primitive(x=lambda g, x: g * 2 * (x.data if isinstance(x, mg.Tensor) else x))
    def square(xp: Any, x: Any) -> Any:
        return x * x

    mg.check_grads(square, np.ones(2), order=1)
    with pytest.raises(AssertionError, match="gradient of order 2"):
        mg.check_grads(square, np.ones(2), order=2)


def test_float32_arguments_are_checked_in_float64() -> None:
    mg.check_grads(operation(2.0), np.ones(2, np.float32), np.ones(2, np.float32))
    with pytest.raises(AssertionError):
        mg.check_grads(operation(2.00001), np.ones(2, np.float32), np.ones(2, np.float32))


def test_a_detached_gradient_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"is 2\.0\S*, central"):
        mg.check_grads(lambda x: x * x.detach() * 2.0, 1.0)


def test_a_random_function_is_caught() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="different results"):
        mg.check_grads(lambda x: x * rng.random(), 1.0)


def test_nan_is_caught() -> None:
    @mg.primitive(x=lambda g, x: g * np.nan)
    def broken(xp: Any, x: Any) -> Any:
        return x * 1.0

    with pytest.raises(AssertionError, match="is nan"):
        mg.check_grads(broken, 1.0, order=1)


def test_arguments_are_not_changed() -> None:
    x = np.ones(3)
    t = mg.tensor(x, requires_grad=True)
    mg.check_grads(lambda x: mg.exp(x), t)
    np.testing.assert_array_equal(x, np.ones(3))
    assert t.grad is None


@pytest.mark.parametrize("index", [np.array([0, 1]), np.array([True, False])])
def test_tensors_of_integers_and_booleans_are_passed_on(index: Any) -> None:
    mg.check_grads(lambda x, i: x[i] * x[i], np.array([0.5, 2.0]), mg.tensor(index))


@pytest.mark.parametrize("index", [(slice(None), [0, 1]), ((0, 1), (2, 0)), ([0, 1], slice(0, 2)), ..., None])
def test_indices_are_passed_on(index: Any) -> None:
    mg.check_grads(lambda x, i: x[i] ** 2, np.arange(1.0, 10.0).reshape(3, 3), index)
    mg.check_grads(lambda x, dtype: x.astype(dtype) ** 2, np.ones(3), np.float64)


@pytest.mark.parametrize("kind", ["bfloat16", "a tensor of bfloat16", "a list"])
def test_no_argument_of_floats_is_left_out(kind: str) -> None:
    @mg.primitive(x=lambda g, x: 5 * g * x, y=lambda g, x: g)
    def wrong(xp: Any, x: Any, y: Any) -> Any:
        return x * x * x + y

    x: Any = [0.5, 2.0]
    if kind != "a list":
        x = np.asarray(x, pytest.importorskip("ml_dtypes").bfloat16)
    x = mg.tensor(x) if kind.startswith("a tensor") else x
    with pytest.raises(AssertionError, match=r"wrong.*with respect to argument 0 at position \(1,\)"):
        mg.check_grads(wrong, x, np.array([0.5, 2.0]))
    mg.check_grads(lambda x, y: x * y, x, np.array([0.5, 2.0]))


def test_errors() -> None:
    with pytest.raises(TypeError, match="no argument is floating-point"):
        mg.check_grads(lambda i: mg.tensor(1.0), np.array([1, 2]))
    with pytest.raises(TypeError, match="must return a floating-point tensor"):
        mg.check_grads(lambda x: 1.0, 1.0)
    with pytest.raises(ValueError, match="order must be at least 1"):
        mg.check_grads(lambda x: x, 1.0, order=0)
    with pytest.raises(TypeError, match="order must be an integer"):
        mg.check_grads(lambda x: x, 1.0, order=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a function, got 3"):
        mg.check_grads(3, 1.0)  # type: ignore[arg-type]
    for tolerance in (np.inf, np.nan, -1.0):
        with pytest.raises(ValueError, match="rtol and atol must be at least 0 and finite"):
            mg.check_grads(lambda x: x, 1.0, rtol=tolerance)
