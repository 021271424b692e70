"""CuPy on the CPU against NumPy: indexing, joining, sorting, and shapes at the edge."""

import numpy as np
import pytest

from tests.cupy_on_cpu.comparing import assert_same, check, sample


@pytest.mark.parametrize(
    "operation",
    [
        lambda xp, x, i: x[i],
        lambda xp, x, i: x[:, i % 3],
        lambda xp, x, i: x[i, i % 3],
        lambda xp, x, i: xp.take(x, i, axis=0),
        lambda xp, x, i: xp.take_along_axis(x, i[:5, None] % 3, 1),
        lambda xp, x, i: x[x > 1],
        lambda xp, x, i: xp.concatenate([x, x[i]], axis=0),
        lambda xp, x, i: xp.stack([x, 2 * x], axis=1),
        lambda xp, x, i: xp.pad(x, ((1, 0), (0, 2))),
        lambda xp, x, i: xp.nonzero(x > 1)[0],
        lambda xp, x, i: xp.unique(i),
        lambda xp, x, i: xp.tril(x),
        lambda xp, x, i: xp.eye(3)[i % 3],
    ],
)
def test_indexing(cp, rng, operation):
    check(cp, operation, sample(rng, (5, 3), "float64"), np.array([4, 0, 0, 2, 3, 4]))


@pytest.mark.filterwarnings("ignore:.*scatter_add.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_scatter_add_with_duplicate_indices(cp, rng, dtype):
    import cupyx

    # Small whole numbers: the order in which they are added up changes nothing.
    values, indices = rng.integers(0, 5, 200).astype(dtype), rng.integers(0, 4, 200)
    expected = np.zeros(4, dtype)
    np.add.at(expected, indices, values)
    for add_at in (cupyx.scatter_add, cp.add.at):
        actual = cp.zeros(4, dtype)
        add_at(actual, cp.asarray(indices), cp.asarray(values))
        assert_same(actual, expected)


def test_set_items(cp, rng):
    def assign(xp, x):
        x = x.copy()
        x[1] = 7
        x[:, 2] *= 2
        x[x < 1] = 0
        x[xp.asarray([0, 3])] = -1
        return x

    check(cp, assign, sample(rng, (4, 5), "float32"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_sort_and_argsort(cp, rng, axis, dtype):
    x = sample(rng, (5, 40), dtype)
    check(cp, lambda xp, x: xp.sort(x, axis=axis), x)
    expected = np.argsort(x, axis=axis, kind="stable")
    assert_same(cp.argsort(cp.asarray(x), axis=axis), expected)


def test_lexsort(cp, rng):
    check(cp, lambda xp, keys: xp.lexsort(keys), rng.integers(0, 3, (2, 30)))


# ---- shapes at the edge


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 4), (1, 1)])
def test_zero_dimensional_and_empty(cp, rng, shape):
    x = sample(rng, shape, "float32")
    check(cp, lambda xp, x: xp.exp(x) + 1, x)
    check(cp, lambda xp, x: x.sum(), x)
    check(cp, lambda xp, x: xp.concatenate([x.reshape(-1), x.reshape(-1)]), x)
    if x.ndim == 2:
        check(cp, lambda xp, x: x @ x.T, x)
        check(cp, lambda xp, x: x.sum(axis=0), x)


def test_reductions_give_device_arrays(cp):
    total = cp.ones(3).sum()
    assert isinstance(total, cp.ndarray)
    assert total.shape == ()
    assert float(total) == 3
