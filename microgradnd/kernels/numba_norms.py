"""Kernels in Numba of norms of the last axis: see numba_kernels."""

from __future__ import annotations

import numpy as np
from numba import float32, int64, void

from .numba_compiler import SUMS, inner
from .numba_kernels import read, row, written, written_row
from .numba_math import INFINITY, ONE, ZERO, centred, f4, times
from .numba_parts import Kernel

FEW = 256  # elements whose mean is the first guess of their row's
# The variance is mean((x - guess)^2) - (mean - guess)^2. The second term may be this share of it at most, so that the
# subtraction magnifies rounding at most 1.05 times.
SLIGHT = f4(0.05)

in_kernel = inner(fastmath=SUMS, error_model="numpy", forceinline=True)


@in_kernel
def moments(x, r, m):
    """Of row r the mean less m; the variance, by that and the mean of (x - m)^2; whether m is near enough for that."""
    n = x.shape[1]
    total = squares = ZERO
    for i in range(n):
        z = x[r, i] - m
        total += z
        squares += z * z
    left = total / f4(n)
    variance = squares / f4(n) - left * left
    return left, variance, left * left < SLIGHT * variance and variance < INFINITY


@in_kernel
def normalize(x, r, weight, bias, eps, out, guess, rest, scale):
    """(x - mean) / sqrt(variance + eps) * weight + bias of row r, with the mean in two parts.

    The first one is a guess, corrected in another pass where it is a bad one; the second one is what it leaves. In a
    constant row any error left in the mean is magnified by 1 / sqrt(eps).
    """
    n = x.shape[1]
    few = min(n, FEW)
    total = ZERO
    for i in range(few):
        total += x[r, i]
    m = total / f4(few)
    left, variance, near = moments(x, r, m)
    if not near and few < n:
        m += left
        left, variance, near = moments(x, r, m)
    if not near:  # nothing but rounding is left of the variance, or the squares were too large
        squares = ZERO
        for i in range(n):
            z = centred(x[r, i], m, left)
            squares += z * z
        variance = squares / f4(n)
    s = ONE / np.sqrt(variance + eps)
    for i in range(n):
        out[r, i] = centred(x[r, i], m, left) * s * weight[i] + bias[i]
    guess[r], rest[r], scale[r] = m, left, s


@Kernel.of(void(int64, int64, read, row, row, float32, written, written_row, written_row, written_row))
def layer_norm(begin, end, x, weight, bias, eps, out, guess, rest, scale):
    """See normalize."""
    for r in range(begin, end):
        normalize(x, r, weight, bias, eps, out, guess, rest, scale)


@Kernel.of(void(int64, int64, read, read, row, row, float32, written, written, written_row, written_row, written_row))
def layer_norm_of_sum(begin, end, x, residual, weight, bias, eps, sums, out, guess, rest, scale):
    """Of x + residual, which is left in ``sums``."""
    for r in range(begin, end):
        for i in range(x.shape[1]):
            sums[r, i] = x[r, i] + residual[r, i]
        normalize(sums, r, weight, bias, eps, out, guess, rest, scale)


@Kernel
def layer_norm_gradient(begin, end, g, x, weight, guess, rest, scale, before, out, weight_parts, bias_parts):
    """Added to ``before``, unless that is empty.

    The sums over all rows are left in parts, as many as their first axis is long, each of neighbouring rows.
    """
    rows, n = x.shape
    parts = len(weight_parts)
    for part in range(begin, end):
        for i in range(n):
            weight_parts[part, i] = bias_parts[part, i] = ZERO
        for r in range(part * rows // parts, (part + 1) * rows // parts):
            m, left, s = guess[r], rest[r], scale[r]
            total = along = ZERO
            for i in range(n):
                d = g[r, i] * weight[i]
                total += d
                along += d * times(centred(x[r, i], m, left), s)
            total /= f4(n)
            along /= f4(n)
            for i in range(n):
                d, w, w_sum, b_sum = g[r, i], weight[i], weight_parts[part, i], bias_parts[part, i]
                normal = times(centred(x[r, i], m, left), s)
                out[r, i] = s * (d * w - total - times(normal, along))  # all is read before any is written: less time
                weight_parts[part, i], bias_parts[part, i] = w_sum + d * normal, b_sum + d
            if before.size > 0:
                for i in range(n):
                    out[r, i] += before[r, i]


@in_kernel
def scale_by_squares(x, r, weight, eps, out, scale):
    """Row r with mean square 1."""
    n = x.shape[1]
    total = ZERO
    for i in range(n):
        total += x[r, i] * x[r, i]
    s = ONE / np.sqrt(total / f4(n) + eps)
    for i in range(n):
        out[r, i] = x[r, i] * s * weight[i]
    scale[r] = s


@Kernel.of(void(int64, int64, read, row, float32, written, written_row))
def rms_norm(begin, end, x, weight, eps, out, scale):
    """See scale_by_squares."""
    for r in range(begin, end):
        scale_by_squares(x, r, weight, eps, out, scale)


@Kernel.of(void(int64, int64, read, read, row, float32, written, written, written_row))
def rms_norm_of_sum(begin, end, x, residual, weight, eps, sums, out, scale):
    """See layer_norm_of_sum."""
    for r in range(begin, end):
        for i in range(x.shape[1]):
            sums[r, i] = x[r, i] + residual[r, i]
        scale_by_squares(sums, r, weight, eps, out, scale)


@Kernel
def rms_norm_gradient(begin, end, g, x, weight, scale, before, out, weight_parts):
    """See layer_norm_gradient."""
    rows, n = x.shape
    parts = len(weight_parts)
    for part in range(begin, end):
        for i in range(n):
            weight_parts[part, i] = ZERO
        for r in range(part * rows // parts, (part + 1) * rows // parts):
            s = scale[r]
            along = ZERO
            for i in range(n):
                along += g[r, i] * weight[i] * times(x[r, i], s)
            along /= f4(n)
            for i in range(n):
                d, w, w_sum = g[r, i], weight[i], weight_parts[part, i]
                normal = times(x[r, i], s)
                out[r, i] = s * (d * w - times(normal, along))  # all is read before any is written
                weight_parts[part, i] = w_sum + d * normal
            if before.size > 0:
                for i in range(n):
                    out[r, i] += before[r, i]
