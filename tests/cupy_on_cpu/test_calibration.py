"""Is the stand-in right? CuPy on the CPU against NumPy: elementwise functions, reductions, products.

What is proven with the stand-in elsewhere in the suite rests on the tests in this folder.
"""

import numpy as np
import pytest

from tests.cupy_on_cpu.comparing import assert_same, check, sample

# ---- elementwise


ARITHMETIC = {
    "add": lambda xp, x, y: x + y,
    "subtract": lambda xp, x, y: x - y,
    "multiply": lambda xp, x, y: x * y,
    "divide": lambda xp, x, y: x / y,
    "power": lambda xp, x, y: x**2,
    "negative": lambda xp, x, y: -x,
    "equal": lambda xp, x, y: x == y,
    "where": lambda xp, x, y: xp.where(x == y, x, y + 1),
}
DTYPES = ["float16", "float32", "float64", "complex128", "int64"]
REAL_FUNCTIONS = [
    "exp",
    "log",
    "sqrt",
    "tanh",
    "sin",
    "cos",
    "arctan",
    "sinh",
    "log1p",
    "expm1",
    "abs",
    "sign",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", ARITHMETIC)
def test_arithmetic(cp, rng, operation, dtype):
    check(cp, ARITHMETIC[operation], sample(rng, (3, 4), dtype), sample(rng, (3, 4), dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REAL_FUNCTIONS)
def test_functions_of_reals(cp, rng, name, dtype):
    check(cp, lambda xp, x: getattr(xp, name)(x), sample(rng, (3, 4), dtype))


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "abs", "conj", "real", "angle"])
def test_functions_of_complex_numbers(cp, rng, name):
    check(cp, lambda xp, z: getattr(xp, name)(z), sample(rng, (3, 4), "complex128"))


@pytest.mark.parametrize(
    "operation",
    [
        lambda xp, x, y: x & y,
        lambda xp, x, y: x | ~y,
        lambda xp, x, y: xp.logical_xor(x, y),
        lambda xp, x, y: x.sum(axis=0),
        lambda xp, x, y: xp.where(x, 1.0, 2.0),
        lambda xp, x, y: x.any(axis=1),
    ],
)
def test_bool(cp, rng, operation):
    check(cp, operation, sample(rng, (5, 6), "bool"), sample(rng, (5, 6), "bool"))


@pytest.mark.parametrize("shapes", [((3, 4), (4,)), ((3, 1), (1, 4)), ((2, 1, 4), (3, 1)), ((), (3,)), ((1,), (0,))])
def test_broadcasting(cp, rng, shapes):
    x, y = (sample(rng, shape, "float64") for shape in shapes)
    check(cp, lambda xp, x, y: x * y + x, x, y)


def test_strided_views(cp, rng):
    x = sample(rng, (6, 8), "float32")
    check(cp, lambda xp, x: x[::-2, 1::3].T + 1, x)
    check(cp, lambda xp, x: xp.moveaxis(x.reshape(2, 3, 8), 0, 2).copy(), x)


def test_maximum_and_minimum_keep_nan(cp):
    x, y = np.array([1.0, np.nan, 3.0]), np.array([2.0, 2.0, np.nan])
    check(cp, lambda xp, x, y: xp.maximum(x, y), x, y)
    check(cp, lambda xp, x, y: xp.minimum(x, y), x, y)


# ---- reductions


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("name", ["sum", "max", "min", "mean", "prod"])
def test_reductions(cp, rng, name, dtype, axis):
    check(cp, lambda xp, x: getattr(x, name)(axis=axis), sample(rng, (3, 5, 2), dtype))


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("name", ["argmax", "argmin", "var", "std", "cumsum", "all"])
def test_reductions_along_one_axis(cp, rng, name, axis):
    check(cp, lambda xp, x: getattr(x, name)(axis=axis), rng.standard_normal((6, 7)))


@pytest.mark.parametrize("shape", [(1, 1), (1000, 3), (3, 1000), (257, 129), (70_000,)])
def test_sums_of_many_blocks(cp, rng, shape):
    integers = rng.integers(-1000, 1000, shape)
    check(cp, lambda xp, x: x.sum(axis=-1), integers)
    check(cp, lambda xp, x: x.sum(axis=0), integers)


def test_keepdims_ddof_and_nan(cp, rng):
    x = rng.standard_normal((4, 5))
    check(cp, lambda xp, x: x.var(axis=1, ddof=1, keepdims=True), x)
    x[1, 2] = np.nan
    check(cp, lambda xp, x: x.max(axis=0), x)
    check(cp, lambda xp, x: x.argmax(axis=1), x)


# ---- linear algebra


PRODUCTS = {
    "matrix": ("ij,jk->ik", (3, 4), (4, 5)),
    "transposed": ("ji,kj->ik", (4, 3), (5, 4)),
    "vector": ("ij,j->i", (3, 4), (4,)),
    "inner": ("i,i->", (6,), (6,)),
    "batched": ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    "broadcast": ("bij,jk->bik", (2, 3, 4), (4, 5)),
    "outer": ("i,j->ij", (3,), (4,)),
    "attention": ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
    "nothing to add up": ("ij,jk->ik", (3, 0), (0, 5)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_einsum(cp, rng, product, dtype):
    subscripts, left, right = PRODUCTS[product]
    x, y = sample(rng, left, dtype), sample(rng, right, dtype)
    check(cp, lambda xp, x, y: xp.einsum(subscripts, x, y), x, y)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128", "int64"])
@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (4, 5)),
    ],
)
def test_matmul(cp, rng, shapes, dtype):
    x, y = (sample(rng, shape, dtype) for shape in shapes)
    if dtype == "float16":  # NumPy adds up in float16, a GPU in float32
        exact = (x.astype("float32") @ y.astype("float32")).astype(dtype)
        assert_same(cp.asarray(x) @ cp.asarray(y), exact)
        return
    check(cp, lambda xp, x, y: x @ y, x, y)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dot_and_tensordot(cp, rng, dtype):
    x, y = sample(rng, (2, 3, 4), dtype), sample(rng, (4, 3, 5), dtype)
    check(cp, lambda xp, x, y: xp.tensordot(x, y, axes=([1, 2], [1, 0])), x, y)
    check(cp, lambda xp, x, y: xp.dot(x[0], y[:, 0]), x, y)
    check(cp, lambda xp, x, y: xp.dot(x[0].T, x[1]), x, y)
    check(cp, lambda xp, x, y: xp.outer(x[0, 0], y[0, 0]), x, y)


def test_matmul_into_an_array(cp, rng):
    x, y = sample(rng, (3, 4), "float32"), sample(rng, (4, 5), "float32")
    out = cp.full((3, 5), cp.nan, "float32")
    cp.matmul(cp.asarray(x), cp.asarray(y), out=out)
    assert_same(out, x @ y)
