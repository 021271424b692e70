"""Errors of tensors and operations that say what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg


def test_subclassing_is_refused() -> None:
    with pytest.raises(TypeError, match="subclass"):

        class Parameter(mg.Tensor):
            pass


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


def test_own_exceptions_of_a_primitive_stay_themselves() -> None:
    class OwnError(ValueError):
        pass

    @mg.primitive(x=lambda g: g)
    def failing(xp: Any, x: Any) -> Any:
        raise OwnError("as it is")

    with pytest.raises(OwnError, match=r"^as it is"):
        failing(1.0)


def test_results_of_operations_can_not_be_assigned_to() -> None:
    y = mg.exp(mg.tensor([1.0, 2.0], requires_grad=True))
    with pytest.raises(RuntimeError, match="made by exp was given other values"):
        y.data = y.data * 10
