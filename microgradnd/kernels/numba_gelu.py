"""GELU and its gradient, elementwise and after a bias: by tables where the processor has AVX-512, else by formulas.

The tables take three quarters of the time, for gradients half of it, and are more accurate, for these down to -5.5.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import int64, void

from .numba_compiler import AVX512
from .numba_kernels import read, row, written, written_row
from .numba_math import HALF, INFINITY, ONE, ROUND, ZERO, exp_unclamped, f4, inline, power_of_two
from .numba_parts import Kernel
from .numba_products import SIZE, add_row, address, element, numbers_at
from .numba_tables import VectorBuilder, by_vectors, constant, table

DENSITY = f4(1 / np.sqrt(2 * np.pi))  # of the normal distribution, at 0
TAIL_END = f4(13)  # where normal_tail is 0, since its power of two has come to 2^-127: see ROUND


@inline
def normal_tail(t):
    """Phi(-t) for t from 0 to TAIL_END, with Phi the normal distribution function.

    Its binary logarithm is a polynomial, fitted to float64 values. Where the processor fuses products and sums, it is
    within 1.1e-6 of Phi(-t), relative, for t <= 3, within 4e-6 for t <= 6, and within 1 percent beyond, subnormal
    numbers excepted.
    """
    q = f4(-4.3104662200699195e-11)
    q = q * t + f4(2.754520389558479e-09)
    q = q * t + f4(-7.62320766511948e-08)
    q = q * t + f4(1.2002759604001767e-06)
    q = q * t + f4(-1.1813446690212004e-05)
    q = q * t + f4(7.365621422650293e-05)
    q = q * t + f4(-0.0002546516770962626)
    q = q * t + f4(-7.232085772557184e-05)
    q = q * t + f4(0.007052021101117134)
    q = q * t + f4(-0.05251976475119591)
    q = q * t + f4(-0.459193617105484)
    q = q * t + f4(-1.1511075496673584)
    q = q * t + f4(-0.9999999403953552)
    s = q + ROUND
    f = q - (s - ROUND)  # from -1/2 to 1/2; 2^f is a polynomial too
    p = f4(0.00015353361959569156)
    p = p * f + f4(0.0013398873852565885)
    p = p * f + f4(0.00961843691766262)
    p = p * f + f4(0.055503323674201965)
    p = p * f + f4(0.24022647738456726)
    p = p * f + f4(0.6931471824645996)
    p = p * f + ONE
    return p * power_of_two(s)


@inline
def gelu_of(z):
    """z Phi(z), as max(z, 0) - |z| Phi(-|z|); NaN for -inf, as that product is."""
    t = abs(z)
    positive = HALF * z + HALF * t
    t = TAIL_END if t > TAIL_END else t
    return positive - t * normal_tail(t)


@inline
def gelu_slope(z):
    """Phi(z) + z phi(z), phi being the density; NaN for infinities, as that product is."""
    t = abs(z)
    t = TAIL_END if TAIL_END < t < INFINITY else t  # of infinity normal_tail is NaN
    d = normal_tail(t) - t * DENSITY * exp_unclamped(-HALF * t * t)
    return d if z < ZERO else ONE - d


@inline
def gelu_by_formula(count, addresses):
    """GELU of ``count`` numbers: the addresses are those of the results and of x."""
    out, x = numbers_at(addresses[0], count), numbers_at(addresses[1], count)
    for i in range(count):
        out[i] = gelu_of(x[i])


@inline
def bias_gelu_by_formula(count, addresses):
    """GELU of x + bias, which is left in x: the addresses of results, x, bias."""
    out, x, bias = numbers_at(addresses[0], count), numbers_at(addresses[1], count), numbers_at(addresses[2], count)
    for i in range(count):
        z = x[i] + bias[i]
        x[i] = z
        out[i] = gelu_of(z)


@inline
def gradient_by_formula(count, addresses):
    """The gradient g times the slope of GELU at x: the addresses of results, g, x."""
    out, g, x = numbers_at(addresses[0], count), numbers_at(addresses[1], count), numbers_at(addresses[2], count)
    for i in range(count):
        out[i] = g[i] * gelu_slope(x[i])


TABLE_END = 13.5  # around it, from 13.25 on, the tables are 0: Phi(-t) is subnormal, the slope within 4e-38 of 0


def tail(t: float) -> float:
    """Phi(-t)."""
    return math.erfc(t / math.sqrt(2)) / 2


def tail_slope(t: float) -> float:
    """Phi(-t) - t phi(t), the slope of GELU at -t."""
    return tail(t) - t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def _gelu(v: VectorBuilder, z: Any) -> Any:
    """See gelu_of. Within 2e-7, relative, for z >= -3, within 3e-6 for z >= -6, and within 2e-3 for z > -12.9."""
    t = v.absolute(z)
    positive = v.fma(z, constant(0.5), v.builder.fmul(t, constant(0.5)))
    t = v.minimum(t, TABLE_END)
    return v.fma(v.builder.fneg(t), v.looked_up(t, table(tail, tail, TABLE_END)), positive)


def _slope(v: VectorBuilder, z: Any) -> Any:
    """See gelu_slope. Within 1e-7, absolute, for z >= -3, where it changes its sign; below, relative, as _gelu."""
    t = v.absolute(z)
    d = v.looked_up(v.minimum(t, TABLE_END), table(tail_slope, tail, TABLE_END))
    d = v.fma(t, constant(0), d)  # NaN of infinity and NaN
    return v.builder.select(v.builder.fcmp_ordered("<", z, constant(0)), d, v.builder.fsub(constant(1), d))


@by_vectors
def gelu_by_table(v: VectorBuilder, out: Any, x: Any) -> None:
    """See gelu_by_formula."""
    v.store(_gelu(v, v.load(x)), out)


@by_vectors
def bias_gelu_by_table(v: VectorBuilder, out: Any, x: Any, bias: Any) -> None:
    """See bias_gelu_by_formula."""
    z = v.builder.fadd(v.load(x), v.load(bias))
    v.store(z, x)
    v.store(_gelu(v, z), out)


@by_vectors
def gradient_by_table(v: VectorBuilder, out: Any, g: Any, x: Any) -> None:
    """See gradient_by_formula."""
    v.store(v.builder.fmul(v.load(g), _slope(v, v.load(x))), out)


gelu_of_row, bias_gelu_of_row, gradient_of_row = gelu_by_formula, bias_gelu_by_formula, gradient_by_formula
if AVX512:
    gelu_of_row, bias_gelu_of_row, gradient_of_row = gelu_by_table, bias_gelu_by_table, gradient_by_table


@Kernel.of(void(int64, int64, row, written_row))
def gelu(begin, end, x, out):
    first = SIZE * begin
    gelu_of_row(end - begin, (address(out) + first, address(x) + first))


@Kernel.of(void(int64, int64, row, row, written_row))
def gelu_gradient(begin, end, g, x, out):
    first = SIZE * begin
    gradient_of_row(end - begin, (address(out) + first, address(g) + first, address(x) + first))


@Kernel.of(void(int64, int64, written, row, written))
def bias_gelu(begin, end, x, bias, out):
    """The bias is added in place."""
    for r in range(begin, end):
        bias_gelu_of_row(x.shape[1], (element(out, r, 0), element(x, r, 0), address(bias)))


@Kernel.of(void(int64, int64, read, read, written, written))
def bias_gelu_gradient(begin, end, g, x, out, bias_parts):
    """See layer_norm_gradient for the parts."""
    rows, n = x.shape
    parts = len(bias_parts)
    for part in range(begin, end):
        for i in range(n):
            bias_parts[part, i] = ZERO
        for r in range(part * rows // parts, (part + 1) * rows // parts):
            gradient_of_row(n, (element(out, r, 0), element(g, r, 0), element(x, r, 0)))
            add_row(element(bias_parts, part, 0), element(out, r, 0), n)
