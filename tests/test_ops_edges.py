"""Single operations at their edges: ties, ends of domains, extreme values, integers, axes of all kinds, refusals."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg


@pytest.mark.parametrize("name", ["max", "min"])
def test_extrema_of_nothing_are_refused(name: str, device: Any) -> None:
    with pytest.raises(ValueError, match=name):
        getattr(mg, name)(device.array(np.zeros((0, 3))))


def test_python_numbers_keep_float32(device: Any) -> None:
    x = mg.tensor(device.array(np.ones(3, np.float32)), requires_grad=True)
    for y in (x * 2.0, 2.0 * x, x + 1, 1 - x, x / 3, 3 / x, x**2, 2.0**x, mg.maximum(x, 0.5), mg.where(x > 0, x, 0.0)):
        assert y.dtype == np.float32
    assert (x * np.float64(2)).dtype == np.float64  # NumPy's scalars promote, as in NumPy 2


def test_ties_share_the_gradient() -> None:
    for function, expected in ((mg.maximum, 0.5), (mg.minimum, 0.5)):
        x, y = mg.tensor([1.0], requires_grad=True), mg.tensor([1.0], requires_grad=True)
        function(x, y).sum().backward()
        assert x.grad.item() == y.grad.item() == expected
    for function in (mg.max, mg.min):
        x = mg.tensor([[2.0, 2.0, 2.0, 2.0]], requires_grad=True)
        function(x).backward()
        np.testing.assert_array_equal(x.grad.data, np.full((1, 4), 0.25))


def test_errors_of_concatenate_show_what_was_given() -> None:
    with pytest.raises(
        ValueError, match=r"\(got axis: 1, arrays: \[numpy float64 \(2, 3\), numpy float64 \(3, 3\)\]\)"
    ):
        mg.concatenate([np.ones((2, 3)), np.ones((3, 3))], axis=1)


def test_edges_of_domains() -> None:
    x = mg.tensor([0.0, 0.0], requires_grad=True)
    mg.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 0])
    x.zero_grad()
    mg.abs(x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [0, 0])
    for exponent, slope in ((0, 0.0), (1, 1.0), (2, 0.0), (np.array([0.0, 1.0]), [0, 1])):
        x.zero_grad()
        (x**exponent).sum().backward()
        np.testing.assert_array_equal(x.grad.data, np.broadcast_to(slope, 2))
    x = mg.tensor([-0.5, 0.7, 0.1], requires_grad=True)
    mg.clip(x, -0.5, 0.7).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [1, 1, 1])


def test_extreme_values() -> None:
    big = mg.tensor([[1e4, -1e4, 0.0], [-np.inf, 0.0, 0.0]], requires_grad=True)
    for function in (mg.softmax, mg.log_softmax, mg.logsumexp):
        big.zero_grad()
        out = function(big, axis=-1)
        mg.where(out > -np.inf, out, 0.0).sum().backward()
        assert not np.isnan(out.numpy()).any()
        assert np.isfinite(big.grad.data).all()
    nothing = mg.tensor([-np.inf, -np.inf], requires_grad=True)
    with np.errstate(divide="ignore"):
        out = mg.logsumexp(nothing)
    out.backward()
    assert out.item() == -np.inf
    np.testing.assert_array_equal(nothing.grad.data, [0, 0])


def test_infinite_gradients_do_not_reach_what_was_not_chosen() -> None:
    for chosen in (mg.relu, lambda x: mg.maximum(x, 0.0), lambda x: mg.clip(x, 0.0, 1.0)):
        x = mg.tensor([-1.0, 4.0], requires_grad=True)
        with np.errstate(divide="ignore"):
            mg.sqrt(chosen(x)).sum().backward()
        assert x.grad.data[0] == 0.0


def test_logsumexp_of_infinity_and_nan() -> None:
    for values in ([np.inf, 1.0], [np.nan, 1.0]):
        x = mg.tensor(values, requires_grad=True)
        with np.errstate(invalid="ignore"):
            mg.logsumexp(x).backward()
        assert np.isnan(x.grad.data[0])


def test_float16_counts_beyond_its_range() -> None:
    x = mg.tensor(np.ones(70_000, np.float16), requires_grad=True)
    for function in (mg.mean, mg.max):
        x.zero_grad()
        function(x).backward()
        np.testing.assert_allclose(x.grad.data.astype(float), 1 / 70_000, rtol=0.01)


class OnStack(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 4096),)


@pytest.mark.parametrize("columns", range(1, 20))
def test_what_lies_on_the_stack_gives_no_warnings(columns: int) -> None:
    signalling = OnStack((ctypes.c_uint32 * 4096)(*[0x7FA00000] * 4096))  # NaN in float32 whose use sets a flag
    leave = ctypes.CDLL(None).abs  # an argument passed by value is copied onto the stack, and stays there
    leave.argtypes = [OnStack]
    for rows in range(1, 8):
        x = np.full((rows, columns), 0.5, np.float32)
        for a, axis in ((x, 1), (x.T, 0), (x, 0), (x.T, 1)):
            leave(signalling)
            assert (mg.sum(a, axis=axis).data == a.shape[axis] / 2).all()


def test_integer_bases_and_exponents() -> None:
    y = mg.tensor([3.0], requires_grad=True)
    (np.array([101], np.uint8) ** y).sum().backward()
    assert y.grad.item() == pytest.approx(101**3 * np.log(101), rel=1e-14)
    assert mg.grad(lambda y: mg.grad(lambda x: x**y)(2.0))(0.0).item() == pytest.approx(0.5)


def test_variance_without_degrees_of_freedom() -> None:
    x = mg.tensor([3.0], requires_grad=True)
    with pytest.warns(RuntimeWarning):
        x.var(ddof=1).backward()
    assert np.isnan(x.grad.item())


def test_einsum_refuses_what_numpy_does() -> None:
    for subscripts in ("...i,i->", "...,i->i", "i...,i...->i"):
        with pytest.raises(ValueError, match=r"einsum: .*the output has no \.\.\., for which an operand has axes"):
            mg.einsum(subscripts, np.ones((3, 3)), np.ones(3))
    assert mg.einsum("...i,i->", np.ones(3), np.ones(3)).item() == 3  # it stands for no axes


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "i4", "e"])
@pytest.mark.parametrize("subscripts", ["aij,a->a", "aij,ab->ab", "aij,b->", "a,aij->a", "aij,a,a->a"])
def test_einsum_sums_in_the_dtype_of_the_result(subscripts: str, dtype: str) -> None:
    """NumPy, looking for the best order, would sum over i and j first: "or" of booleans, uint8 that wrap around."""
    lengths = {"a": 3, "b": 2, "i": 40, "j": 50}
    shapes = {term: tuple(lengths[c] for c in term) for term in subscripts.partition("->")[0].split(",")}
    narrow = np.full(shapes["aij"], 100).astype(dtype)
    results = []
    for first, create_graph in ((narrow, False), (narrow, True), (narrow.astype(np.float64), False)):
        x = {term: mg.tensor(np.arange(1.0, 1 + np.prod(shape)).reshape(shape), requires_grad=True)
             for term, shape in shapes.items() if term != "aij"}  # fmt: skip
        terms = subscripts.partition("->")[0].split(",")
        out = mg.einsum(subscripts, *(x.get(term, first) for term in terms))
        (out * out).sum().backward(create_graph=create_graph)
        results.append([out.data, *(t.grad.data for t in x.values())])
    for found in results[:2]:
        for ours, exact in zip(found, results[2], strict=True):
            np.testing.assert_allclose(ours, exact, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "i8", "e"])
def test_bfloat16_beside_other_dtypes(dtype: str) -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x, w = np.ones((2, 3), dtype), mg.tensor(np.full((3, 4), 0.5).astype(bfloat16), requires_grad=True)
    functions = (mg.matmul, mg.linear, mg.linear_relu, mg.linear_gelu, lambda x, w: mg.einsum("ij,jk->ik", x, w))
    for function in functions:
        for create_graph in (False, True):
            w.zero_grad()
            out = function(x, w)
            assert out.dtype in (bfloat16, np.float32, np.float64)
            exact = function(np.ones((2, 3)), np.full((3, 4), 0.5)).data
            np.testing.assert_allclose(out.astype(np.float64).data, exact, rtol=1e-2)
            out.sum().backward(create_graph=create_graph)
            assert w.grad.dtype == bfloat16
    assert (w.T @ np.ones((3, 2), dtype)).astype(np.float64).data.tolist() == [[1.5, 1.5]] * 4


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("dtype", ["?", "u1", "i1"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_norms_of_small_integers_have_one_gradient(has_residual: bool, dtype: str, norm: Any) -> None:
    x = np.array([[100, 90, 3, 0]]).astype(dtype)
    gradients = []
    for create_graph in (False, True):
        w = mg.tensor(np.ones(4), requires_grad=True)
        out = norm(x, w, residual=x if has_residual else None)
        (out * [1.0, 2.0, 3.0, 4.0]).sum().backward(create_graph=create_graph)
        gradients.append(w.grad.data)
    np.testing.assert_allclose(*gradients, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["?", "u1", "u4", "u8", "i1", "i2", "i8"])
def test_integers_in_exponents_do_not_wrap_around(dtype: str) -> None:
    for x in (np.array([0, 1]), np.array([100, 27]), np.array([0, 120])):
        given, exact = x.astype(dtype), x.astype(dtype).astype(np.float64)
        for function in (mg.softmax, mg.log_softmax, mg.logsumexp, lambda x: mg.cross_entropy(x, 1)):
            np.testing.assert_allclose(function(given).data, function(exact).data, rtol=1e-15)


def test_axes_and_indices_that_are_changed_before_backward() -> None:
    rng = np.random.default_rng(0)
    x = mg.tensor(rng.standard_normal((2, 2, 2)), requires_grad=True)
    axes = [1, 2, 0]
    y = mg.transpose(x, axes)
    axes.sort()
    g = rng.standard_normal((2, 2, 2))
    y.backward(g)
    np.testing.assert_array_equal(x.grad.data, g.transpose(2, 0, 1))
    for index in (np.array([0, 0, 1]), [0, 0, 1], mg.tensor([0, 0, 1])):
        x = mg.tensor(np.ones(3), requires_grad=True)
        y = mg.scatter_add(x, index, (3,))
        assert y.data.tolist() == [2, 1, 0]
        (index.data if isinstance(index, mg.Tensor) else index)[:] = [2, 2, 2]  # type: ignore[index]
        y.backward(np.array([1.0, 10.0, 100.0]))
        assert x.grad.data.tolist() == [1, 1, 10]


def test_axes_of_all_kinds() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for function in (mg.sum, mg.mean, mg.max, mg.var, mg.std, mg.logsumexp):
        mg.check_grads(lambda x: function(x, axis=mg.tensor(1)), x)  # type: ignore[arg-type]  # noqa: B023
        for axis in (1.0, "1"):
            with pytest.raises(TypeError, match=function.__name__):
                function(x, axis=axis)  # type: ignore[arg-type]
    for axes in ([1, 0], np.array([1, 0]), mg.tensor([1, 0]), np.argsort([1, 0]), (np.int64(-1), 0)):
        mg.check_grads(lambda x: mg.transpose(x, axes), x)  # type: ignore[arg-type]  # noqa: B023
    mg.check_grads(lambda x: mg.transpose(x, np.array(0)), x[0])  # type: ignore[arg-type]
    for bad in (1.0, [0.0, 1.0], "ab", np.array(1)):
        with pytest.raises((TypeError, ValueError), match="transpose: "):
            mg.transpose(x, bad)  # type: ignore[arg-type]
    mg.check_grads(lambda x: mg.transpose(x, 0), x[0])
    mg.check_grads(lambda x: mg.transpose(x, -1), x[0])
    with pytest.raises(np.exceptions.AxisError, match="stack: axis 3 is out of bounds for a result of 3 axes"):
        mg.stack([x, x], axis=3)
    with pytest.raises(TypeError, match="stack: axis must be an integer, got None"):
        mg.stack([x, x], axis=None)  # type: ignore[arg-type]
    for shape in (2, np.int64(2), [2], (2,)):
        assert mg.scatter_add(np.ones(2), [0, 0], shape).data.tolist() == [2, 0]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="getitem: a bound of a slice must be an integer"):
        mg.tensor(x)[0.5:]  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"getitem: .*inhomogeneous"):
        mg.tensor(x)[[[0], [0, 1]]]


@pytest.mark.parametrize("dtype", ["U3", "S3", "O", "M8[s]", "V8", [("a", "f8")]])
def test_astype_refuses_what_is_not_numeric(dtype: Any) -> None:
    with pytest.raises(TypeError, match="astype: expected a numeric dtype, got"):
        mg.tensor([1.0]).astype(dtype)


def test_masked_indices_are_refused() -> None:
    index = np.ma.masked_array([0, 1], [True, False])
    for call in (lambda: mg.tensor([1.0, 2.0])[index], lambda: mg.scatter_add([1.0, 2.0], index, (2,))):
        with pytest.raises(TypeError, match="an index is a masked array"):
            call()


def test_settings_that_would_lose_a_gradient_are_refused() -> None:
    setting, x = mg.tensor(0.5, requires_grad=True), np.ones((2, 3))
    calls: dict[str, Callable[[], Any]] = {
        "leaky_relu: negative_slope": lambda: mg.leaky_relu(x, setting),
        "scaled_dot_product_attention: scale": lambda: mg.scaled_dot_product_attention(x, x, x, scale=setting),
        "self_attention: scale": lambda: mg.self_attention(x, num_heads=1, scale=setting),
        "dropout: p": lambda: mg.dropout(x, setting, 0),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} must be a number, got tensor"):
            call()
        setting = setting.detach()
        call()
        setting = mg.tensor(0.5, requires_grad=True)
