"""The tensor's operators and methods: arithmetic, comparisons, in place, in, slices."""

from __future__ import annotations

import array
import collections
import contextlib
import operator
from typing import Any

import numpy as np
import pytest

import microgradnd as mg

OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_reflected_and_with_arrays_on_the_left(name: str, device: Any) -> None:
    function = getattr(operator, name)
    a, b = np.array([1.5, 2.5, 3.5]), np.array([[2.0], [3.0]])
    x, y = (mg.tensor(device.array(v), requires_grad=True) for v in (a, b))
    for ours, expected in (
        (function(x, y), function(a, b)),
        (function(x, device.array(b)), function(a, b)),
        (function(device.array(a), y), function(a, b)),
        (function(x, 2.0), function(a, 2.0)),
        (function(2.0, x), function(2.0, a)),
        (function(x, np.float64(2)), function(a, np.float64(2))),
        (function(np.float64(2), x), function(np.float64(2), a)),
        (function(x, 2), function(a, 2)),
        (function(2, x), function(2, a)),
    ):
        assert isinstance(ours, mg.Tensor)
        assert ours.requires_grad
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-15)


def test_lists_are_operands() -> None:
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    np.testing.assert_array_equal((x + [1, 2]).numpy(), [2, 4])
    np.testing.assert_array_equal(([1, 2] * x).numpy(), [1, 4])


def test_matrix_product_operators() -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    x = mg.tensor(b, requires_grad=True)
    np.testing.assert_array_equal((a @ x).numpy(), a @ b)
    np.testing.assert_array_equal((x.T @ a.T).numpy(), b.T @ a.T)


def test_unary_operators_and_comparisons(device: Any) -> None:
    a = np.array([-1.0, 0.0, 2.0])
    x = mg.tensor(device.array(a), requires_grad=True)
    np.testing.assert_array_equal((-x).numpy(), -a)
    np.testing.assert_array_equal((+x).numpy(), a)
    np.testing.assert_array_equal(abs(x).numpy(), abs(a))
    for function in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
        for other in (0.0, device.array(a[::-1].copy())):
            ours = function(x, other)
            assert ours.dtype == np.bool_
            assert not ours.requires_grad
            host = other if isinstance(other, float) else a[::-1]
            np.testing.assert_array_equal(ours.numpy(), function(a, host))
            np.testing.assert_array_equal(function(other, x).numpy(), function(host, a))
    between = (x > -0.5) & (x < 1) | ~(x < 5) ^ (x == 0)
    np.testing.assert_array_equal(between.numpy(), (a > -0.5) & (a < 1) | ~(a < 5) ^ (a == 0))
    assert len({x, x}) == 1  # hashed by identity


def test_methods_are_the_functions() -> None:
    x = mg.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    for ours, expected in (
        (x.sum(axis=0), np.sum(x.data, axis=0)),
        (x.mean(), 2.5),
        (x.var(axis=1, ddof=1), np.var(x.data, axis=1, ddof=1)),
        (x.max(axis=1), [2, 5]),
        (x.min(), 0),
        (x.argmax(axis=1), [2, 2]),
        (x.argmin(axis=0), [0, 0, 0]),
        ((x > 0).all(axis=0), [False, True, True]),
        ((x > 4).any(axis=1), [False, True]),
        (x.std(axis=1, ddof=1), [1, 1]),
        (x.ravel(), x.data.ravel()),
        (x.flatten(), x.data.ravel()),
        (x.T, x.data.T),
        (x.transpose(1, 0), x.data.T),
        (x.transpose((1, 0)), x.data.T),
        (x.transpose(), x.data.T),
        (x.swapaxes(0, 1), x.data.T),
        (x.reshape(3, 2), x.data.reshape(3, 2)),
        (x.reshape((3, -1)), x.data.reshape(3, 2)),
        (x.reshape(-1), x.data.reshape(-1)),
        (x[None].squeeze(), x.data),
        (x.clip(1, 4), x.data.clip(1, 4)),
        (x.astype(np.int64), x.data.astype(np.int64)),
        (x[x > 2], [3, 4, 5]),
        (x[mg.tensor([0, 1]), mg.tensor([1, 2])], [1, 5]),
    ):
        np.testing.assert_array_equal(ours.numpy(), expected)


def test_equality_with_what_is_no_array_is_pythons() -> None:
    class Other:
        def __eq__(self, other: object) -> Any:
            return "asked"

        __hash__ = object.__hash__

    t = mg.tensor([1.0, 2.0])
    assert t != None  # noqa: E711
    assert (t == None) is False  # noqa: E711
    assert t != "a"
    assert None not in [t]
    assert (t == Other()) == "asked"
    np.testing.assert_array_equal((t == [1.0, 3.0]).data, [True, False])
    np.testing.assert_array_equal((t != np.float32(1.0)).data, [False, True])
    np.testing.assert_array_equal((t == range(1, 3)).data, [True, True])
    np.testing.assert_array_equal((t == collections.deque([1.0, 3.0])).data, [True, False])
    for other in (np.str_("a"), np.datetime64("2020"), np.ndarray, mg.Tensor):
        assert (t == other) is False
    for odd in ([1.0, None], ["a", "b"], [[1], [2, 3]], np.ma.masked_less([1.0, 3.0], 2)):
        with pytest.raises((TypeError, ValueError), match="equal: y: "):
            t == odd  # noqa: B015
    np.testing.assert_array_equal((t == array.array("d", [1.0, 3.0])).data, [True, False])


@pytest.mark.parametrize("mode", [mg.no_grad, contextlib.nullcontext])
def test_parameters_are_not_lost_by_operators_in_place(mode: Any) -> None:
    """As PyTorch's tutorials update them; here that would leave a constant in the place of w."""
    w = mg.tensor([1.0, 2.0], requires_grad=True)
    before = w
    with mode(), pytest.raises(TypeError, match=r"subtract in place: .*w.data -= lr \* w.grad.data"):
        w -= 0.5
    assert w is before
    total = w.sum()
    total += w[0]
    total *= 2.0
    total.backward()
    np.testing.assert_array_equal(w.grad.data, [4.0, 2.0])  # type: ignore[union-attr]


def test_in_looks_for_an_element() -> None:
    for t in (mg.tensor(2.0), mg.tensor([1.0, 2.0]), mg.tensor([[0, 1], [2, 3]])):
        assert 2 in t
        assert 2.5 not in t
        assert None not in t
        assert "a" not in t


def test_tensors_in_slices() -> None:
    x, start = mg.tensor([1.0, 2.0, 3.0], requires_grad=True), mg.tensor(1)
    y = x[start:]
    start.data = 0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 1, 1])
