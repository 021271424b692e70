"""mg.grad and mg.value_and_grad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg


def cube(x: mg.Tensor) -> mg.Tensor:
    return x**3


def test_derivatives_of_every_order() -> None:
    f: Any = cube
    for expected in (12.0, 12.0, 6.0, 0.0):
        f = mg.grad(f)
        assert f(2.0).item() == pytest.approx(expected)


def test_argnums() -> None:
    def f(x: mg.Tensor, y: mg.Tensor, scale: float) -> mg.Tensor:
        return (x * x * y).sum() * scale

    x, y = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    np.testing.assert_array_equal(mg.grad(f)(x, y, 1.0).numpy(), 2 * x * y)
    np.testing.assert_array_equal(mg.grad(f, 1)(x, y, 2.0).numpy(), 2 * x * x)
    np.testing.assert_array_equal(mg.grad(f, argnums=1)(x, y, scale=2.0).numpy(), 2 * x * x)
    both = mg.grad(f, (1, 0))(x, y, 1.0)
    assert isinstance(both, tuple)
    np.testing.assert_array_equal(both[0].numpy(), x * x)
    np.testing.assert_array_equal(both[1].numpy(), 2 * x * y)
    np.testing.assert_array_equal(mg.grad(f, -2)(x, y, 1.0).numpy(), x * x)


def test_value_and_grad() -> None:
    value, gradient = mg.value_and_grad(cube)(2.0)
    assert (value.item(), gradient.item()) == (8.0, 12.0)
    assert not value.requires_grad
    assert not gradient.requires_grad
    value, gradients = mg.value_and_grad(lambda x, y: x * y, (0, 1))(2.0, 5.0)
    assert [g.item() for g in gradients] == [5.0, 2.0]


def test_no_grad_attribute_is_touched() -> None:
    w = mg.tensor(3.0, requires_grad=True)
    x = mg.tensor(2.0, requires_grad=True)
    gradient = mg.grad(lambda x: w * x * x)(x)
    assert gradient.item() == 12.0
    assert x.grad is None
    assert w.grad is None


def test_the_result_can_be_differentiated_further() -> None:
    w = mg.tensor(3.0, requires_grad=True)
    gradient = mg.grad(lambda x: w * x * x)(2.0)
    assert gradient.requires_grad
    gradient.backward()
    assert w.grad.item() == 4.0
    value, gradient = mg.value_and_grad(lambda x: w * x * x)(2.0)
    (value * gradient).backward()  # d/dw of (4w)(4w) = 32 w
    assert w.grad.item() == 4.0 + 96.0


def test_mixed_partial_derivatives() -> None:
    """d/dy d/dx of sin(xy) = cos(xy) - xy sin(xy)."""
    mixed = mg.grad(lambda y, x: mg.grad(lambda x: mg.sin(x * y))(x))(0.7, 1.3)
    assert mixed.item() == pytest.approx(np.cos(0.91) - 0.91 * np.sin(0.91), rel=1e-14)


def test_perturbations_are_not_confused() -> None:
    """d/dx of x * d/dy (x + y) is 1, at any x (Siskind and Pearlmutter, 2005)."""
    assert mg.grad(lambda x: x * mg.grad(lambda y: x + y)(1.0))(5.0).item() == 1.0


def test_a_graph_outside_is_not_freed() -> None:
    w = mg.tensor(3.0, requires_grad=True)
    outside = w * w
    mg.grad(lambda x: x * outside)(2.0)
    with mg.no_grad():
        constant = mg.grad(lambda x: x * outside)(2.0)
    assert constant.item() == 9.0
    assert not constant.requires_grad
    mg.grad(lambda x: outside)(1.0)
    outside.backward()
    assert w.grad.item() == 6.0


def test_within_no_grad() -> None:
    with mg.no_grad():
        assert mg.grad(cube)(2.0).item() == 12.0
        assert mg.grad(mg.grad(cube))(2.0).item() == 12.0


def test_independent_arguments_have_zero_gradients() -> None:
    gradients = mg.grad(lambda x, y: (x * 2.0).sum(), (0, 1))(np.ones(2), np.ones(3))
    np.testing.assert_array_equal(gradients[1].numpy(), np.zeros(3))
    np.testing.assert_array_equal(mg.grad(lambda x: mg.tensor(1.0))(np.ones(2)).numpy(), np.zeros(2))
    assert mg.grad(lambda x: x)(3.0).item() == 1.0
    assert [g.item() for g in mg.grad(lambda x, y: x, (0, 1))(3.0, 4.0)] == [1.0, 0.0]


def test_the_same_tensor_for_two_arguments() -> None:
    x = mg.tensor(3.0, requires_grad=True)
    first, second = mg.grad(lambda a, b: a * a * b, (0, 1))(x, x)
    assert (first.item(), second.item()) == (18.0, 9.0)


def test_dtypes_and_devices_are_kept(device: Any) -> None:
    for dtype in (np.float32, np.float64):
        gradient = mg.grad(lambda x: (x * x).sum())(device.array(np.ones(3, dtype)))
        assert gradient.dtype == dtype
        assert type(gradient.data) is device.xp.ndarray


def test_arguments_keep_their_values() -> None:
    """Else the gradient would be that for other values than were handed over."""

    def assigned(x: mg.Tensor) -> mg.Tensor:
        x.data = x.data * 2
        return x * x

    def in_place(x: mg.Tensor) -> mg.Tensor:
        x.data *= 2
        return x * x

    def constant(x: mg.Tensor) -> mg.Tensor:
        x.requires_grad = False
        return x * x

    for f in (assigned, in_place, constant):
        with pytest.raises(RuntimeError, match="the argument of a function that is differentiated"):
            mg.grad(f)(np.array(1.0))


def test_arguments_may_be_changed_by_operators_in_place() -> None:
    """They are no parameters: the name stands for another tensor afterwards."""

    def f(x: mg.Tensor) -> mg.Tensor:
        x *= 2
        x -= 1
        return (x * x).sum()

    np.testing.assert_array_equal(mg.grad(f)(np.ones(3)).data, [4.0, 4.0, 4.0])
    mg.check_grads(f, np.ones(3))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"grad: cube must return a scalar, got shape \(2,\)"):
        mg.grad(cube)(np.ones(2))
    with pytest.raises(TypeError, match="must return a tensor, got a float"):
        mg.grad(lambda x: x.item())(2.0)
    with pytest.raises(TypeError, match=r"argument 0 of cube.*floating-point"):
        mg.grad(cube)(2)
    with pytest.raises(TypeError, match="argnums names argument 1 of cube"):
        mg.grad(cube, 1)(2.0)
    with pytest.raises(TypeError, match="argument 0 of cube: tensor: got 'a'"):
        mg.grad(cube)("a")
    with pytest.raises(TypeError, match="expected a function, got None"):
        mg.grad(None)  # type: ignore[arg-type]
    for argnums in (True, 0.5, "x"):
        with pytest.raises(TypeError, match="argnums must be an integer"):
            mg.grad(cube, argnums)  # type: ignore[arg-type]
    for several in ([mg.tensor(1.0), mg.tensor(2.0)], {"w": mg.tensor(1.0)}):
        with pytest.raises(TypeError, match=f"argument 0 of .*lambda.* is a {type(several).__name__}.*argnums"):
            mg.grad(lambda p: p)(several)


def test_a_function_that_returns_a_tensor_from_outside() -> None:
    w = mg.tensor(2.0, requires_grad=True)
    assert mg.grad(lambda x: w)(1.0).item() == 0.0
    value, gradient = mg.value_and_grad(lambda x: w, np.int64(0))(np.float32(1.0))
    assert (value.item(), gradient.item()) == (2.0, 0.0)
    assert w.grad is None
