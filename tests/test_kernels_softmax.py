"""Softmax of wide rows by a kernel, which guesses what to subtract and looks for the largest element afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.numba_against_numpy import normal

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_kernels  # isort: skip

WIDTHS = [300, numba_kernels.LOOKED_AT, numba_kernels.LOOKED_AT + 1, 2048]
# How far the largest element is above the others: around what the guess may be wrong by, what e^x is computed for, and
# where the exponent of a float wraps around, once and twice.
HEIGHTS = [0, 7, 30, 55, 63.5, 65, 80, 87, 89, 100, 128, 180, 270, 1e4, 1e30]


ERROR = 5e-7  # relative, of probabilities that are not small


def softmax(x: Any) -> Any:
    with mg.kernels("numba"):
        return mg.softmax(x).data


def reference(x: Any) -> Any:
    z = x.astype(float)
    with np.errstate(invalid="ignore"):
        e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("around", [0, -3, 4, -50, 50, 1000, -1e5])
@pytest.mark.parametrize("n", WIDTHS)
def test_a_large_element_anywhere(n: int, around: float) -> None:
    places = [0, numba_kernels.LOOKED_AT - 1, n // 2, n - 1]
    x = np.concatenate([normal(len(HEIGHTS), n) + np.float32(around) for _ in places])
    for row, (place, height) in enumerate((place, height) for place in places for height in HEIGHTS):
        x[row, place] = np.float32(around + height)
    p, expected = softmax(x), reference(x)
    assert np.abs(p.sum(axis=-1) - 1).max() < 1e-6
    for above, error in ((1e-3, 2e-6), (1e-15, 5e-6), (1e-30, 1e-5)):
        seen = expected > above
        assert (np.abs(p - expected)[seen] / expected[seen]).max() < error
    assert p[expected < 1e-37].max(initial=0) < 2e-37


@pytest.mark.parametrize("height", [1, 3.9, 7.5, 12, 29, 61])
@pytest.mark.parametrize("around", [-160, -63.3, -30.1, -8, -3.7, 0, 4.2, 11.3, 100.7])
def test_several_large_elements_far_above_the_guess(around: float, height: float) -> None:
    """Each has a share that the rounding of its distance from the guess, another one for each, would show in."""
    x = (normal(20, 1000, scale=0.5) + around).astype(np.float32)
    x[:, 500:510] = around + height + normal(20, 10, seed=1, scale=0.5)
    p, expected = softmax(x), reference(x)
    seen = expected > 1e-3
    assert (np.abs(p - expected)[seen] / expected[seen]).max() < ERROR


@pytest.mark.parametrize("n", WIDTHS)
def test_a_row_alone_decides_its_bits(n: int) -> None:
    x = np.repeat(normal(5, n, scale=6), 60, axis=0)
    x[::7, -1] = 500
    p = softmax(x)
    for r in (0, 1, 7, 59, 60, 150, 299):
        np.testing.assert_array_equal(p[r], softmax(np.repeat(x[r : r + 1], 3, axis=0))[1])


@pytest.mark.parametrize("n", WIDTHS)
def test_what_is_not_finite(n: int) -> None:
    x = normal(8, n)
    x[0, 0] = x[1, -1] = np.nan
    x[2, 0] = x[3, -1] = np.inf
    x[4] = -np.inf
    x[5, :-1] = -np.inf
    x[6, : n - 3] = -np.inf
    x[7, n // 2 :] = -np.inf
    p, expected = softmax(x), reference(x)
    assert np.isnan(expected[:5]).all()
    np.testing.assert_allclose(p, expected, rtol=2e-6)
    assert p[5, -1] == 1
    assert (p[5:][x[5:] == -np.inf] == 0).all()
