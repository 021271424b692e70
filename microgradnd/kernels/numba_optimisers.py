"""Kernels in Numba that take many float32 arrays at once: steps of optimisers, the norm of all gradients.

Elements are counted through all parameters. Row i of ``arrays`` has the ids of parameter i and of what belongs to it;
its elements are those from edges[i] to edges[i + 1].
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, types, void

from .numba_compiler import inner
from .numba_math import ZERO
from .numba_parts import Kernel
from .numba_products import numbers_of

ids, positions = types.Array(int64, 2, "C", readonly=True), types.Array(int64, 1, "C", readonly=True)


@inner
def part_of(begin, end, first, last):
    """Where the part of [first, last) that lies within [begin, end) starts, counted from ``first``, and its length."""
    start = max(begin, first)
    return start - first, max(0, min(end, last) - start)


@Kernel.of(void(int64, int64, ids, positions, *[float32] * 8))
def adam_all(begin, end, arrays, edges, decay, shrink, beta1, rest1, beta2, rest2, rate, eps):
    """See nn.Adam: ``decay`` is added to the gradient, ``shrink`` multiplies the parameter; the rests are 1 - beta.

    Rows of parameters, gradients and both averages.
    """
    root2 = np.sqrt(rest2)  # taken into the square, which alone may be beyond the range
    for i in range(len(arrays)):
        start, count = part_of(begin, end, edges[i], edges[i + 1])
        p, g = numbers_of(arrays[i, 0], start, count), numbers_of(arrays[i, 1], start, count)
        m, v = numbers_of(arrays[i, 2], start, count), numbers_of(arrays[i, 3], start, count)
        for j in range(count):
            x, d, m_j, v_j = p[j] * shrink, g[j], m[j], v[j]  # read before any is written: less time
            d = d if decay == ZERO else d + decay * x
            m_j = beta1 * m_j + rest1 * d
            v_j = beta2 * v_j + (root2 * d) * (root2 * d)
            x -= rate * m_j / (np.sqrt(v_j) + eps)
            m[j], v[j], p[j] = m_j, v_j, x


@Kernel.of(void(int64, int64, ids, positions, float32, float32, float32))
def sgd_all(begin, end, arrays, edges, decay, momentum, lr):
    """See nn.SGD. Rows of parameters, gradients and, with momentum, averages."""
    for i in range(len(arrays)):
        start, count = part_of(begin, end, edges[i], edges[i + 1])
        p, g = numbers_of(arrays[i, 0], start, count), numbers_of(arrays[i, 1], start, count)
        if arrays.shape[1] == 2:
            for j in range(count):
                p[j] -= lr * (g[j] if decay == ZERO else g[j] + decay * p[j])
        else:
            v = numbers_of(arrays[i, 2], start, count)
            for j in range(count):
                v[j] = momentum * v[j] + (g[j] if decay == ZERO else g[j] + decay * p[j])
                p[j] -= lr * v[j]


@Kernel.of(void(int64, int64, ids, positions, types.Array(float64, 1, "C")))
def squares(begin, end, arrays, edges, sums):
    """The sums of the squares of all elements, in as many parts of them as there are ``sums``."""
    for part in range(begin, end):
        first, last = edges[-1] * part // len(sums), edges[-1] * (part + 1) // len(sums)
        for i in range(len(arrays)):
            start, count = part_of(first, last, edges[i], edges[i + 1])
            g = numbers_of(arrays[i, 0], start, count)
            total = 0.0
            for j in range(count):
                total += float64(g[j]) * float64(g[j])
            sums[part] += total


@Kernel.of(void(int64, int64, ids, positions, float32))
def scale_all(begin, end, arrays, edges, factor):
    """The second array of each row is the first one times ``factor``."""
    for i in range(len(arrays)):
        start, count = part_of(begin, end, edges[i], edges[i + 1])
        g, out = numbers_of(arrays[i, 0], start, count), numbers_of(arrays[i, 1], start, count)
        for j in range(count):
            out[j] = g[j] * factor
