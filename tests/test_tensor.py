"""The tensor itself: construction, conversions, attributes, copies and pickles."""

from __future__ import annotations

import copy
import operator
import pickle
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn


def test_construction_keeps_dtype_and_memory(device: Any) -> None:
    for dtype in (np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_, np.complex64):
        array = device.array(np.ones((2, 3), dtype))
        tensor = mg.tensor(array)
        assert tensor.data is array
        assert (tensor.shape, tensor.dtype, tensor.ndim, tensor.size) == ((2, 3), dtype, 2, 6)
    assert mg.tensor(device.array(np.ones(3)), dtype=np.float32).dtype == np.float32
    assert mg.tensor([1.0, 2.0]).dtype == np.float64
    assert mg.tensor(3).data.shape == ()
    assert type(mg.tensor(np.float32(3)).data) is np.ndarray
    assert mg.tensor(mg.tensor([1.0], requires_grad=True)).requires_grad is False


def test_conversions(device: Any) -> None:
    x = mg.tensor(device.array(np.arange(3.0)), requires_grad=True)
    np.testing.assert_array_equal(x.numpy(), np.arange(3.0))
    assert type(x.numpy()) is np.ndarray
    assert x.detach().data is x.data
    assert not x.detach().requires_grad
    one = mg.tensor(device.array(np.array([[2.5]])))
    assert (one.item(), float(one), int(one), bool(one)) == (2.5, 2.5, 2, True)
    assert [10, 20, 30][mg.tensor(device.array(np.array(1)))] == 20
    with pytest.raises(ValueError, match=r"item: needs a tensor of one element, got shape \(3,\)"):
        x.item()
    with pytest.raises(ValueError, match=r"truth value of a tensor of shape \(3,\) is ambiguous: use .*all"):
        bool(x)
    with pytest.raises(TypeError):
        operator.index(one)


def test_numpy_conversion_refuses_to_lose_a_gradient() -> None:
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match="detach"):
        np.asarray(x)
    np.testing.assert_array_equal(np.asarray(x.detach()), [1, 2])
    assert np.asarray(mg.tensor([1.0]), dtype=np.float32).dtype == np.float32
    with pytest.raises(TypeError, match=r"stack"):
        mg.tensor([x, x])
    with pytest.raises(TypeError):
        np.exp(x)


def test_length_iteration_and_containment() -> None:
    x = mg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert len(x) == 2
    first, second = x
    (first * 2.0 + second).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [[2, 2], [1, 1]])
    assert 3.0 in mg.tensor([1.0, 3.0])
    with pytest.raises(TypeError, match="unsized"):
        iter(mg.tensor(1.0))


def test_repr() -> None:
    assert repr(mg.tensor([1.0, 2.0])) == "tensor([1., 2.], dtype=float64)"
    x = mg.tensor([1.0], dtype=np.float32, requires_grad=True)
    assert repr(x) == "tensor([1.], dtype=float32, requires_grad=True)"
    assert repr(x * 2.0) == "tensor([2.], dtype=float32, op=multiply)"


def test_data_is_assignable() -> None:
    x = mg.tensor(np.ones(3, np.float32), requires_grad=True)
    x.data = [1, 2, 3]
    assert x.dtype == np.float32
    x.data = mg.tensor([4.0, 5.0, 6.0])
    np.testing.assert_array_equal(x.data, np.array([4, 5, 6], np.float32))
    x.data -= x.data
    np.testing.assert_array_equal(x.data, np.zeros(3))
    for bad, kind, match in (
        (np.ones(4), ValueError, r"expected shape \(3,\), got \(4,\)"),
        (1.0, ValueError, "shape"),
        (np.ones(3, complex), TypeError, "expected float32, got complex128"),
        (["a", "b", "c"], TypeError, "numbers"),
    ):
        with pytest.raises(kind, match=match):
            x.data = bad
    np.testing.assert_array_equal(x.data, np.zeros(3))


def test_grad_is_assignable() -> None:
    x = mg.tensor(np.ones(3), requires_grad=True)
    x.grad = np.arange(3.0)
    np.testing.assert_array_equal(x.grad.data, np.arange(3.0))
    with pytest.raises(ValueError, match="shape"):
        x.grad = np.ones(2)
    x.grad = None
    assert x.grad is None
    with pytest.raises(RuntimeError, match="leaf"):
        (x * 2.0).grad = np.ones(3)


def test_requires_grad_can_be_set_on_leaves() -> None:
    x = mg.tensor([1.0])
    x.requires_grad = True
    (x * 3.0).sum().backward()
    assert x.grad.item() == 3.0
    x.requires_grad = False
    assert not (x * 3.0).requires_grad
    y = mg.exp(mg.tensor([1.0], requires_grad=True))
    with pytest.raises(RuntimeError, match=r"detach\(\)"):
        y.requires_grad = False


def test_deepcopy() -> None:
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    x.sum().backward()
    y, z = copy.deepcopy([x, x])
    assert y is z
    assert y.requires_grad
    assert y.grad is None
    y.data[0] = 7
    assert x.data[0] == 1
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(x * 2.0)


def test_a_copy_of_a_parameter_stays_what_it_is() -> None:
    p = mg.tensor([1.0, 2.0], requires_grad=True)
    optimizer = nn.SGD([p], lr=0.5)
    for _ in range(2):
        p.zero_grad()
        (p * p).sum().backward()
        optimizer.step()
        copied = copy.copy(p)
        assert copied.requires_grad
        assert copied.grad is None
        before = copied.numpy().copy()
        p.data += 1.0
        np.testing.assert_array_equal(copied.data, before)


def test_pickles_and_copies_are_leaves_of_their_own() -> None:
    x = mg.tensor([1.0, 2.0], requires_grad=True)
    x.sum().backward()
    for y in (pickle.loads(pickle.dumps(x)), copy.copy(x)):
        assert y.requires_grad
        assert y.grad is None
        slope = mg.grad(lambda t, y=y: (y * t * t).sum())(3.0)
        assert slope.requires_grad
        y.sum().backward()
        np.testing.assert_array_equal(y.grad.data, [1, 1])
    with pytest.raises(RuntimeError, match="only leaves"):
        pickle.dumps(x * 2.0)


def test_a_gradient_from_the_host_comes_to_the_tensors_device(device: Any) -> None:
    x = mg.tensor(device.array(np.ones(3)), requires_grad=True)
    (x * 2.0).backward(np.arange(3.0))
    assert x.grad is not None
    assert type(x.grad.data) is device.xp.ndarray
    np.testing.assert_array_equal(device.host(x.grad.data), 2 * np.arange(3.0))


def test_a_format_is_for_one_element() -> None:
    assert f"{mg.tensor([1.25]):.1f} {mg.tensor(3):>3}" == "1.2   3"
    assert f"{mg.tensor([1.0, 2.0])}" == "tensor([1., 2.], dtype=float64)"
    with pytest.raises(TypeError, match=r"format '.2f' needs a tensor of one element, got shape \(2,\)"):
        f"{mg.tensor([1.0, 2.0]):.2f}"
