"""Kernels written in the array namespace: they serve every backend."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..autograd import Onto
from ..dtypes import is_floating, is_narrow
from . import compiled

# Up to so many classes NumPy is faster with the classes along the first axis: reductions and broadcasts then
# run over the rows, many elements at a time. Measured: 0.25 to 0.8 of the time for 10 classes, 3 times for 64.
FEW_CLASSES = 32
SHARED = 1 << 17  # elements to which two threads add a bias in less time than NumPy

LARGE_PRODUCT = 1 << 23  # products of numbers: from so many on a compiled kernel may be faster than a BLAS library

ROOT_2_OVER_PI = math.sqrt(2 / math.pi)


def rows(x: Any) -> Any:
    """x as a matrix of all its rows: (..., n) -> (prod(...), n); (n,) -> (1, n)."""
    return x if x.ndim == 2 else x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


def product(xp: Any, x: Any, y: Any, bias: Any = None) -> Any:
    """x y + bias for two matrices, with the bias added in place."""
    if (
        x.size * y.shape[1] >= LARGE_PRODUCT
        and x.__class__ is np.ndarray
        and (fast := compiled(x, y, bias)) is not None
    ):
        out = fast.product(x, y, bias)
        if out is not None:
            return out
    # dot is found sooner than matmul, but sums floats of 16 bits in their own precision.
    out = xp.matmul(x, y) if x.itemsize == 2 else x.dot(y)
    return out if bias is None else _plus_bias(xp, out, bias)


def _plus_bias(xp: Any, x: Any, bias: Any) -> Any:
    """x + bias for a matrix, in its memory where the dtypes allow that."""
    # On a device CuPy's own addition is a kernel.
    if x.size >= SHARED and x.__class__ is np.ndarray and (fast := compiled(x, bias)) is not None:
        return fast.add_bias(x, bias)
    return xp.add(x, bias, out=x if bias.dtype == x.dtype else None)


def affine(xp: Any, x: Any, weight: Any, bias: Any, add_bias: bool = True) -> Any:
    """x weight + bias for a matrix x; or without the bias, if somebody else adds it."""
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[1:]):
        raise ValueError("weight must have two axes, (in, out), and bias one, (out,)")
    return product(xp, x, weight, bias if add_bias else None)


def linear_relu(xp: Any, x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
    """max(x weight + bias, 0): in place, and backward masks the gradient once for all three arguments."""
    x_rows = rows(x)
    out = affine(xp, x_rows, weight, bias, add_bias=False)
    if out.size > xp.SMALL and (fast := compiled(out, bias)) is not None:
        out, gradient = fast.bias_relu(out, bias)
    else:
        out = out if bias is None else _plus_bias(xp, out, bias)
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
    x_rows = rows(x)
    inner = affine(xp, x_rows, weight, bias, add_bias=False)
    fast = compiled(inner, bias) if inner.size > xp.SMALL else None
    if fast is not None and approximate in fast.BIAS_GELU:
        out, gradient = fast.bias_gelu(inner, bias, approximate)
    else:
        inner = inner if bias is None else _plus_bias(xp, inner, bias)
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
    if x.size > xp.SMALL and (fast := compiled(x)):
        return fast.silu(x)
    return _silu(xp, x)


def _silu(xp: Any, x: Any) -> tuple[Any, Any]:
    """Without a kernel; the pullback takes gradients to whose shape x broadcasts too."""
    s = xp.sigmoid(_wide(x))
    out = x * s
    return _narrow(out, x), lambda g: (g * (s + out * (1 - s)),)


def swiglu(xp: Any, gate: Any, x: Any) -> tuple[Any, Any]:
    """silu(gate) x."""
    if gate.shape == x.shape and x.size > xp.SMALL and (fast := compiled(gate, x)):
        return fast.swiglu(gate, x)
    inner, silu_pullback = _silu(xp, gate)
    return inner * x, lambda g: (lambda: silu_pullback(g * x)[0], lambda: g * inner)


def gelu(xp: Any, x: Any, approximate: str) -> tuple[Any, Any]:
    """x Phi(x), with Phi + x Phi' for its derivative; keeps Phi."""
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    if x.size > xp.SMALL and (fast := compiled(x)):
        return fast.gelu(x, approximate)
    z = _wide(x)
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

    return _narrow(z * phi, x), pullback


def dropout_scale(p: float) -> float:
    """What is left is multiplied with it, so that the mean stays."""
    return 1 / (1 - p) if p < 1 else 0.0


def dropout(xp: Any, x: Any, residual: Any, kept: Any, p: float, seed: int) -> tuple[Any, Any]:
    """residual + x / (1 - p) where ``kept`` holds; without ``kept`` that is drawn from ``seed``."""
    scale, fast = dropout_scale(p), None
    if x.size > xp.SMALL and (residual is None or residual.shape == x.shape):
        fast = compiled(x, residual)
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


