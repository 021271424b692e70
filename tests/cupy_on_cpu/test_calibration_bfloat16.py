"""Is the stand-in right about bfloat16? CuPy on the CPU against float32, rounded once."""

import numpy as np
import pytest

from tests.cupy_on_cpu.comparing import sample

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
BFLOAT16 = np.dtype("bfloat16")

ELEMENTWISE = {
    "add": lambda xp, x, y: x + y,
    "multiply": lambda xp, x, y: x * y,
    "divide": lambda xp, x, y: x / y,
    "negative": lambda xp, x, y: -x,
    "maximum": lambda xp, x, y: xp.maximum(x, y),
    "exp": lambda xp, x, y: xp.exp(x),
    "log": lambda xp, x, y: xp.log(x),
    "sqrt": lambda xp, x, y: xp.sqrt(x),
    "tanh": lambda xp, x, y: xp.tanh(x),
    "sum": lambda xp, x, y: x.sum(),
    "sum along an axis": lambda xp, x, y: x.sum(axis=0),
    "max": lambda xp, x, y: x.max(axis=1),
    "mean": lambda xp, x, y: x.mean(axis=1),
    "matmul": lambda xp, x, y: x @ y.T,
    "transposed": lambda xp, x, y: x.T @ y,
    "vector": lambda xp, x, y: x @ y[0],
}


def assert_rounded(actual, exact):
    """bfloat16 numbers next to ``exact``: within half a unit of their eight bits, but for rounding in float32."""
    assert actual.dtype == BFLOAT16
    np.testing.assert_allclose(actual.get().astype(np.float64), exact, rtol=1.001 * 2.0**-8)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_results_are_rounded_once(cp, rng, name):
    x, y = (sample(rng, (50, 70), "float32").astype(BFLOAT16) for _ in range(2))
    exact = ELEMENTWISE[name](np, x.astype(np.float64), y.astype(np.float64))
    assert_rounded(ELEMENTWISE[name](cp, cp.asarray(x), cp.asarray(y)), exact)


def test_casts_round_to_even_as_on_the_host(cp, rng):
    bits = rng.integers(0, 2**32, 5000, dtype=np.uint32)
    x = np.append(bits.view(np.float32), np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1 + 2**-8, 3e38], np.float32))
    with np.errstate(all="ignore"):
        expected = x.astype(BFLOAT16)
    found = cp.asarray(x).astype(BFLOAT16)
    finite = ~np.isnan(x)
    np.testing.assert_array_equal(found.get().view(np.uint16)[finite], expected.view(np.uint16)[finite])
    assert np.isnan(found.get().astype(np.float32)[~finite]).all()
    np.testing.assert_array_equal(found.astype("float32").get()[finite], expected.astype(np.float32)[finite])


def test_what_is_infinite_and_what_is_no_number(cp):
    x = np.array([1.0, np.inf, -np.inf, np.nan]).astype(BFLOAT16)
    for name in ("isnan", "isinf", "isfinite"):
        np.testing.assert_array_equal(getattr(cp, name)(cp.asarray(x)).get(), getattr(np, name)(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_add_up_in_float32(cp, dtype):
    ones = cp.ones((3, 5000), np.dtype(dtype))
    product = ones @ ones.T
    assert product.dtype == ones.dtype
    np.testing.assert_array_equal(product.get(), np.full((3, 3), 5000).astype(np.dtype(dtype)))


def test_batches_have_no_product(cp):
    """CuPy 14.2 itself refuses them, before it comes to cuBLAS: what works around that can go when this fails."""
    x = cp.ones((2, 3, 3), BFLOAT16)
    with pytest.raises(TypeError, match="'E'"):
        cp.matmul(x, x)
    with pytest.raises(TypeError, match="'E'"):
        cp.einsum("ij,jk->ik", x[0], x[1])
