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
ZERO, HALF, ONE = f4(0), f4(0.5), f4(1)
DENSITY = f4(1 / np.sqrt(2 * np.pi))  # of the normal distribution, at 0
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
    """The product, before anything else is multiplied with it, which might be too large."""
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


INFINITY = f4(np.inf)
NORMAL_TAIL_END = f4(13)  # where 2^-127 comes, for which normal_tail is 0


@inline
def normal_tail(t):
    """Phi(-t) for t from 0 to NORMAL_TAIL_END, with Phi the normal distribution function.

    Its binary logarithm is a polynomial, fitted to float64 values. Where the processor fuses products and sums, it is
    within 1e-6 of Phi(-t), relative, for t <= 3, within 6e-6 for t <= 6, and within 1 percent below 1e-9, subnormal
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
    t = NORMAL_TAIL_END if t > NORMAL_TAIL_END else t
    return positive - t * normal_tail(t)


@inline
def gelu_slope(z):
    """Phi(z) + z phi(z), phi being the density; NaN for infinities, as that product is."""
    t = abs(z)
    t = NORMAL_TAIL_END if NORMAL_TAIL_END < t < INFINITY else t  # of infinity normal_tail is NaN
    d = normal_tail(t) - t * DENSITY * exp_unclamped(-HALF * t * t)
    return d if z < ZERO else ONE - d