def layer_norm(xp: Any, x: Any, weight: Any, bias: Any, eps: float, residual: Any = None) -> tuple[Any, Any]:
    """The last axis of x + residual with mean 0 and variance 1, scaled and shifted."""
    n = _normalized(x, weight, bias)
    if residual is not None:
        return _of_sum(layer_norm, xp, x, residual, weight, bias, eps)
    if x.size > xp.SMALL and (fast := compiled(x, weight, bias)):
        return fast.layer_norm(x, weight, bias, eps)
    x_rows = _wide(rows(x))
    normal = x_rows - (xp.sum(x_rows, axis=1) / n)[:, None]
    normal -= (xp.sum(normal, axis=1) / n)[:, None]  # what rounding left: 1 / sqrt(eps) times of it would be seen
    scale = 1 / xp.sqrt(xp.sum(normal * normal, axis=1) / n + float(eps))[:, None]  # of each row
    normal *= scale
    out = normal if weight is None else normal * weight
    out = out if bias is None else out + bias

    def pullback(g: Any) -> tuple[Any, ...]:
        g = rows(g)

        def gradient() -> Any:
            d = g if weight is None else g * weight
            along = xp.sum(d * normal, axis=1) / n  # the part that would change the variance
            d = d - (xp.sum(d, axis=1) / n)[:, None]
            d -= normal * along[:, None]
            d *= scale
            return d.reshape(x.shape)

        return gradient, lambda: xp.sum(g * normal, axis=0), lambda: xp.sum(g, axis=0)

    return _narrow(out, x, weight, bias).reshape(x.shape), pullback


def _of_sum(norm: Any, xp: Any, x: Any, residual: Any, *args: Any) -> tuple[Any, Any]:
    """A norm of x + residual, whose gradient is that of both: a compiled kernel computes the sum on the way."""
    if residual.shape != x.shape:
        raise ValueError(f"residual must have the shape of x, {x.shape}")
    fast = compiled(x, residual, *args[:-1]) if x.size > xp.SMALL and x.__class__ is np.ndarray else None
    if fast is not None:
        out, pullback = getattr(fast, norm.__name__)(x, *args, residual)
    else:
        out, pullback = norm(xp, _wide(x) + _wide(residual), *args)
        out = _narrow(out, x, residual, *args[:-1])

    def pullback_of_both(g: Any) -> tuple[Any, ...]:
        gx, *others = pullback(g)
        found: list[Any] = []  # held until both have it: whoever changes it makes a copy

        def gradient() -> Any:
            if not found:
                found.append(gx.compute(None) if gx.__class__ is Onto else gx())
            return found[0]

        return gradient, *others, gradient

    return out, pullback_of_both


def rms_norm(xp: Any, x: Any, weight: Any, eps: float, residual: Any = None) -> tuple[Any, Any]:
    """The last axis of x + residual with mean square 1, scaled."""
    n = _normalized(x, weight)
    if residual is not None:
        return _of_sum(rms_norm, xp, x, residual, weight, eps)
    if x.size > xp.SMALL and (fast := compiled(x, weight)):
        return fast.rms_norm(x, weight, eps)
    x_rows = _wide(rows(x))
    scale = 1 / xp.sqrt(xp.sum(x_rows * x_rows, axis=1) / n + float(eps))[:, None]
    normal = x_rows * scale
    out = normal if weight is None else normal * weight

    def pullback(g: Any) -> tuple[Any, ...]:
        g = rows(g)

        def gradient() -> Any:
            d = g if weight is None else g * weight
            d = d - normal * (xp.sum(d * normal, axis=1) / n)[:, None]
            d *= scale
            return d.reshape(x.shape)

        return gradient, lambda: xp.sum(g * normal, axis=0)

    return _narrow(out, x, weight).reshape(x.shape), pullback


def _wide(x: Any) -> Any:
    """float16 and bfloat16 as float32, integers as float64: squares and sums would be beyond their range."""
    if x.dtype.kind in "biu":
        return x.astype(np.float64)
    return x.astype(np.float32) if is_narrow(x.dtype) else x


def _narrow(out: Any, x: Any, *others: Any) -> Any:
    """The result in the dtype that it would have without :func:`_wide`."""
    if not is_narrow(x.dtype):
        return out
    return out.astype(np.result_type(x.dtype, *(y.dtype for y in others if y is not None)))


def _normalized(x: Any, *parameters: Any) -> int:
    """The length of the last axis of x, which the parameters have to have."""
    if x.ndim == 0 or any(p is not None and p.shape != x.shape[-1:] for p in parameters):
        shapes = ", ".join(str(p.shape) for p in parameters if p is not None)
        raise ValueError(f"expected parameters of the shape of the last axis of x, {x.shape[-1:]}, got {shapes}")
    return int(max(1, x.shape[-1]))


