"""Fused operations by compiled kernels: what array_*.py compute, for float32 arrays on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..autograd import Onto
from . import numba_gelu as gelu_kernels
from . import numba_kernels as kernels
from . import numba_matmul
from . import numba_norms as norms
from .numba_compiler import contiguous
from .numba_heads import attention
from .numba_threads import SHARE
from .numba_updates import adam_all, gradient_norm, scaled, sgd_all

__all__ = [
    "BIAS_GELU",
    "TAKES_FLAT_INDEX",
    "adam_all",
    "add_bias",
    "add_rows",
    "attention",
    "attention_weights",
    "attention_weights_again",
    "bias_gelu",
    "bias_relu",
    "cross_entropy",
    "dropped",
    "gelu",
    "gradient_norm",
    "layer_norm",
    "log_softmax",
    "product",
    "rms_norm",
    "scaled",
    "score_gradient",
    "sgd_all",
    "silu",
    "softmax",
    "swiglu",
]

PARTS = 16  # in which what is summed over all rows is added up; of few rows there are fewer
FEW_ROWS = 64  # that one float32 sum may have; more are added up in several, which rounds less
BIAS_GELU = ("none",)  # what bias_gelu knows
TAKES_FLAT_INDEX = True  # cross_entropy reads wherever its index points to; whoever makes that checks the labels

product = numba_matmul.product


def _rows(x: Any) -> Any:
    """x as a matrix in contiguous memory: (..., n) -> (prod(...), n)."""
    return contiguous(x).reshape(-1, x.shape[-1])


def _flat(x: Any) -> Any:
    """x in contiguous memory, without its axes."""
    return contiguous(x).reshape(-1)


def _elementwise(kernel: Any, gradient: Any) -> Callable[[Any], tuple[Any, Any]]:
    def operation(x: Any) -> tuple[Any, Any]:
        x_flat = _flat(x)
        out = np.empty_like(x_flat)
        kernel(x.size, 1, x_flat, out)

        def pullback(g: Any) -> tuple[Any, ...]:
            gx = np.empty_like(x_flat)
            gradient(x.size, 1, _flat(g), x_flat, gx)
            return (gx.reshape(x.shape),)

        return out.reshape(x.shape), pullback

    return operation


_gelu = {
    "none": _elementwise(gelu_kernels.gelu, gelu_kernels.gelu_gradient),
    "tanh": _elementwise(kernels.gelu_tanh, kernels.gelu_tanh_gradient),
}
silu = _elementwise(kernels.silu, kernels.silu_gradient)


def gelu(x: Any, approximate: str) -> tuple[Any, Any]:
    """x Phi(x), or its approximation by tanh, and the pullback."""
    return _gelu[approximate](x)


def swiglu(gate: Any, x: Any) -> tuple[Any, Any]:
    """silu(gate) x and the pullback, for arrays of one shape."""
    gate_flat, x_flat = _flat(gate), _flat(x)
    out = np.empty_like(x_flat)
    kernels.swiglu(x.size, 1, gate_flat, x_flat, out)

    def pullback(g: Any) -> tuple[Any, ...]:
        gradients = np.empty_like(gate_flat), np.empty_like(x_flat)
        kernels.swiglu_gradient(x.size, 1, _flat(g), gate_flat, x_flat, *gradients)
        return tuple(gx.reshape(x.shape) for gx in gradients)

    return out.reshape(x.shape), pullback


def add_bias(x: Any, bias: Any) -> Any:
    """x + bias, in the memory of x, a matrix."""
    kernels.add_bias(*x.shape, x, contiguous(bias))
    return x


def _sums(x: Any, number: int = 1) -> tuple[list[Any], list[Any]]:
    """Memory for sums over all rows of x, (parts, n), or (n,) for a single part; the same as matrices.

    A part is of neighbouring rows. Their number depends on the shape alone, and so do results, not on the threads.
    A single one is the gradient itself, which a captured step can keep in a buffer.
    """
    count, n = x.shape
    parts = max(1, min(PARTS, count, max(x.size // SHARE, count // FEW_ROWS)))
    sums = [np.empty((parts, n) if parts > 1 else n, np.float32, like=x) for _ in range(number)]
    return sums, [x.reshape(parts, n) for x in sums]


def _total(x: Any) -> Any:
    """The sum of all parts."""
    return x if x.ndim == 1 else x.sum(axis=0)


def _with_bias(kernel: Any, inner: Any) -> Callable[[Any], tuple[Any, Any]]:
    """A function of g that gives the gradient of ``inner``, a matrix, and a function for that of the bias."""

    def gradient(g: Any) -> tuple[Any, Any]:
        gx = np.empty_like(inner)
        (total,), (parts,) = _sums(inner)
        kernel(len(parts), inner.size // len(parts), _rows(g), inner, gx, parts)
        return gx, lambda: _total(total)

    return gradient


def bias_relu(inner: Any, bias: Any) -> tuple[Any, Any]:
    """max(inner + bias, 0), in the memory of ``inner``, a matrix.

    And a function of g that gives the gradient of inner and a function for that of the bias.
    """
    bias = np.zeros(inner.shape[1], np.float32) if bias is None else contiguous(bias)
    kernels.bias_relu(*inner.shape, inner, bias)
    return inner, _with_bias(kernels.relu_gradient, inner)


def bias_gelu(inner: Any, bias: Any, approximate: str) -> tuple[Any, Any]:
    """gelu(inner + bias); the sum is left in ``inner``, a matrix.

    And a function of g that gives the gradient of inner and a function for that of the bias.
    """
    count, n = inner.shape
    bias = np.zeros(n, np.float32) if bias is None else contiguous(bias)
    out = np.empty_like(inner)
    gelu_kernels.bias_gelu(count, n, inner, bias, out)
    return out, _with_bias(gelu_kernels.bias_gelu_gradient, inner)


def dropped(x: Any, residual: Any, kept: Any, scale: float) -> Any:
    """x scale where ``kept`` holds, added to ``residual`` unless that is None."""
    x_flat = _flat(x)
    out = np.empty_like(x_flat)
    if residual is None:
        kernels.dropped(x.size, 1, x_flat, _flat(kept), scale, out)
    else:
        kernels.dropped_added(x.size, 1, x_flat, _flat(kept), scale, _flat(residual), out)
    return out.reshape(x.shape)


def _rowwise(kernel: Any, gradient: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Operations of rows whose gradient needs the result alone."""

    def operation(x: Any) -> tuple[Any, Any]:
        x_rows = _rows(x)
        out = np.empty_like(x_rows)
        kernel(*x_rows.shape, x_rows, out)

        def pullback(g: Any) -> tuple[Any, ...]:
            gx = np.empty_like(out)
            gradient(*out.shape, _rows(g), out, gx)
            return (gx.reshape(x.shape),)

        return out.reshape(x.shape), pullback

    return operation


