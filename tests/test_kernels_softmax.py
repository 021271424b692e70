"""Softmax by a kernel, where elements are far apart or not finite; no divisions of all elements of a row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.numba_against_numpy import normal

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_kernels, numba_norms  # isort: skip
from microgradnd.kernels.numba_parts import Kernel  # isort: skip

WIDTHS = [9, 300, 2048]
# How far an element is above the others: around what e^x is computed for, and where the exponent of a float wraps
# around, once and twice.
HEIGHTS = [0, 7, 30, 63.5, 80, 87, 89, 100, 128, 180, 270, 1e4, 1e30]
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
    places = [0, n // 2, n - 1]
    x = np.concatenate([normal(len(HEIGHTS), n) + np.float32(around) for _ in places])
    for row, (place, height) in enumerate((place, height) for place in places for height in HEIGHTS):
        x[row, place] = np.float32(around + height)
    p, expected = softmax(x), reference(x)
    assert np.abs(p.sum(axis=-1) - 1).max() < 1e-6
    for above, error in ((1e-3, ERROR), (1e-15, 5e-6), (1e-30, 1e-5)):
        seen = expected > above
        assert (np.abs(p - expected)[seen] / expected[seen]).max() < error
    assert p[expected < 1e-38].max(initial=0) < 2e-38


@pytest.mark.parametrize("height", [1, 7.5, 29, 61])
@pytest.mark.parametrize("around", [-160, -63.3, -8, -3.7, 0, 4.2, 100.7])
def test_several_large_elements_far_above_the_others(around: float, height: float) -> None:
    """Each has a share that the rounding of its distance from what is subtracted would show in."""
    x = (normal(20, 1000, scale=0.5) + around).astype(np.float32)
    x[:, 500:510] = around + height + normal(20, 10, seed=1, scale=0.5)
    p, expected = softmax(x), reference(x)
    seen = expected > 1e-3
    assert (np.abs(p - expected)[seen] / expected[seen]).max() < ERROR


@pytest.mark.parametrize("n", WIDTHS)
def test_what_is_not_finite(n: int) -> None:
    x = normal(40, n)
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


@pytest.mark.parametrize(
    "kernel",
    [
        numba_kernels.softmax,
        numba_kernels.cross_entropy_gradient,
        numba_norms.layer_norm_gradient,
        numba_norms.rms_norm_gradient,
    ],
    ids=lambda kernel: kernel.__name__,
)
def test_rows_are_multiplied_with_a_quotient(kernel: Kernel) -> None:
    """Of x * (1 / t) LLVM makes x / t wherever it may: a division of each vector instead of one of each row."""
    matrix, row, labels = np.ones((20, 40), np.float32), np.ones(20, np.float32), np.arange(20)
    weight, parts = np.ones(40, np.float32), np.empty((4, 40), np.float32)
    arguments = {
        "softmax": (matrix, matrix.copy()),
        "cross_entropy_gradient": (np.float32(1), matrix, labels, row, row, matrix.copy()),
        "layer_norm_gradient": (matrix, matrix, weight, row, row, row, matrix[:0], matrix.copy(), parts, parts.copy()),
        "rms_norm_gradient": (matrix, matrix, weight, row, matrix[:0], matrix.copy(), parts),
    }[kernel.__name__]
    call: Any = Kernel(kernel._function)._compile(cache=False)
    call(4, 1, 0, *arguments)
    (text,) = call.inspect_llvm().values()
    assert re.search(r"fmul .*<\d+ x float>", text)
    assert not re.search(r"fdiv .*<\d+ x float>", text)