def softmax(xp: Any, x: Any, axis: Any) -> tuple[Any, Any]:
    """exp(x) / sum(exp(x)), shifted by the maximum."""
    if x.size > xp.SMALL and x.ndim and axis in (-1, x.ndim - 1) and (fast := compiled(x)):
        return fast.softmax(x)
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    out = e / xp.sum(e, axis=axis, keepdims=True)
    return out, lambda g: (out * (g - xp.sum(g * out, axis=axis, keepdims=True)),)


def log_softmax(xp: Any, x: Any, axis: Any) -> tuple[Any, Any]:
    """x - logsumexp(x), shifted by the maximum."""
    if x.size > xp.SMALL and x.ndim and axis in (-1, x.ndim - 1) and (fast := compiled(x)):
        return fast.log_softmax(x)
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    out = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))
    return out, lambda g: (g - xp.exp(out) * xp.sum(g, axis=axis, keepdims=True),)


def cross_entropy(xp: Any, logits: Any, targets: Any) -> tuple[Any, Any]:
    """Mean cross-entropy of softmax(logits); one exp serves the loss and its gradient softmax(logits) - targets."""
    if targets.__class__ is int:
        if not 0 <= targets < logits.shape[-1]:
            raise IndexError(f"class indices must lie in 0 to {logits.shape[-1] - 1}, got {targets}")
        targets = xp.asarray(targets)
    if logits.size > xp.SMALL and targets.shape != logits.shape and (fast := compiled(logits)):
        _check_labels(logits, targets)
        if fast.TAKES_FLAT_INDEX:
            targets = _flat_index(xp, targets, logits.size // logits.shape[-1], logits.shape[-1], 1)
        return fast.cross_entropy(logits, targets)
    if is_narrow(logits.dtype):  # its sums over thousands of rows are beyond its range
        loss, wide_pullback = cross_entropy(xp, _wide(logits), targets)
        loss = _narrow(loss, logits, targets if is_floating(targets.dtype) else None)
        return loss, lambda g: wide_pullback(_wide(g))
    classes = logits.shape[-1]
    count = logits.size // max(classes, 1)
    if count == 0:
        raise ValueError("there are no rows to average over")
    axis = 0 if classes <= FEW_CLASSES else 1  # the axis of the classes in what follows
    z = _matrix(xp, logits, count, classes, axis)
    z = z - xp.max(z, axis=axis, keepdims=True)
    e = xp.exp(z)
    total = xp.sum(e, axis=axis, keepdims=axis == 1)
    log_total = xp.log(total)
    if targets.shape == logits.shape:
        t = _matrix(xp, targets, count, classes, axis)
        mass = xp.sum(t, axis=axis, keepdims=axis == 1)  # 1 in each row where the targets are probabilities
        loss = xp.vdot(mass, log_total) - xp.vdot(t, z)

        def gradient(g: Any) -> Any:
            p = e * (mass / total)
            p -= t
            p *= g
            return p
    else:
        _check_labels(logits, targets)
        index = _flat_index(xp, targets, count, classes, axis)
        loss = xp.sum(log_total.reshape(count) - z.reshape(z.size)[index])

        def gradient(g: Any) -> Any:
            p = e * (g / total)
            p.reshape(p.size)[index] -= g
            return p

    def pullback(g: Any) -> tuple[Any, ...]:
        p = gradient(g[()] / count)  # NumPy divides its scalars faster than 0-d arrays
        return ((p.T if axis == 0 else p).reshape(logits.shape),)

    return loss / count, pullback


def _matrix(xp: Any, x: Any, count: int, classes: int, axis: int) -> Any:
    """(..., classes) as a matrix in contiguous memory with the classes along ``axis``."""
    x = x if x.ndim == 2 else x.reshape((count, classes))
    return xp.ascontiguousarray(x.T if axis == 0 else x)


def _check_labels(logits: Any, targets: Any) -> None:
    """Refuse class indices of another shape, and what are no integers or lie on another device."""
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets are either class indices of shape {logits.shape[:-1]} or rows of shape {logits.shape}, "
            f"got {targets.shape}"
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(f"class indices must be integers, got {targets.dtype}")
    if targets.__class__ is not logits.__class__:
        raise TypeError("class indices and logits must be arrays of one library")


def _flat_index(xp: Any, targets: Any, count: int, classes: int, axis: int) -> Any:
    """Where each row's class lies in the flat matrix; refuses classes out of range, negative ones too."""
    rows, labels = xp.arange(count), targets.reshape(count)
    try:
        if xp.SMALL == 0 and not (targets.min() >= 0 and targets.max() < classes):
            raise ValueError  # CuPy would wrap them around; the kernels, which never wait, give NaN
        if axis == 0:
            return xp.ravel_multi_index((labels, rows), (classes, count))
        return xp.ravel_multi_index((rows, labels), (count, classes))
    except ValueError:
        raise IndexError(
            f"class indices must lie in 0 to {classes - 1}, got {targets.min()} to {targets.max()}"
        ) from None
