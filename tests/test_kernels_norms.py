"""Compiled norms against NumPy in float64: of sums, with parameters, of rows far from zero or unlike themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.numba_against_numpy import SHAPES, both, close, normal

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_norms  # isort: skip

pytestmark = pytest.mark.usefixtures("numba_kernels")


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_with_parameters(name: str, threads: str) -> None:
    arguments = [normal(5, 41, 70), *(normal(70, seed=i) for i in (1, 2))][: 3 if name == "layer_norm" else 2]
    close(*both(getattr(mg, name), *arguments), 1e-5)


def test_layer_norm_of_equal_numbers_is_nearly_zero() -> None:
    for value in (100.1, 10000.1):
        assert np.abs(mg.layer_norm(np.full((20, 768), value, np.float32)).data).max() < 1e-6 * value


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("through", ["a leaf", "a sum", "float16"])
def test_gradients_of_norms_are_added_to_those_of_residual_connections(norm: Any, through: str, threads: str) -> None:
    """In the kernel; y = x + 2 norm(x) and more, where x gets its first gradient before, and after, the norm's."""

    def f(x: mg.Tensor, weight: mg.Tensor) -> mg.Tensor:
        h = x + 1 if through == "a sum" else x.astype(np.float16) if through == "float16" else x
        early = h * h  # its gradient comes last
        with mg.autocast(np.float16 if through == "float16" else None):
            scaled = norm(h, weight) * 2
        return (early + scaled + h * 3).astype(x.dtype)

    close(*both(f, normal(131, 70), normal(70, seed=1)), 2e-3 if through == "float16" else 1e-5)


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_norms_of_sums(norm: Any, shape: tuple[int, ...], threads: str) -> None:
    """In one kernel, with the bits of the norm of a sum, and the gradient for both summands, which are used again."""
    arrays = [normal(*shape), normal(*shape, seed=3, scale=0.5), normal(shape[-1], seed=2)]

    def f(x: mg.Tensor, residual: mg.Tensor, weight: mg.Tensor, fused: bool = True) -> mg.Tensor:
        y = norm(x, weight, residual=residual) if fused else norm(x + residual, weight)
        return y * y + x * 3 + residual

    ours, reference = both(f, *arrays)
    apart, _ = both(lambda *xs: f(*xs, fused=False), *arrays)
    assert ours[0].tobytes() == apart[0].tobytes()
    if shape[-1] > 2:  # see test_values_and_gradients
        close(ours, reference, 1e-5)
    strided = np.repeat(arrays[0], 2, axis=-1)[..., ::2]
    np.testing.assert_array_equal(
        norm(strided, arrays[2], residual=arrays[1]).data, norm(*arrays[::2], residual=arrays[1]).data
    )


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
def test_sums_of_narrow_floats_are_computed_in_float32(norm: Any) -> None:
    x = np.array([[60000, 1, 2, 3]], np.float16)
    out = norm(x, residual=x)
    assert out.dtype == np.float16
    np.testing.assert_array_equal(out.data, norm(x.astype(np.float32) * 2).data.astype(np.float16))


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_gradients_of_sums_of_narrow_floats(norm: Any, name: str) -> None:
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it comes with the extra bfloat16")
    dtype = np.dtype(name)
    x, residual, g = (normal(97, 128, seed=i).astype(dtype) for i in range(3))
    gradients = []
    for wide in (False, True):
        tensors = [mg.tensor(a.astype(np.float32) if wide else a, requires_grad=True) for a in (x, residual)]
        norm(tensors[0], residual=tensors[1]).backward(g.astype(np.float32) if wide else g)
        gradients.append([t.grad.data.astype(np.float32) for t in tensors])  # type: ignore[union-attr]
        assert [t.grad.dtype for t in tensors] == [t.dtype for t in tensors]  # type: ignore[union-attr]
    np.testing.assert_allclose(*gradients, rtol=2**-7 if name == "bfloat16" else 2**-10, atol=1e-3)


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("shape", [(96, 128), (128,), (1, 96, 128), (96, 1)])
def test_norms_of_sums_refuse_other_shapes(norm: Any, shape: tuple[int, ...]) -> None:
    x, residual = normal(97, 128), normal(*shape)
    with pytest.raises(ValueError, match="residual must have the shape of x"):
        norm(x, residual=residual)


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
def test_gradients_of_weights_alone(norm: Any, threads: str) -> None:
    x = normal(131, 70)
    close(*both(lambda weight: norm(x.astype(weight.dtype), weight), normal(70, seed=1)), 1e-5)


@pytest.mark.parametrize("n", [700, 100_000])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
def test_layer_norm_of_rows_far_from_zero(offset: float, n: int, threads: str) -> None:
    """Beside float64: as exact as the numbers themselves are; and constant rows give the bias alone."""
    x = (normal(16, n) + np.float32(offset)).astype(np.float32)
    x[3] = x[3, 0]
    x[4:] = np.float32(offset) + np.spacing(np.float32(offset)) * (x[4:] > offset)  # deviations of one digit
    wide = x.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5)
    with mg.kernels("numba"):
        out = mg.layer_norm(mg.tensor(x)).numpy()
    np.testing.assert_allclose(out, expected, atol=2e-6 if n < 1000 else 1e-3, rtol=1e-5 if n < 1000 else 1e-3)


@pytest.mark.parametrize(("first", "n"), [(0.01, 100_000), (0.1, 1000), (1e8, 1000), (1e18, 1000)])
def test_layer_norm_of_rows_whose_first_numbers_are_unlike_the_others(first: float, n: int, threads: str) -> None:
    """Their mean is a bad guess of the row's: by less than a deviation, by several, or in rows of few numbers.

    Many numbers that are all equal are added up inexactly, and of huge ones less a bad guess squares are infinite: then
    only a second guess is good enough.
    """
    x = normal(20, n)
    x[:, : numba_norms.FEW] += np.float32(first)
    x[7], x[8], x[8, : numba_norms.FEW] = first, 0, first
    close(*both(lambda x: mg.layer_norm(x) * normal(20, n, seed=1), x), 5e-6)


def test_layer_norm_of_huge_constant_rows(threads: str) -> None:
    """What rounding leaves of their mean is too large to be squared; the gradient is that of any constant row."""
    g = normal(200, 300)
    for value in (1.0, 1e24, 1e30):
        ours, reference = both(lambda x: mg.layer_norm(x) * g, np.full((200, 300), value, np.float32))
        assert np.abs(reference[1]).max() > 100
        close(ours, reference)


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_layer_norm_far_from_zero(mean: float, threads: str) -> None:
    x = (normal(100, 256, scale=1) + np.float32(mean)).astype(np.float32)
    close(*both(mg.layer_norm, x), 3e-6)


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_gradients_of_norms_of_large_numbers(name: str) -> None:
    x, g = normal(100, 100) * np.float32(1e10), normal(100, 100, seed=1) * np.float32(1e30)
    gradients = []
    for dtype in (np.float32, np.float64):
        t = mg.tensor(x.astype(dtype), requires_grad=True)
        getattr(mg, name)(t).backward(g.astype(dtype))
        gradients.append(t.grad.data)  # type: ignore[union-attr]
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-5 * np.abs(gradients[1]).max())
