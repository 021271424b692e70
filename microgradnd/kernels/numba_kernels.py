"""Kernels in Numba, for float32 arrays in contiguous memory: one pass where NumPy needs one per operation.

They do the part from ``begin`` to ``end`` of what is to be done: of the elements of flat arrays, of the rows of
matrices (rows, n), or of what their docstring says. Inputs come first, results, made by the caller, last.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, types, void

from .numba_math import ONE, ZERO, exp, f4, largest, sigmoid, sigmoid_and_slope, times
from .numba_parts import Kernel
from .numba_products import element, numbers_at

index = types.Array(int64, 1, "C", readonly=True)
read, written = types.Array(float32, 2, "C", readonly=True), types.Array(float32, 2, "C")
row, written_row = types.Array(float32, 1, "C", readonly=True), types.Array(float32, 1, "C")

CUBIC = f4(0.044715)
COLUMNS = 64  # that one thread adds up at a time
SLOPE = f4(2 * np.sqrt(2 / np.pi))  # tanh(u) is 2 sigmoid(2 u) - 1


@Kernel.of(void(int64, int64, written, row))
def add_bias(begin, end, x, bias):
    for r in range(begin, end):
        for i in range(x.shape[1]):
            x[r, i] += bias[i]


@Kernel
def mean(begin, end, x, out):
    """The mean of each row of x, added up in float64."""
    for r in range(begin, end):
        total = 0.0
        for i in range(x.shape[1]):
            total += float64(x[r, i])
        out[r] = f4(total / x.shape[1])


@Kernel
def bias_relu(begin, end, x, bias):
    """In place; NaN stays NaN."""
    for r in range(begin, end):
        for i in range(x.shape[1]):
            z = x[r, i] + bias[i]
            x[r, i] = ZERO if z < ZERO else z


@Kernel
def relu_gradient(begin, end, g, out, gx, bias_parts):
    """For the rectifier's result ``out``. See layer_norm_gradient for the parts."""
    rows, n = out.shape
    parts = len(bias_parts)
    for part in range(begin, end):
        for i in range(n):
            bias_parts[part, i] = ZERO
        for r in range(part * rows // parts, (part + 1) * rows // parts):
            for i in range(n):
                d = g[r, i] if out[r, i] > ZERO else ZERO
                gx[r, i] = d
                bias_parts[part, i] += d


@Kernel
def gelu_tanh(begin, end, x, out):
    x, out = x[begin:end], out[begin:end]
    for i in range(x.size):
        z = x[i]
        out[i] = z * sigmoid(SLOPE * (z + CUBIC * z * z * z))


@Kernel
def gelu_tanh_gradient(begin, end, g, x, out):
    g, x, out = g[begin:end], x[begin:end], out[begin:end]
    for i in range(x.size):
        z = x[i]
        phi, slope = sigmoid_and_slope(SLOPE * (z + CUBIC * z * z * z))
        out[i] = g[i] * (phi + z * slope * SLOPE * (ONE + f4(3) * CUBIC * z * z))


@Kernel
def dropped(begin, end, x, kept, scale, out):
    x, kept, out = x[begin:end], kept[begin:end], out[begin:end]
    for i in range(x.size):
        out[i] = x[i] * scale if kept[i] else ZERO


@Kernel
def dropped_added(begin, end, x, kept, scale, residual, out):
    x, kept, residual, out = x[begin:end], kept[begin:end], residual[begin:end], out[begin:end]
    for i in range(x.size):
        out[i] = residual[i] + (x[i] * scale if kept[i] else ZERO)


@Kernel
def silu(begin, end, x, out):
    x, out = x[begin:end], out[begin:end]
    for i in range(x.size):
        out[i] = x[i] * sigmoid(x[i])


@Kernel
def silu_gradient(begin, end, g, x, out):
    g, x, out = g[begin:end], x[begin:end], out[begin:end]
    for i in range(x.size):
        s, slope = sigmoid_and_slope(x[i])
        out[i] = g[i] * (s + x[i] * slope)


@Kernel
def swiglu(begin, end, gate, x, out):
    gate, x, out = gate[begin:end], x[begin:end], out[begin:end]
    for i in range(x.size):
        out[i] = gate[i] * sigmoid(gate[i]) * x[i]


@Kernel
def swiglu_gradient(begin, end, g, gate, x, gate_out, x_out):
    g, gate, x, gate_out, x_out = g[begin:end], gate[begin:end], x[begin:end], gate_out[begin:end], x_out[begin:end]
    for i in range(x.size):
        s, slope = sigmoid_and_slope(gate[i])
        x_out[i] = g[i] * gate[i] * s
        gate_out[i] = g[i] * x[i] * (s + gate[i] * slope)


@Kernel
def softmax(begin, end, x, out):
    n = x.shape[1]
    for r in range(begin, end):
        m = largest(x, r, n)
        total = ZERO
        for i in range(n):
            e = exp(x[r, i] - m)
            out[r, i] = e
            total += e
        share = ONE / total
        for i in range(n):
            out[r, i] = times(out[r, i], share)


@Kernel
def softmax_gradient(begin, end, g, p, out):
    n = p.shape[1]
    for r in range(begin, end):
        along = ZERO
        for i in range(n):
            along += g[r, i] * p[r, i]
        for i in range(n):
            out[r, i] = p[r, i] * (g[r, i] - along)


@Kernel
def log_softmax(begin, end, x, out):
    n = x.shape[1]
    for r in range(begin, end):
        m = largest(x, r, n)
        total = ZERO
        for i in range(n):
            total += exp(x[r, i] - m)
        log_total = np.log(total)
        for i in range(n):
            out[r, i] = x[r, i] - m - log_total


@Kernel
def log_softmax_gradient(begin, end, g, log_p, out):
    n = log_p.shape[1]
    for r in range(begin, end):
        total = ZERO
        for i in range(n):
            total += g[r, i]
        for i in range(n):
            out[r, i] = g[r, i] - exp(log_p[r, i]) * total


@Kernel
def cross_entropy(begin, end, x, index, loss, shift, total):
    """``index`` says where among all elements each row's class is."""
    n = x.shape[1]
    for r in range(begin, end):
        m = largest(x, r, n)
        t = ZERO
        for i in range(n):
            t += exp(x[r, i] - m)
        loss[r] = np.log(t) - (x[r, index[r] - r * n] - m)
        shift[r] = m
        total[r] = t


@Kernel
def cross_entropy_gradient(begin, end, g, x, index, shift, total, out):
    n = x.shape[1]
    for r in range(begin, end):
        share = g / total[r]
        for i in range(n):
            out[r, i] = times(exp(x[r, i] - shift[r]), share)
        out[r, index[r] - r * n] -= g


@Kernel
def attention_weights(begin, end, scores, queries, first, shift, total):
    """exp(score - the largest of its row) in place of the scores, 0 for keys that a query may not see.

    Row r is query r % queries and sees ``first`` + r % queries + 1 keys, all where ``first`` is negative.
    """
    keys = scores.shape[1]
    for r in range(begin, end):
        seen = keys if first < 0 else min(keys, first + r % queries + 1)
        m = largest(scores, r, seen)
        m = m if np.isfinite(m) else ZERO
        t = ZERO
        for i in range(seen):
            e = exp(scores[r, i] - m)
            scores[r, i] = e
            t += e
        for i in range(seen, keys):
            scores[r, i] = ZERO
        shift[r] = m
        total[r] = t


@Kernel
def attention_weights_again(begin, end, scores, queries, first, shift):
    keys = scores.shape[1]
    for r in range(begin, end):
        seen = keys if first < 0 else min(keys, first + r % queries + 1)
        m = shift[r]
        for i in range(seen):
            scores[r, i] = exp(scores[r, i] - m)
        for i in range(seen, keys):
            scores[r, i] = ZERO


@Kernel
def score_gradient(begin, end, de, e, along):
    for r in range(begin, end):
        for i in range(e.shape[1]):
            de[r, i] = (de[r, i] - along[r]) * e[r, i]


@Kernel.of(void(int64, int64, index, read, written))
def add_rows(begin, end, index, x, out):
    """Columns are shared among the threads, so that the rows of one are added in their order."""
    n = x.shape[1]
    for part in range(begin, end):
        first, count = part * COLUMNS, min(n - part * COLUMNS, COLUMNS)
        for r in range(index.size):
            target, row = numbers_at(element(out, index[r], first), count), numbers_at(element(x, r, first), count)
            for i in range(count):
                target[i] += row[i]
