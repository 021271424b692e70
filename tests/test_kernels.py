"""Compiled kernels against NumPy in float64: values and gradients, at sizes around the thresholds, in any layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.numba_against_numpy import LARGE, SHAPES, SMALL, both, close, normal, normal_cdf, operations

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_compiler, numba_fused  # isort: skip

pytestmark = pytest.mark.usefixtures("numba_kernels")

ELEMENTWISE = ["gelu", "gelu_tanh", "silu"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", operations)
def test_values_and_gradients(name: str, shape: tuple[int, ...], threads: str) -> None:
    ours, reference = both(operations[name], normal(*shape))
    if shape[-1] == 1 and name in ("layer_norm", "log_softmax"):  # exactly 0, and no gradient
        assert np.abs([*ours, *reference]).max() < 1e-6
    else:  # of rows of two that are nearly equal, 1 / deviation is large and takes what rounding left with it
        alone = shape == (SMALL + 1, 1)  # so few, and of each row nothing is left but rounding
        close(ours, reference, 2e-4 if shape[-1] == 2 and name == "layer_norm" else 3e-6 if alone else 2e-6)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_relative_errors_far_from_zero(name: str) -> None:
    """The relative error of e^(-u) is that of its argument, which grows with u. For gelu see numba_gelu."""
    x = np.linspace(-6 if name == "gelu" else -13, 13, 4 * LARGE + 3).astype(np.float32)
    z = x.astype(float)
    u = 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3) if name == "gelu_tanh" else z
    phi = normal_cdf(z) if name == "gelu" else 1 / (1 + np.exp(-u))
    exponent = z**2 if name == "gelu" else (3 if name == "gelu_tanh" else 1) * np.abs(u)
    error = np.abs(operations[name](x).data - z * phi)
    assert (error <= 2**-23 * (2 + exponent * (x < 0)) * np.abs(z * phi) + 1e-37).all()


def test_exp() -> None:
    """Within 1 unit in the last place, or 1.2 where products and sums are not fused."""
    from numba import njit

    from microgradnd.kernels import numba_math

    @njit
    def exp(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = numba_math.exp(x[i])

    x = np.linspace(-87.33, 88, 1 << 20).astype(np.float32)
    out, exact = np.empty_like(x), np.exp(x.astype(np.float64))
    exp(x, out)
    error = np.abs(out - exact) / np.spacing(exact.astype(np.float32))
    assert error.max() < (0.95 if numba_compiler.AVX2 else 1.25)
    special = np.array([0, -87.7, -88, -1e30, -np.inf, np.nan], np.float32)
    exp(special, special)
    np.testing.assert_array_equal(special, [1, 0, 0, 0, 0, np.nan])


def test_gelu_where_it_is_nearly_nothing() -> None:
    x = np.linspace(-20, -6, 4 * LARGE).astype(np.float32)
    expected = x * normal_cdf(x)
    np.testing.assert_allclose(mg.gelu(x).data, expected, rtol=0.01, atol=1e-36)


@pytest.mark.parametrize("name", operations)
def test_layout_in_memory_does_not_matter(name: str) -> None:
    x = normal(130, 128)
    read_only = x.copy()
    read_only.flags.writeable = False
    expected = operations[name](x).data
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1, ::-1].copy()[::-1, ::-1], read_only):
        np.testing.assert_array_equal(operations[name](same).data, expected)


@pytest.mark.parametrize("name", operations)
def test_nan_and_infinity_stay_in_their_place(name: str, threads: str) -> None:
    x = normal(100, 128)
    x[3, 5], x[7, 127], x[50, 0], x[60] = np.nan, np.inf, -np.inf, np.nan
    with np.errstate(all="ignore"):
        for ours, reference in zip(*both(operations[name], x), strict=True):  # the result and the gradient
            np.testing.assert_array_equal(np.isnan(ours), np.isnan(reference))
            finite = np.isfinite(reference)
            np.testing.assert_array_equal(np.isfinite(ours), finite)
            np.testing.assert_allclose(ours[finite], reference[finite], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(ours[np.isinf(reference)], reference[np.isinf(reference)])


@pytest.mark.parametrize("shape", [(SMALL // 2, 3), (300, 40), (4, 30, 101)], ids=str)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_cross_entropy(shape: tuple[int, ...], dtype: Any, threads: str) -> None:
    labels = np.random.default_rng(3).integers(0, shape[-1], shape[:-1]).astype(dtype)
    close(*both(lambda x: mg.cross_entropy(x, labels), normal(*shape)))
    labels[(0,) * labels.ndim] = shape[-1]
    with pytest.raises(IndexError, match="class indices must lie in 0 to"):
        mg.cross_entropy(normal(*shape), labels)


def test_gradient_of_repeated_rows(threads: str) -> None:
    tokens = np.random.default_rng(0).integers(-7, 7, 300)
    close(*both(lambda w: w[tokens] * normal(300, 70, seed=2).astype(w.dtype), normal(7, 70)), 1e-5)


def test_a_model_learns_the_same_with_either_kernels() -> None:
    losses = []
    tokens = np.random.default_rng(0).integers(0, 50, (8, 65))
    for kernels in ("numpy", "numba"):
        with mg.kernels(kernels):
            model = nn.Transformer(50, 64, 4, 2, 64, rng=0)
            optimizer = nn.AdamW(nn.decay_groups(model, 0.1), lr=1e-3)
            losses.append([])
            for _ in range(10):
                loss = nn.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[1][-1] < losses[1][0] - 0.1


def test_second_order_goes_through_the_definitions() -> None:
    x = normal(90, 100)
    for name, f in operations.items():
        results = []
        for kernels in ("numpy", "numba"):
            with mg.kernels(kernels):
                t = mg.tensor(x, requires_grad=True)
                (mg.grad(lambda t, f=f: (f(t) ** 3).sum())(t) * x).sum().backward()
                results.append(t.grad.data)  # type: ignore[union-attr]
        np.testing.assert_allclose(results[1], results[0], rtol=0, atol=2e-4 * np.abs(results[0]).max(), err_msg=name)


@pytest.mark.parametrize("count", [255, 256, 257])
def test_linear_adds_a_large_bias_on_all_threads(count: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the threshold, the same bits: one sum per element."""
    calls, add_bias = [], numba_fused.add_bias
    monkeypatch.setattr(numba_fused, "add_bias", lambda *x: calls.append(1) or add_bias(*x))
    arrays = [normal(count, 3), normal(3, 512, seed=1), normal(1024, seed=2)[::2]]
    arrays[2][5:7] = np.nan, np.inf
    results = []
    for kernels in ("numpy", "numba"):
        with mg.kernels(kernels):
            tensors = [mg.tensor(x, requires_grad=True) for x in arrays]
            out = mg.linear(*tensors)
            out.sum().backward()
            results.append([out.numpy(), *(t.grad.numpy() for t in tensors)])  # type: ignore[union-attr]
    assert len(calls) == (count >= 256)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows", [(4,), (3, 50), (300,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["linear_gelu", "linear_relu"])
