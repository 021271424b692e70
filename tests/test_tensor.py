"""The tensor itself: construction, attributes, operators, and errors that say what to do."""

from __future__ import annotations

import array
import collections
import contextlib
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


def test_subclassing_is_refused() -> None:
    with pytest.raises(TypeError, match="subclass"):

        class Parameter(mg.Tensor):
            pass


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


def test_in_looks_for_an_element() -> None:
    for t in (mg.tensor(2.0), mg.tensor([1.0, 2.0]), mg.tensor([[0, 1], [2, 3]])):
        assert 2 in t
        assert 2.5 not in t
        assert None not in t
        assert "a" not in t


@pytest.mark.parametrize(
    ("data", "kind", "match"),
    [
        ("abc", TypeError, "tensor: got 'abc'"),
        (None, TypeError, "tensor: got None"),
        (np.array([object()]), TypeError, "dtype object"),
        (["a", "b"], TypeError, "expected numbers"),
        ([[1.0], [1.0, 2.0]], ValueError, "tensor: .*inhomogeneous"),
        (np.array(["2020-01-01"], "datetime64[D]"), TypeError, "datetime64"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError, "mask"),
        ({"a": 1}, TypeError, "got a dict"),
        (object(), TypeError, "got an object"),
        (2**70, TypeError, "got an integer that no dtype of NumPy's holds"),
        ([1.0, None], TypeError, "got a list with None .* in it"),
        ([[1, 2**70]], TypeError, "got a list with an integer that no dtype of NumPy's holds in it"),
    ],
)
def test_data_that_is_not_numeric(data: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        mg.tensor(data)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex128])
def test_only_floating_point_tensors_have_gradients(dtype: Any) -> None:
    with pytest.raises(TypeError, match=f"requires_grad: {np.dtype(dtype)} values have no gradient"):
        mg.tensor(np.ones(3, dtype), requires_grad=True)
    x = mg.tensor(np.ones(3, dtype))
    with pytest.raises(TypeError, match="floating-point"):
        x.requires_grad = True
    assert not x.requires_grad


def test_backward_errors() -> None:
    x = mg.tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) is no scalar.*pass grad"):
        (x * 2.0).backward()
    with pytest.raises(ValueError, match=r"backward: grad: expected shape \(2, 3\), got \(3,\)"):
        (x * 2.0).backward(np.ones(3))
    with pytest.raises(TypeError, match="backward: grad: expected float64, got complex128"):
        (x * 2.0).backward(np.ones((2, 3), complex))
    with pytest.raises(RuntimeError, match="needs no gradient"):
        mg.tensor(1.0).backward()
    with mg.no_grad():
        y = x.sum()
    with pytest.raises(RuntimeError, match=r"needs no gradient.*no_grad"):
        y.backward()
    assert x.grad is None
    x[:1, :1].backward()  # one element is scalar enough
    assert x.grad.data.sum() == 1


@pytest.mark.parametrize(
    ("call", "kind", "match"),
    [
        (lambda x: x + np.ones(4), ValueError, r"add: .*x: numpy float64 \(2, 3\), y: numpy float64 \(4,\)"),
        (lambda x: x @ np.ones((4, 2)), ValueError, r"matmul: .*\(2, 3\).*\(4, 2\)"),
        (
            lambda x: mg.linear(x, np.ones((4, 2))),
            ValueError,
            r"linear: .*x: numpy float64 \(2, 3\), weight: numpy float64 \(4, 2\)",
        ),
        (lambda x: mg.concatenate([x, np.ones((2, 2))]), ValueError, r"concatenate: .*\(2, 3\).*\(2, 2\)"),
        (lambda x: mg.einsum("ij,jk->ik", x, np.ones((4, 2))), ValueError, r"einsum: .*\(2, 3\).*\(4, 2\)"),
        (lambda x: mg.einsum(x, [0, 1]), TypeError, "einsum"),
        (lambda x: x.reshape(4), ValueError, r"reshape: .*\(2, 3\)"),
        (lambda x: x.sum(axis=5), ValueError, "sum: axis 5 is out of bounds"),
        (lambda x: mg.broadcast_to(x, (3, 3)), ValueError, r"broadcast_to: .*\(2, 3\)"),
        (lambda x: x[5], IndexError, "getitem: index 5 is out of bounds"),
        (lambda x: x["a"], IndexError, "getitem"),
        (lambda x: x + "a", TypeError, "add: y: got 'a'"),
        (lambda x: x + None, TypeError, "add: y: got None"),
        (lambda x: mg.exp("a"), TypeError, "exp: x: got 'a'"),
        (lambda x: x * np.array([object()] * 3), TypeError, "multiply: y: got an array of dtype object"),
        (lambda x: mg.where(x, x, x), TypeError, "where: no gradient is defined with respect to condition.*detach"),
        (lambda x: mg.sum(x, axis=x), ValueError, r"sum: .*axis: microgradnd float64"),
        (lambda x: x * [[1.0], [1.0, 2.0]], ValueError, "multiply: y: "),
        (lambda x: mg.concatenate([]), ValueError, "concatenate: need at least one array"),
        (lambda x: mg.stack([x, x[0]]), ValueError, r"stack: .*\(2, 3\), \(3,\)"),
    ],
)
def test_operation_errors_name_operation_and_shapes(call: Any, kind: type[Exception], match: str) -> None:
    x = mg.tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.raises(kind, match=match):
        call(x)


def test_assignment_into_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="item assignment"):
        mg.tensor([1.0])[0] = 2.0  # type: ignore[index]


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


def test_own_exceptions_of_a_primitive_stay_themselves() -> None:
    class OwnError(ValueError):
        pass

    @mg.primitive(x=lambda g: g)
    def failing(xp: Any, x: Any) -> Any:
        raise OwnError("as it is")

    with pytest.raises(OwnError, match=r"^as it is"):
        failing(1.0)


def test_tensors_in_slices() -> None:
    x, start = mg.tensor([1.0, 2.0, 3.0], requires_grad=True), mg.tensor(1)
    y = x[start:]
    start.data = 0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 1, 1])


def test_results_of_operations_can_not_be_assigned_to() -> None:
    y = mg.exp(mg.tensor([1.0, 2.0], requires_grad=True))
    with pytest.raises(RuntimeError, match="made by exp was given other values"):
        y.data = y.data * 10


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
