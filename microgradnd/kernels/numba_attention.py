"""Attention in Numba without scores in memory: four queries at a time against all keys of a head (float32).

The memory of a thread is that of the keys and values of one head, and their gradients: linear in the number of keys.
Arrays are (A, B, G, T, width): the G heads of queries of a group share one head of keys and values (G = 1 there).
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, int64, njit, types, void

from .numba_compiler import SUMS, Kernel
from .numba_math import ONE, ZERO, exp, f4, largest

ROWS = 4  # queries at a time

# Compiled once for all layouts in memory: that takes seconds.
read = types.Array(float32, 5, "A", readonly=True)
write = types.Array(float32, 5, "A")
row = types.Array(float32, 4, "C")


@njit(fastmath=SUMS, error_model="numpy")
def add_products(c, a, b, k, n):
    """c[:, :n] += a[:, :k] b[:k, :n] for ROWS rows. Two rows and four k at a time keep the units for products busy."""
    for r in range(0, ROWS, 2):
        for p in range(0, k - 3, 4):
            a0, a1, a2, a3 = a[r, p], a[r, p + 1], a[r, p + 2], a[r, p + 3]
            b0, b1, b2, b3 = a[r + 1, p], a[r + 1, p + 1], a[r + 1, p + 2], a[r + 1, p + 3]
            for j in range(n):
                x0, x1, x2, x3 = b[p, j], b[p + 1, j], b[p + 2, j], b[p + 3, j]
                c[r, j] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                c[r + 1, j] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
        for p in range(k - k % 4, k):
            a0, b0 = a[r, p], a[r + 1, p]
            for j in range(n):
                c[r, j] += a0 * b[p, j]
                c[r + 1, j] += b0 * b[p, j]


@njit(fastmath=SUMS, error_model="numpy")
def add_transposed(c, a, b, k, n):
    """c[:k, :n] += a[:, :k]^T b[:, :n] for ROWS rows."""
    for p in range(k):
        a0, a1, a2, a3 = a[0, p], a[1, p], a[2, p], a[3, p]
        for j in range(n):
            c[p, j] += a0 * b[0, j] + a1 * b[1, j] + a2 * b[2, j] + a3 * b[3, j]


@njit
def load(rows, x, a, b, g, first, factor):
    """ROWS rows of a head, beginning with ``first``, times a factor; zeros beyond the last one."""
    for r in range(ROWS):
        for d in range(x.shape[4]):
            rows[r, d] = x[a, b, g, first + r, d] * factor if first + r < x.shape[3] else ZERO


@njit
def transposed(x, a, b):
    """(width, T) of a head of keys or values."""
    out = np.empty((x.shape[4], x.shape[3]), f4)
    for j in range(x.shape[3]):
        for d in range(x.shape[4]):
            out[d, j] = x[a, b, 0, j, d]
    return out


@njit
def copied(x, a, b):
    """(T, width) of a head of keys or values."""
    out = np.empty((x.shape[3], x.shape[4]), f4)
    for j in range(x.shape[3]):
        for d in range(x.shape[4]):
            out[j, d] = x[a, b, 0, j, d]
    return out


@Kernel.of(void(int64, int64, read, read, read, float32, boolean, write, row, row))
def attention(begin, end, q, k, v, scale, causal, out, shift, total):
    """See kernels.attention: the result, and per query the largest score and the sum of exp(score - largest)."""
    (_, B, G, T, D), S, E = q.shape, k.shape[3], v.shape[4]
    for n in range(begin, end):
        a, b = n // B, n % B
        keys, values = transposed(k, a, b), copied(v, a, b)
        q_rows, o_rows, p = np.empty((ROWS, D), f4), np.empty((ROWS, E), f4), np.empty((ROWS, S), f4)
        for g in range(G):
            for i in range(0, T, ROWS):
                load(q_rows, q, a, b, g, i, scale)
                seen = min(S, T, i + ROWS) if causal else S
                p[:, :seen] = ZERO
                add_products(p, q_rows, keys, D, seen)
                for r in range(ROWS):
                    own = min(seen, i + r + 1) if causal else S
                    m = largest(p, r, own)
                    m = m if np.isfinite(m) else ZERO
                    t = ZERO
                    for j in range(own):
                        e = exp(p[r, j] - m)
                        p[r, j] = e
                        t += e
                    for j in range(own, seen):
                        p[r, j] = ZERO
                    if i + r < T:
                        shift[a, b, g, i + r] = m
                        total[a, b, g, i + r] = ONE if t == ZERO else t
                o_rows[:] = ZERO
                add_products(o_rows, p, values, seen, E)
                for r in range(min(ROWS, T - i)):
                    share = ONE / total[a, b, g, i + r]
                    for d in range(E):
                        out[a, b, g, i + r, d] = o_rows[r, d] * share


@Kernel.of(void(int64, int64, read, read, read, read, float32, boolean, read, row, row, write, write, write))
def attention_gradient(begin, end, grad, q, k, v, scale, causal, out, shift, total, dq, dk, dv):
    """The weights of ROWS queries are computed again, and what they add to every gradient."""
    (_, B, G, T, D), S, E = q.shape, k.shape[3], v.shape[4]
    for n in range(begin, end):
        a, b = n // B, n % B
        keys, values, key_rows = transposed(k, a, b), transposed(v, a, b), copied(k, a, b)
        dkeys, dvalues = np.zeros((D, S), f4), np.zeros((E, S), f4)
        q_rows, dq_rows, g_rows = np.empty((ROWS, D), f4), np.empty((ROWS, D), f4), np.empty((ROWS, E), f4)
        p, dp = np.empty((ROWS, S), f4), np.empty((ROWS, S), f4)
        for g in range(G):
            for i in range(0, T, ROWS):
                load(q_rows, q, a, b, g, i, scale)
                load(g_rows, grad, a, b, g, i, ONE)
                seen = min(S, T, i + ROWS) if causal else S
                p[:, :seen] = ZERO
                dp[:, :seen] = ZERO
                add_products(p, q_rows, keys, D, seen)
                for r in range(min(ROWS, T - i)):  # the weights are exp(score - largest) / total
                    share = ONE / total[a, b, g, i + r]
                    for d in range(E):
                        g_rows[r, d] *= share
                add_products(dp, g_rows, values, E, seen)
                for r in range(ROWS):
                    own = min(seen, i + r + 1) if causal else S
                    m = along = ZERO
                    if i + r < T:
                        m = shift[a, b, g, i + r]
                        for d in range(E):
                            along += g_rows[r, d] * out[a, b, g, i + r, d]
                    for j in range(own):
                        e = exp(p[r, j] - m)
                        p[r, j] = e
                        dp[r, j] = (dp[r, j] - along) * e
                    for j in range(own, seen):
                        p[r, j] = dp[r, j] = ZERO
                dq_rows[:] = ZERO
                add_products(dq_rows, dp, key_rows, seen, D)
                for r in range(min(ROWS, T - i)):
                    for d in range(D):
                        dq[a, b, g, i + r, d] = dq_rows[r, d] * scale
                add_transposed(dkeys, q_rows, dp, D, seen)
                add_transposed(dvalues, g_rows, p, E, seen)
        for j in range(S):
            for d in range(D):
                dk[a, b, 0, j, d] = dkeys[d, j]
            for d in range(E):
                dv[a, b, 0, j, d] = dvalues[d, j]
