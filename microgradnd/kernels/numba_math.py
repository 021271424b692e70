"""float32 functions that vectorise: polynomials and integer arithmetic instead of calls of the C library."""

from __future__ import annotations

import numpy as np

from .numba_compiler import EXACT, inner

f4, i4 = np.float32, np.int32
inline = inner(fastmath=EXACT, error_model="numpy")  # what LLVM inlines by itself

LOG2_E = f4(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = f4(0.693359375), f4(-2.12194440e-4)  # Cody and Waite, 1980: n LN_2_HIGH is exact
# Added to k and subtracted, it rounds k to an integer. In between, the last bits are those of k + 127: shifted to where
# a float has its exponent, they are 2^k, or 0 for k = -127.
ROUND = f4(1.5 * 2**23 + 127)
ZERO, HALF, ONE, INFINITY, NAN = f4(0), f4(0.5), f4(1), f4(np.inf), f4(np.nan)
MINUS_INFINITY = i4(-0x00800000)  # its bits


@inline
def largest(x, r, n):
    """The largest of the first n elements of row r, -inf of none. With a NaN among them it is that or any other.

    What is computed with it and the NaN is NaN in either case. By the bits as integers, since the largest of floats, of
    which NaN is neither more nor less, is not vectorised: they have the order of the floats where these are positive,
    and the opposite one where they are negative.
    """
    most = least = MINUS_INFINITY
    for i in range(n):
        bits = f4(x[r, i]).view(i4)
        most = bits if bits > most else most
        least = bits if bits < least else least
    return i4(least if most < 0 else most).view(f4)


@inline
def power_of_two(s):
    """2^k, for s = k + ROUND."""
    return i4(f4(s).view(i4) << 23).view(f4)


@inline
def exp_unclamped(x):
    """e^x for x from -87.68 to 88: within 1 ulp where the processor fuses products and sums, else within 1.2."""
    s = x * LOG2_E + ROUND
    n = s - ROUND
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW  # |r| <= ln(2) / 2
    p = f4(0.0013821000466123223)  # a polynomial, within 4e-9, fitted to float64 values
    p = p * r + f4(0.008368685841560364)
    p = p * r + f4(0.04166826605796814)
    p = p * r + f4(0.1666652113199234)
    p = p * r + f4(0.4999999403953552)
    p = p * r + ONE
    p = p * r + ONE
    return p * power_of_two(s)


@inline
def exp(x):
    """e^x for all x <= 88; 0 below -87.68."""
    return exp_unclamped(f4(-88) if x < f4(-88) else x)  # NaN stays NaN


@inline
def centred(x, guess, rest):
    """x less a guess of its row's mean and what that leaves of the mean, in this order."""
    return (x - guess) - rest


@inline
def times(x, scale):
    """The product of these two, before anything else is multiplied with it, which might be too large.

    Nor is it made a division: where sums may be added up in any order, LLVM takes x (1 / t) for x / t, and divides each
    element of a row by the same t.
    """
    return x * scale


@inner(fastmath=EXACT | {"arcp", "ninf"}, error_model="numpy")
def reciprocal(x):
    """1 / x of a finite x, where the processor has it by an estimate that is corrected: within 1 ulp, in a fifth."""
    return ONE / x


@inline
def sigmoid(x):
    """1 / (1 + e^-x)."""
    e = exp(-abs(x))
    s = reciprocal(ONE + e)
    return e * s if x < ZERO else s


@inline
def sigmoid_and_slope(x):
    """The sigmoid s and s (1 - s), without the difference, in which nothing would be left of it."""
    e = exp(-abs(x))
    s = reciprocal(ONE + e)
    return (e * s if x < ZERO else s), e * s * s