softmax = _rowwise(kernels.softmax, kernels.softmax_gradient)
log_softmax = _rowwise(kernels.log_softmax, kernels.log_softmax_gradient)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float, residual: Any = None) -> tuple[Any, Any]:
    """The last axis of x + residual with mean 0 and variance 1, scaled and shifted; the pullback."""
    x_rows = _rows(x)
    count, n = x_rows.shape
    weight = np.ones(n, np.float32) if weight is None else contiguous(weight)
    bias = np.zeros(n, np.float32) if bias is None else contiguous(bias)
    out, statistics = np.empty_like(x_rows), np.empty((3, count), np.float32, like=x_rows)
    if residual is None:
        norms.layer_norm(count, n, x_rows, weight, bias, eps, out, *statistics)
    else:
        summands, x_rows = (x_rows, _rows(residual)), np.empty_like(x_rows)
        norms.layer_norm_of_sum(count, n, *summands, weight, bias, eps, x_rows, out, *statistics)

    def pullback(g: Any) -> tuple[Any, ...]:
        return _norm_gradients(norms.layer_norm_gradient, g, x, (x_rows, weight, *statistics), sums=2)

    return out.reshape(x.shape), pullback


def rms_norm(x: Any, weight: Any, eps: float, residual: Any = None) -> tuple[Any, Any]:
    """The last axis of x + residual with mean square 1, scaled; the pullback."""
    x_rows = _rows(x)
    count, n = x_rows.shape
    weight = np.ones(n, np.float32) if weight is None else contiguous(weight)
    out, scale = np.empty_like(x_rows), np.empty(count, np.float32, like=x_rows)
    if residual is None:
        norms.rms_norm(count, n, x_rows, weight, eps, out, scale)
    else:
        summands, x_rows = (x_rows, _rows(residual)), np.empty_like(x_rows)
        norms.rms_norm_of_sum(count, n, *summands, weight, eps, x_rows, out, scale)

    def pullback(g: Any) -> tuple[Any, ...]:
        return _norm_gradients(norms.rms_norm_gradient, g, x, (x_rows, weight, scale), sums=1)

    return out.reshape(x.shape), pullback


