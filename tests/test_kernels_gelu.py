"""GELU by formulas and, where the processor has AVX-512, by tables: both against float64."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.numba_against_numpy import LARGE, normal, normal_cdf

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_compiler, numba_gelu, numba_tables  # isort: skip
from microgradnd.kernels.numba_products import address  # isort: skip

WAYS = ["formula", "table"] if numba_compiler.AVX512 else ["formula"]


@functools.cache
def by(way: str) -> tuple[Any, Any, Any]:
    """Functions of arrays (results, x), (results, x, bias), (results, g, x)."""
    from numba import njit

    gelu, bias_gelu, gradient = (getattr(numba_gelu, f"{x}_by_{way}") for x in ("gelu", "bias_gelu", "gradient"))

    @njit
    def values(out: Any, x: Any) -> None:
        gelu(out.size, (address(out), address(x)))

    @njit
    def biased(out: Any, x: Any, bias: Any) -> None:
        bias_gelu(out.size, (address(out), address(x), address(bias)))

    @njit
    def gradients(out: Any, g: Any, x: Any) -> None:
        gradient(out.size, (address(out), address(g), address(x)))

    return values, biased, gradients


def slope(x: Any) -> Any:
    return normal_cdf(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


# From, to, and the relative error there, of values and of gradients (absolute from -3 on, where the slope is 0).
ERRORS = {
    "formula": [(-3, 13, 1.2e-6, 1.5e-7), (-6, -3, 4e-6, 4e-6), (-12.9, -6, 0.01, 0.01)],
    "table": [(-3, 13, 2e-7, 1e-7), (-6, -3, 3e-6, 2e-6), (-12.9, -6, 2e-3, 2e-3)],
}


@pytest.mark.parametrize("way", WAYS)
def test_errors(way: str) -> None:
    values, _, gradients = by(way)
    for low, high, of_value, of_gradient in ERRORS[way]:
        x = np.linspace(low, high, 2 * LARGE + 5).astype(np.float32)
        out, g = np.empty_like(x), normal(x.size)
        values(out, x)
        np.testing.assert_allclose(out, x * normal_cdf(x.astype(float)), rtol=of_value)
        gradients(out, g, x)
        exact = slope(x.astype(float))
        # Rounding of the product, and of numbers that are not normal.
        tolerance = of_gradient * (1 if low == -3 else np.abs(exact)) + 6e-8 * np.abs(exact)
        assert (np.abs(out - g * exact) <= np.abs(g) * tolerance + 1e-44).all()


def test_tables_are_used_where_they_can_be() -> None:
    used = numba_gelu.gelu_of_row, numba_gelu.bias_gelu_of_row, numba_gelu.gradient_of_row
    by_table = numba_gelu.gelu_by_table, numba_gelu.bias_gelu_by_table, numba_gelu.gradient_by_table
    assert (used == by_table) == numba_compiler.AVX512


@pytest.mark.parametrize("way", WAYS)
def test_each_number_alone_decides_and_nothing_else_is_written(way: str) -> None:
    """Whatever its place among how many, and at any address."""
    values, biased, gradients = by(way)
    x, g, bias = normal(100, scale=3.0), normal(100, seed=1), normal(100, seed=2)
    all_values, all_biased, all_gradients = (np.empty_like(x) for _ in range(3))
    values(all_values, x)
    values(all_biased, x + bias)
    gradients(all_gradients, g, x)
    for first in (0, 1, 7):
        for count in range(50):
            part, place = slice(first, first + count), slice(17 + first, 17 + first + count)
            out, left = np.full((2, 100), 7, np.float32)
            values(out[place], x[part])
            np.testing.assert_array_equal(out[place], all_values[part])
            gradients(out[place], g[part], x[part])
            np.testing.assert_array_equal(out[place], all_gradients[part])
            left[place] = x[part]
            biased(out[place], left[place], bias[part])
            np.testing.assert_array_equal(out[place], all_biased[part])
            np.testing.assert_array_equal(left[place], (x + bias)[part])
            for around in (slice(0, place.start), slice(place.stop, None)):
                assert (out[around] == 7).all()
                assert (left[around] == 7).all()


@pytest.mark.parametrize("way", WAYS)
def test_where_there_is_no_finite_number(way: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 13, -13, 0, -0.0, 1e-45], np.float32)
    out, g = np.empty_like(x), np.ones_like(x)
    by(way)[0](out, x)
    np.testing.assert_allclose(out, np.float32([np.nan, np.inf, np.nan, 3e38, 0, 13, 0, 0, 0, 0]), atol=1e-36)
    by(way)[2](out, g, x)
    np.testing.assert_allclose(out, [np.nan, np.nan, np.nan, 1, 0, 1, 0, 0.5, 0.5, 0.5], atol=1e-35)


def test_tables_of_other_functions() -> None:
    """At each interval's ends and between, by NumPy, of a function that no polynomial of degree 7 is."""
    coefficients = numba_tables.table(math.cos, lambda t: 1, 12).astype(float)
    assert (coefficients[:, 24:] == 0).all()
    for i in range(24):
        for r in (-0.25, 0.1, 0.25):
            assert np.polyval(coefficients[:, i], r) == pytest.approx(math.cos(i / 2 + r), abs=1e-7)


@pytest.mark.parametrize("features", ["+avx2,+fma", "+avx512f,-avx512f", "+avx512f,-avx2"])
def test_without_avx512_by_formulas(features: str) -> None:
    script = """
import numpy as np, microgradnd as mg
from microgradnd.kernels import numba_gelu
assert numba_gelu.gelu_of_row is numba_gelu.gelu_by_formula
x = mg.tensor(np.ones((100, 100), np.float32), requires_grad=True)
mg.gelu(x).sum().backward()
print(x.grad.data[0, 0])
"""
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(found.stdout) == pytest.approx(1.0833155, rel=1e-6)
