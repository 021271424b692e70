"""Comparing what CuPy computes with what NumPy does."""

import numpy as np


def to_host(value):
    if isinstance(value, (tuple, list)):
        return type(value)(to_host(part) for part in value)
    return value.get() if hasattr(value, "get") else value


def assert_same(actual, expected):
    """The same value, dtype and shape; values to a few units in the last place."""
    actual, expected = to_host(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.dtype.kind in "fc":
        tolerance = 50 * np.finfo(expected.dtype).eps
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(actual, expected)


def check(cp, function, *arrays):
    """`function(xp, *arrays)` gives the same with CuPy as with NumPy."""
    assert_same(function(cp, *(cp.asarray(array) for array in arrays)), function(np, *arrays))


def sample(rng, shape, dtype):
    """Numbers for which every operation below is well conditioned."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(1, 9, shape).astype(dtype)
    real = rng.uniform(0.5, 2.0, shape)
    return (real + 1j * rng.uniform(0.5, 2.0, shape) if dtype.kind == "c" else real).astype(dtype)
