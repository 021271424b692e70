"""float32 functions that vectorise: polynomials and integer arithmetic instead of calls of the C library.

Numba keeps compiled kernels on disk and does not see that this file has changed: delete ``__pycache__`` then.
"""

from __future__ import annotations

import numba
import numpy as np

from .numba_compiler import EXACT

f4, i4 = np.float32, np.int32
inline = numba.njit(fastmath=EXACT, error_model="numpy")  # what LLVM inlines by itself

LOG2_E = f4(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = f4(0.693359375), f4(-2.12194440e-4)  # Cody and Waite, 1980: n LN_2_HIGH is exact
ROUND = f4(1.5 * 2**23)  # added and subtracted it rounds to an integer
ZERO, HALF, ONE = f4(0), f4(0.5), f4(1)


@numba.njit(fastmath={"nnan", "nsz", "reassoc"}, error_model="numpy")
def largest(x, r, n):
    """The largest of the first n elements of row r, -inf of none: vectorised, since NaN may be passed over or not.

    What is computed with a NaN and the result is NaN in either case.
    """
    m = f4(-np.inf)
    for i in range(n):
        m = x[r, i] if x[r, i] > m else m
    return m


@inline
def exp(x):
    """e^x, with an error of 0.7 ulp (denormal results: of their last place)."""
    x = f4(-104) if x < f4(-104) else x
    x = f4(89) if x > f4(89) else x  # NaN stays NaN
    n = (x * LOG2_E + ROUND) - ROUND
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW  # |r| <= ln(2) / 2; coefficients: Cephes, Moshier, 1989
    p = f4(1.9875691500e-4)
    p = p * r + f4(1.3981999507e-3)
    p = p * r + f4(8.3334519073e-3)
    p = p * r + f4(4.1665795894e-2)
    p = p * r + f4(1.6666665459e-1)
    p = p * r + f4(5.0000001201e-1)
    p = p * r * r + r + ONE
    k = i4(n)
    half = i4(k >> 1)  # 2^k as two factors: one of them alone ends at 2^-126 and at 2^127
    return p * i4((half + 127) << 23).view(f4) * i4((k - half + 127) << 23).view(f4)


@inline
def centred(x, mean, rest):
    """x less its row's mean and what rounding left of that, in this order."""
    return (x - mean) - rest


@inline
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return ONE / (ONE + exp(-x))


@inline
def mills(t):
    """Phi(-t) e^(t^2 / 2) for t >= 0, with Phi the normal distribution function: Mills' ratio / sqrt(2 pi).

    It is smooth: a polynomial of (t - 3) / (t + 3) is within 1e-8 of it for t <= 14.5, where e^(-t^2 / 2) ends
    (fitted to float64 values; a product with that is 0 beyond, and NaN for NaN).
    """
    t = t if t < f4(14.5) else f4(14.5)
    u = (t - f4(3)) / (t + f4(3))
    p = f4(5.316394547911635e-05)
    p = p * u + f4(1.1501574898117992e-4)
    p = p * u + f4(-3.390147462842021e-4)
    p = p * u + f4(-9.832900717216461e-4)
    p = p * u + f4(2.9043880499199405e-3)
    p = p * u + f4(6.131942795128712e-3)
    p = p * u + f4(-4.621326372998421e-2)
    p = p * u + f4(0.12322504117812008)
    p = p * u + f4(-0.20640262040401422)
    return p * u + f4(0.12151394751417459)
