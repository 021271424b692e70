"""Attention in Numba without scores in memory: a block of queries at a time against all keys of a head (float32).

The memory of a thread is that of the keys and values of one head, their gradients, and a block's scores: linear in the
number of keys. Arrays are (A, B, G, T, width), with the numbers of the last axis side by side: the G heads of queries
of a group share one head of keys and values (G = 1 there). What a head needs is copied into matrices whose rows are
filled up with zeros to whole tiles.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, int64, types, void

from .numba_compiler import inner
from .numba_math import NAN, ONE, ZERO, exp, largest, times
from .numba_parts import Kernel
from .numba_products import SIZE, VECTOR, address, copy_transposed, element, matrix, numbers_at, padded, tile_adder

BLOCK = 64  # queries at a time: a multiple of TILE_ROWS

# One signature for all layouts in memory, since compiling takes seconds.
read, written = types.Array(float32, 5, "A", readonly=True), types.Array(float32, 5, "A")
per_query, written_per_query = types.Array(float32, 4, "C", readonly=True), types.Array(float32, 4, "C")


TILE_ROWS, TILE_COLUMNS = 8, 2 * VECTOR  # more rows at a time need fewer instructions for as many sums
add_tile = tile_adder(TILE_ROWS, TILE_COLUMNS)


@inner
def set_product(c, a, b, r, j, k):
    """c = a[:, :k] b[:k], for the tile of c that begins at (r, j)."""
    add_tile(False, element(c, r, j), c.shape[1], element(a, r, 0), a.shape[1], 1, element(b, 0, j), b.shape[1], k)


@inner
def add_transposed(c, a, b, r, j, first, end):
    """c += a[first:end]^T b[first:end], for the tile of c that begins at (r, j)."""
    rows, columns = element(a, first, r), element(b, first, j)
    add_tile(True, element(c, r, j), c.shape[1], rows, 1, a.shape[1], columns, b.shape[1], end - first)


@inner
def stride_of(keys):
    """Columns of a matrix with one for each key.

    If they were a power of two, the rows of a tile would share few lines of the cache: a fifth slower.
    """
    return padded(keys, TILE_COLUMNS) + TILE_COLUMNS


@inner
def row_of(x, a, b, g, t):
    """x[a, b, g, t], whose numbers lie side by side: what Numba does not know of a view of a projection."""
    steps = x.strides
    start = address(x) + a * steps[0] + b * steps[1] + g * steps[2] + t * steps[3]
    return numbers_at(start, x.shape[4])


@inner
def load(rows, x, a, b, g, first, factor):
    """The rows of a head from ``first`` on, as many as there is place for, times a factor; zeros beyond its end."""
    for r in range(rows.shape[0]):
        n = 0
        if first + r < x.shape[3]:
            source, n = row_of(x, a, b, g, first + r), x.shape[4]
            for d in range(n):
                rows[r, d] = source[d] * factor
        for d in range(n, rows.shape[1]):
            rows[r, d] = ZERO


@inner
def store(x, a, b, g, first, rows, count, factor):
    """Put so many rows, times a factor, into a head from its row ``first`` on."""
    for r in range(count):
        target = row_of(x, a, b, g, first + r)
        for d in range(x.shape[4]):
            target[d] = rows[r, d] * factor


@inner
def load_transposed(columns, x, a, b):
    """(width, T) of a head of keys or values, with zeros beyond."""
    T, width = x.shape[3:]
    step, rest = divmod(x.strides[3], SIZE)
    whole, deep = (T // VECTOR * VECTOR, width // VECTOR * VECTOR) if rest == 0 else (0, 0)
    for j in range(0, whole, VECTOR):
        start = address(row_of(x, a, b, 0, j))
        for d in range(0, deep, VECTOR):
            copy_transposed(element(columns, d, j), columns.shape[1], start + SIZE * d, step)
    for j in range(T):
        source = row_of(x, a, b, 0, j)
        for d in range(deep if j < whole else 0, width):
            columns[d, j] = source[d]
    fill(columns, 0, len(columns), T, columns.shape[1], ZERO)


@inner
def fill(x, top, bottom, left, right, value):
    """x[top:bottom, left:right] = value, in a loop that is vectorised."""
    for r in range(top, bottom):
        for j in range(left, right):
            x[r, j] = value


@inner
def scores_of_block(p, rows, columns, first, count, seen, causal):
    """rows columns, for a block of queries, number ``first`` and on, and at least the keys that they may see."""
    for j in range(0, seen, TILE_COLUMNS):
        for r in range(max(0, j - first) // TILE_ROWS * TILE_ROWS if causal else 0, count, TILE_ROWS):
            set_product(p, rows, columns, r, j, len(columns))


@inner
def weighted_rows(c, p, rows, first, count, seen, causal):
    """p rows, for weights of a block of queries."""
    for r in range(0, count, TILE_ROWS):
        own = min(seen, first + r + TILE_ROWS) if causal else seen
        for j in range(0, c.shape[1], TILE_COLUMNS):
            set_product(c, p, rows, r, j, own)


@inner
def add_to_keys(c, p, rows, first, count, seen, causal):
    """c += p^T rows: a query that comes before a key adds nothing to it."""
    for r in range(0, seen, TILE_ROWS):
        for j in range(0, c.shape[1], TILE_COLUMNS):
            add_transposed(c, p, rows, r, j, max(0, r - first) if causal else 0, count)


@Kernel.of(void(int64, int64, read, read, read, float32, boolean, written, written_per_query, written_per_query))
def attention(begin, end, q, k, v, scale, causal, out, shift, total):
    """See kernels.attention: the result, and per query the largest score and the sum of exp(score - largest).

    ``begin`` and ``end`` count the groups that share keys, A B of them.
    """
    (_, B, G, T, D), S, E = q.shape, k.shape[3], v.shape[4]
    stride, wide_values = stride_of(S), padded(E, TILE_COLUMNS)
    keys, values = matrix(D, stride), matrix(S, wide_values)
    q_rows, o_rows, p = matrix(BLOCK, D), matrix(BLOCK, wide_values), matrix(BLOCK, stride)
    for n in range(begin, end):
        a, b = n // B, n % B
        load_transposed(keys, k, a, b)
        load(values, v, a, b, 0, 0, ONE)
        for g in range(G):
            for i in range(0, T, BLOCK):
                count = min(BLOCK, T - i)
                load(q_rows, q, a, b, g, i, scale)
                seen = min(S, T, i + BLOCK) if causal else S
                scores_of_block(p, q_rows, keys, i, count, seen, causal)
                for r in range(count):
                    own = min(seen, i + r + 1) if causal else S
                    m = largest(p, r, own)
                    m = m if np.isfinite(m) else ZERO
                    t = ZERO
                    for j in range(padded(own, TILE_COLUMNS)):  # whole tiles, with zeros for keys that are not seen
                        e = exp(p[r, j] - m) if j < own else ZERO
                        p[r, j] = e
                        t += e
                    shift[a, b, g, i + r] = m
                    total[a, b, g, i + r] = NAN if t == ZERO else t  # all scores are beyond the range
                weighted_rows(o_rows, p, values, i, count, seen, causal)
                for r in range(count):
                    share, row = ONE / total[a, b, g, i + r], row_of(out, a, b, g, i + r)
                    for d in range(E):
                        row[d] = times(o_rows[r, d], share)


@Kernel.of(
    void(int64, int64, read, read, read, read, float32, boolean, read, per_query, per_query, written, written, written)
)
def attention_gradient(begin, end, grad, q, k, v, scale, causal, out, shift, total, dq, dk, dv):
    """The weights of a block of queries are computed again, and what they add to every gradient."""
    (_, B, G, T, D), S, E = q.shape, k.shape[3], v.shape[4]
    stride, wide, wide_values = stride_of(S), padded(D, TILE_COLUMNS), padded(E, TILE_COLUMNS)
    keys, values, key_rows = matrix(D, stride), matrix(E, stride), matrix(S, wide)
    dkeys, dvalues = matrix(padded(S, TILE_ROWS), wide), matrix(padded(S, TILE_ROWS), wide_values)
    q_rows, dq_rows, g_rows = matrix(BLOCK, wide), matrix(BLOCK, wide), matrix(BLOCK, wide_values)
    p, dp = matrix(BLOCK, stride), matrix(BLOCK, stride)
    for n in range(begin, end):
        a, b = n // B, n % B
        load_transposed(keys, k, a, b)
        load_transposed(values, v, a, b)
        load(key_rows, k, a, b, 0, 0, ONE)
        fill(dkeys, 0, len(dkeys), 0, wide, ZERO)
        fill(dvalues, 0, len(dvalues), 0, wide_values, ZERO)
        for g in range(G):
            for i in range(0, T, BLOCK):
                count = min(BLOCK, T - i)
                load(q_rows, q, a, b, g, i, scale)
                load(g_rows, grad, a, b, g, i, ONE)
                for r in range(count):  # the weights are exp(score - largest) / total
                    share = ONE / total[a, b, g, i + r]
                    for d in range(E):
                        g_rows[r, d] = times(g_rows[r, d], share)
                seen = min(S, T, i + BLOCK) if causal else S
                scores_of_block(p, q_rows, keys, i, count, seen, causal)
                scores_of_block(dp, g_rows, values, i, count, seen, causal)
                for r in range(count):
                    own = min(seen, i + r + 1) if causal else S
                    m, along, row = shift[a, b, g, i + r], ZERO, row_of(out, a, b, g, i + r)
                    for d in range(E):
                        along += g_rows[r, d] * row[d]
                    for j in range(padded(own, TILE_COLUMNS)):
                        e = exp(p[r, j] - m) if j < own else ZERO
                        p[r, j] = e
                        dp[r, j] = (dp[r, j] - along) * e if j < own else ZERO
                weighted_rows(dq_rows, dp, key_rows, i, count, seen, causal)
                store(dq, a, b, g, i, dq_rows, count, scale)
                add_to_keys(dkeys, dp, q_rows, i, count, seen, causal)
                add_to_keys(dvalues, p, g_rows, i, count, seen, causal)
        store(dk, a, b, 0, 0, dkeys, S, ONE)
        store(dv, a, b, 0, 0, dvalues, S, ONE)