def test_linear_and_activation(name: str, bias: bool, rows: tuple[int, ...], threads: str) -> None:
    f = getattr(mg, name)
    arrays = [normal(*rows, 60), normal(60, 90, seed=1, scale=0.3), *([normal(90, seed=2)] if bias else [])]
    close(*both(f, *arrays), 5e-6)
    with pytest.raises(ValueError, match=f"{name}: weight must have two axes"):
        f(arrays[0], arrays[1], normal(1))


@pytest.mark.parametrize("name", ["linear_gelu", "linear_relu"])
def test_products_without_elements(name: str) -> None:
    for shapes in (((300, 32), (32, 0)), ((0, 5), (5, 4)), ((300, 0), (0, 400))):
        x, weight = (mg.tensor(np.ones(shape, np.float32), requires_grad=True) for shape in shapes)
        out = getattr(mg, name)(x, weight)
        out.sum().backward()
        assert out.shape == (shapes[0][0], shapes[1][1])
        for t in (x, weight):
            np.testing.assert_array_equal(t.grad.data, np.zeros(t.shape))  # type: ignore[union-attr]


def test_relu_of_infinity_and_nan() -> None:
    x = normal(300, 4)
    x[3], x[5], x[7] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        ours, reference = (mg.linear_relu(y, np.eye(4, dtype=y.dtype) * 0.5).data for y in (x, x.astype(np.float64)))
    np.testing.assert_allclose(ours, reference, rtol=1e-6)


def test_swiglu(threads: str) -> None:
    close(*both(mg.swiglu, normal(7, 11, 120), normal(7, 11, 120, seed=1)))


def test_rows_out_of_bounds_are_refused() -> None:
    for index in (10, -11, 10**8):
        with pytest.raises(IndexError, match="out of bounds for an axis of length 10"):
            mg.scatter_add(normal(200, 64), np.full(200, index), (10, 64))


def test_labels_may_be_changed_after_the_loss() -> None:
    x, labels = mg.tensor(normal(1000, 16), requires_grad=True), np.zeros(1000, np.intp)
    loss = nn.cross_entropy(x, labels)
    labels[:] = 20
    loss.backward()
    with mg.kernels("numpy"):
        y = mg.tensor(x.data.copy(), requires_grad=True)
        nn.cross_entropy(y, np.zeros(1000, np.intp)).backward()
    np.testing.assert_allclose(x.grad.data, y.grad.data, rtol=0, atol=1e-8)  # type: ignore[union-attr]


def test_swiglu_whose_gate_broadcasts() -> None:
    close(*both(mg.swiglu, normal(SMALL + 1, 1), normal(1, 3, seed=1)), 1e-5)