def _norm_gradients(kernel: Any, g: Any, x: Any, given: tuple[Any, ...], sums: int) -> tuple[Any, ...]:
    """The gradient of x, onto what is there, as in a residual connection; functions that give those of the weights.

    The kernel computes all of them when the first is asked for: that of x, if it is at all.
    """
    x_rows = given[0]
    totals, parts = _sums(x_rows, sums)
    done = []

    def compute(before: Any) -> Any:
        nothing, out = np.empty((0, 0), np.float32, like=x), np.empty_like(x_rows)
        sum_before = nothing if before is None else _rows(before.astype(np.float32, copy=False))
        kernel(len(parts[0]), x.size // len(parts[0]), _rows(g), *given, sum_before, out, *parts)
        done.append(True)
        return out.reshape(x.shape)

    def total(i: int) -> Any:
        if not done:  # x needs no gradient
            compute(None)
        return _total(totals[i])

    return Onto(compute), *[lambda i=i: total(i) for i in range(sums)]


def cross_entropy(logits: Any, index: Any) -> tuple[Any, Any]:
    """Mean loss of rows whose classes are at ``index`` (rows,), places among all logits; it is kept for backward."""
    x, count = _rows(logits), len(index)
    loss, largest, total = (np.empty(count, np.float32, like=x) for _ in range(3))
    kernels.cross_entropy(*x.shape, x, index, loss, largest, total)

    def pullback(g: Any) -> tuple[Any, ...]:
        gx = np.empty_like(x)
        kernels.cross_entropy_gradient(*x.shape, g / np.float32(count), x, index, largest, total, gx)
        return (gx.reshape(logits.shape),)

    out = np.empty(1, np.float32, like=x)
    kernels.mean(1, count, loss.reshape(1, count), out)
    return out.reshape(()), pullback


def attention_weights(scores: Any, first: int) -> tuple[Any, Any, Any]:
    """exp(score - largest) of scores (..., queries, keys), in their memory if that is contiguous; largest; sums."""
    rows = _rows(scores)
    largest, total = (np.empty((*scores.shape[:-1], 1), np.float32, like=rows) for _ in range(2))
    kernels.attention_weights(*rows.shape, rows, scores.shape[-2], first, largest.reshape(-1), total.reshape(-1))
    return rows.reshape(scores.shape), largest, total


def attention_weights_again(scores: Any, first: int, largest: Any) -> Any:
    """The same from the largest scores."""
    rows = _rows(scores)
    kernels.attention_weights_again(*rows.shape, rows, scores.shape[-2], first, _flat(largest))
    return rows.reshape(scores.shape)


def score_gradient(de: Any, e: Any, along: Any) -> Any:
    """(de - along) e, with one number of ``along`` for each row; in the memory of de if that is contiguous."""
    rows = _rows(de)
    kernels.score_gradient(*rows.shape, rows, _rows(e), _flat(along))
    return rows.reshape(de.shape)


def add_rows(out: Any, index: Any, x: Any) -> None:
    """Add each row of x to the row of ``out`` that ``index`` names."""
    kernels.add_rows(-(-x.shape[-1] // kernels.COLUMNS), index.size * kernels.COLUMNS, index, _rows(x), out)
