"""CUDA kernels of cross-entropy, of layers with their activation, and of sums over rows, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd.kernels import kernels_for
from tests.against_numpy import both, close, normal

pytestmark = pytest.mark.usefixtures("cupy")

DTYPES = ["float16", "float32", "float64"]


@pytest.mark.parametrize("shape", [(300, 3), (9, 40), (2, 3, 257), (2, 1024), (4, 1), (3, 5003)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy(shape: tuple[int, ...], dtype: str) -> None:
    import cupy

    labels = np.random.default_rng(3).integers(0, shape[-1], shape[:-1])

    def f(x: mg.Tensor) -> mg.Tensor:
        return mg.cross_entropy(x, labels if type(x.data) is np.ndarray else cupy.asarray(labels))

    close(*both(f, normal(*shape, dtype=dtype)), 2)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_labels_of_every_dtype(dtype: str) -> None:
    import cupy

    x, labels = cupy.asarray(normal(40, 50)), np.random.default_rng(3).integers(0, 50, 40)
    strided = cupy.repeat(cupy.asarray(labels.astype(dtype)), 2)[::2]
    expected = mg.cross_entropy(x.get(), labels).data
    np.testing.assert_allclose(mg.cross_entropy(x, strided).data.get(), expected, rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 7, 1 << 40])
def test_labels_out_of_range_give_nan_without_waiting(label: int, counted: Any) -> None:
    import cupy

    x = mg.tensor(cupy.asarray(normal(9, 7)), requires_grad=True)
    labels = cupy.zeros(9, np.int64)
    labels[4] = label
    with counted() as cost:
        loss = mg.cross_entropy(x, labels)
        loss.backward()
    assert cost.is_quiet()
    assert np.isnan(loss.data.get())
    np.testing.assert_array_equal(np.isnan(x.grad.data.get()).all(axis=1), np.arange(9) == 4)  # type: ignore[union-attr]
    assert np.isfinite(np.delete(x.grad.data.get(), 4, axis=0)).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_out_of_range_are_refused_by_array_functions(label: int) -> None:
    import cupy

    with mg.kernels("numpy"), pytest.raises(IndexError, match="class indices must lie in 0 to 6"):
        mg.cross_entropy(cupy.asarray(normal(3, 7)), cupy.asarray([0, label, 1]))


def test_cross_entropy_refuses_labels_of_another_kind() -> None:
    import cupy

    x = cupy.asarray(normal(9, 7))
    with pytest.raises(TypeError, match="class indices must be integers"):
        mg.cross_entropy(x, cupy.zeros(9))
    with pytest.raises(ValueError, match="targets are either class indices"):
        mg.cross_entropy(x, cupy.zeros(8, int))
    with pytest.raises(TypeError, match="arrays on different devices"):
        mg.cross_entropy(x, np.zeros(9, int))


LAYERS: dict[str, Callable[..., mg.Tensor]] = {
    "relu": mg.linear_relu,
    "gelu": mg.linear_gelu,
    "gelu_tanh": lambda *x: mg.linear_gelu(*x, approximate="tanh"),
}


@pytest.mark.parametrize("shape", [(1, 3, 5), (2, 4, 16, 32), (300, 8, 24)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_activation(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    *leading, inputs, outputs = shape
    x = normal(*leading, inputs, dtype=dtype, scale=1)
    weight, bias = normal(inputs, outputs, seed=1, dtype=dtype, scale=0.5), normal(outputs, seed=2, dtype=dtype)
    close(*both(LAYERS[name], x, weight, bias), 4)  # float16 is rounded after the product, after the bias, after gelu
    if name != "relu":
        close(*both(lambda x, w: LAYERS[name](x, w, None), x, weight), 4)


def test_relu_keeps_nan_and_masks_infinite_gradients() -> None:
    import cupy

    x, w, b = (mg.tensor(cupy.asarray(a), requires_grad=True) for a in (normal(2, 3), normal(3, 4), normal(4)))
    x.data[0, 0] = np.nan
    out = mg.linear_relu(x, w, b)
    assert np.isnan(out.data[0].get()).all()
    out = mg.relu(mg.tensor(cupy.asarray([-1.0, 1.0]), requires_grad=True))
    assert kernels_for(out.data).relu_gradient(cupy.asarray([np.inf, np.inf]), out.data).tolist() == [0, np.inf]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 70])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 127, 128, 255, 256, 257, 1000])
def test_sums_over_rows(rows: int, n: int) -> None:
    """From 256 rows on they are cut into parts."""
    import cupy

    from microgradnd.kernels.cupy_columns import column_sums

    for dtype in ("float32", "float64"):
        g, x = normal(rows, n, dtype=dtype), normal(rows, n, dtype=dtype, seed=1)
        mean, scale = normal(rows, dtype=dtype, seed=2), normal(rows, dtype=dtype, seed=3)
        wide = (x.astype(float) - x[:, :1] - mean[:, None]) * scale[:, None]
        terms = {
            "plain": [g.astype(float)],
            "layer": [g * wide, g.astype(float)],
            "rms": [g * x.astype(float) * scale[:, None]],
        }
        on_device = [cupy.asarray(a) for a in (x, mean, scale)]
        for kind, expected in terms.items():
            found = column_sums(kind, cupy.asarray(g), n, *on_device)
            for a, b in zip(found, expected, strict=True):
                atol = 4 * np.finfo(dtype).eps * np.abs(b).sum(axis=0).max()
                np.testing.assert_allclose(a.get(), b.sum(axis=0), rtol=0, atol=atol)


def test_no_columns_and_no_outputs() -> None:
    import cupy

    for f in (mg.linear_relu, mg.linear_gelu):
        x, w, b = (mg.tensor(cupy.ones(shape, np.float32), requires_grad=True) for shape in ((5, 3), (3, 0), (0,)))
        out = f(x, w, b)
        assert out.shape == (5, 0)
        out.sum().backward()
        assert b.grad is not None
        assert b.grad.shape == (0,)
        assert not x.grad.data.any()  # type: ignore[union-attr]
