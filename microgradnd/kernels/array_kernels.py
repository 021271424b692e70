"""Products, activations and dropout in the array namespace, which serve every backend; what other families share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..dtypes import is_narrow
from . import kernels_for

SHARED = 1 << 17  # elements to which two threads add a bias in less time than NumPy

LARGE_PRODUCT = 1 << 23  # products of numbers: from so many on a compiled kernel may be faster than a BLAS library

ROOT_2_OVER_PI = math.sqrt(2 / math.pi)


def rows(x: Any) -> Any:
    """x as a matrix of all its rows: (..., n) -> (prod(...), n); (n,) -> (1, n)."""
    if x.ndim == 2:
        return x
    if x.ndim == 0:
        raise ValueError("x must have at least one axis")
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


def wide(x: Any) -> Any:
    """float16 and bfloat16 as float32, integers as float64: squares and sums would be beyond their range."""
    if x.dtype.kind in "biu":
        return x.astype(np.float64)
    return x.astype(np.float32) if is_narrow(x.dtype) else x


def narrow(out: Any, x: Any, *others: Any) -> Any:
    """The result in the dtype that it would have without :func:`wide`."""
    if not is_narrow(x.dtype):
        return out
    return out.astype(np.result_type(x.dtype, *(y.dtype for y in others if y is not None)))


def product(xp: Any, x: Any, y: Any, bias: Any = None) -> Any:
    """x y + bias for two matrices, with the bias added in place."""
    if (
        x.size * y.shape[1] >= LARGE_PRODUCT
        and x.__class__ is np.ndarray
        and (fast := kernels_for(x, y, bias)) is not None
    ):
        out = fast.product(x, y, bias)
        if out is not None:
            return out
    # dot is found sooner than matmul, but sums floats of 16 bits in their own precision, or as objects.
    out = xp.matmul(x, y) if x.itemsize == 2 or y.itemsize == 2 else x.dot(y)
    return _plus_bias(xp, out, bias)


def _plus_bias(xp: Any, x: Any, bias: Any) -> Any:
    """x + bias for a matrix, in its memory where the dtypes allow that; x itself where there is no bias."""
    if bias is None:
        return x
    # On a device CuPy's own addition is a kernel.
    if x.size >= SHARED and x.__class__ is np.ndarray and (fast := kernels_for(x, bias)) is not None:
        return fast.add_bias(x, bias)
    return xp.add(x, bias, out=x if bias.dtype == x.dtype else None)


def affine(xp: Any, x: Any, weight: Any, bias: Any) -> Any:
    """x weight + bias for a matrix x."""
    _check_shapes(weight, bias)
    return product(xp, x, weight, bias)


def _check_shapes(weight: Any, bias: Any) -> None:
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[1:]):
        raise ValueError("weight must have two axes, (in, out), and bias one, (out,)")


def linear_relu(xp: Any, x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """max(x weight + bias, 0): in place, and backward masks the gradient once for all three arguments."""
    _check_shapes(weight, bias)
    x_rows = rows(x)
    out = product(xp, x_rows, weight)
    if out.size > xp.SMALL and (fast := kernels_for(out, bias)) is not None:
        out, gradient = fast.bias_relu(out, bias)
    else:
        out = _plus_bias(xp, out, bias)
        out = xp.relu(out, out=out)

        def gradient(g: Any) -> tuple[Any, Any]:
            g = xp.relu_gradient(g, out)
            return g, lambda: xp.sum(g, axis=0)

    def pullback(g: Any) -> tuple[Any, ...]:
        g, bias_gradient = gradient(rows(g))
        return lambda: product(xp, g, weight.T).reshape(x.shape), lambda: product(xp, x_rows.T, g), bias_gradient

    return out if x.ndim == 2 else out.reshape((*x.shape[:-1], weight.shape[1])), pullback


def linear_gelu(xp: Any, x: Any, weight: Any, bias: Any, approximate: str) -> tuple[Any, Any]:
    """gelu(x weight + bias): a compiled kernel adds the bias, and adds up its gradient, on the way."""
    _check_shapes(weight, bias)
    x_rows = rows(x)
    inner = product(xp, x_rows, weight)
    fast = kernels_for(inner, bias) if inner.size > xp.SMALL else None
    if fast is not None and approximate in fast.BIAS_GELU:
        out, gradient = fast.bias_gelu(inner, bias, approximate)
    else:
        inner = _plus_bias(xp, inner, bias)
        out, gelu_pullback = gelu(xp, inner, approximate)

        def gradient(g: Any) -> tuple[Any, Any]:
            (g,) = gelu_pullback(g)
            return g, lambda: xp.sum(g, axis=0)

    def pullback(g: Any) -> tuple[Any, ...]:
        g, bias_gradient = gradient(rows(g))
        return lambda: product(xp, g, weight.T).reshape(x.shape), lambda: product(xp, x_rows.T, g), bias_gradient

    return out if x.ndim == 2 else out.reshape((*x.shape[:-1], weight.shape[1])), pullback


def silu(xp: Any, x: Any) -> tuple[Any, Any]:
    """x sigmoid(x), with s + x s (1 - s) for its derivative."""
    if x.size > xp.SMALL and (fast := kernels_for(x)):
        return fast.silu(x)
    return _silu(xp, x)


def _silu(xp: Any, x: Any) -> tuple[Any, Any]:
    """Without a kernel; the pullback takes gradients to whose shape x broadcasts too."""
    s = xp.sigmoid(wide(x))
    out = x * s
    return narrow(out, x), lambda g: (g * (s + out * (1 - s)),)


def swiglu(xp: Any, gate: Any, x: Any) -> tuple[Any, Any]:
    """silu(gate) x."""
    if gate.shape == x.shape and x.size > xp.SMALL and (fast := kernels_for(gate, x)):
        return fast.swiglu(gate, x)
    inner, silu_pullback = _silu(xp, gate)
    return inner * x, lambda g: (lambda: silu_pullback(g * x)[0], lambda: g * inner)


def gelu(xp: Any, x: Any, approximate: str) -> tuple[Any, Any]:
    """x Phi(x), with Phi + x Phi' for its derivative; keeps Phi."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    if x.size > xp.SMALL and (fast := kernels_for(x)):
        return fast.gelu(x, approximate)
    z = wide(x)
    if approximate == "tanh":
        phi = z * z
        phi *= 0.044715 * ROOT_2_OVER_PI
        phi += ROOT_2_OVER_PI
        phi *= z
        phi = xp.tanh(phi)
        phi *= 0.5
        phi += 0.5
    else:
        phi = xp.normal_cdf(z)

    def pullback(g: Any) -> tuple[Any, ...]:
        slope = z * z
        if approximate == "tanh":  # the derivative of (1 + tanh(u)) / 2 is 2 phi (1 - phi) u'
            slope *= 6 * 0.044715 * ROOT_2_OVER_PI
            slope += 2 * ROOT_2_OVER_PI
            slope *= phi * (1 - phi)
        else:
            slope *= -0.5
            slope = xp.exp(slope)
            slope *= 1 / math.sqrt(2 * math.pi)
        slope *= z
        slope += phi
        slope *= g
        return (slope,)

    return narrow(z * phi, x), pullback


def dropout_scale(p: float) -> float:
    """What is left is multiplied with it, so that the mean stays."""
    return 1 / (1 - p) if p < 1 else 0.0


def dropout(xp: Any, x: Any, residual: Any, kept: Any, p: float, seed: int) -> tuple[Any, Any]:
    """residual + x / (1 - p) where ``kept`` holds; without ``kept`` that is drawn from ``seed``."""
    scale, fast = dropout_scale(p), None
    if x.size > xp.SMALL and (residual is None or residual.shape == x.shape):
        fast = kernels_for(x, residual)
    if fast is not None and kept is None:
        out, kept = fast.dropout(x, residual, p, scale, seed)
    elif fast is not None:
        out = fast.dropped(x, residual, kept, scale)
    else:
        kept = xp.kept(seed, 0, x.shape, p) if kept is None else kept
        out = xp.masked(x, kept, scale)
        out = out if residual is None else residual + out

    def pullback(g: Any) -> tuple[Any, ...]:
        if fast is not None and hasattr(fast, "dropped"):
            return lambda: fast.dropped(g, None, kept, scale), g
        return lambda: xp.masked(g, kept, scale), g

    return out, pullback
