"""Norms and softmax along an axis, in the array namespace: see array_kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Onto
from . import kernels_for
from .array_kernels import narrow, rows, wide


def layer_norm(xp: Any, x: Any, weight: Any, bias: Any, eps: float, residual: Any = None) -> tuple[Any, Any]:
    """The last axis of x + residual with mean 0 and variance 1, scaled and shifted."""
    n = _normalized(x, weight, bias)
    if residual is not None:
        return _of_sum(layer_norm, xp, x, residual, weight, bias, eps)
    if x.size > xp.SMALL and (fast := kernels_for(x, weight, bias)):
        return fast.layer_norm(x, weight, bias, eps)
    x_rows = wide(rows(x))
    normal = x_rows - (xp.sum(x_rows, axis=1) / n)[:, None]
    normal -= (xp.sum(normal, axis=1) / n)[:, None]  # what rounding left: 1 / sqrt(eps) magnifies it
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

    return narrow(out, x, weight, bias).reshape(x.shape), pullback


def _of_sum(norm: Any, xp: Any, x: Any, residual: Any, *args: Any) -> tuple[Any, Any]:
    """A norm of x + residual, whose gradient is that of both: a compiled kernel computes the sum on the way."""
    if residual.shape != x.shape:
        raise ValueError(f"residual must have the shape of x, {x.shape}")
    fast = kernels_for(x, residual, *args[:-1]) if x.size > xp.SMALL and x.__class__ is np.ndarray else None
    if fast is not None:
        out, pullback = getattr(fast, norm.__name__)(x, *args, residual)
    else:
        out, pullback = norm(xp, wide(x) + wide(residual), *args)
        out = narrow(out, x, residual, *args[:-1])

    def pullback_of_both(g: Any) -> tuple[Any, ...]:
        gx, *others = pullback(wide(g))
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
    if x.size > xp.SMALL and (fast := kernels_for(x, weight)):
        return fast.rms_norm(x, weight, eps)
    x_rows = wide(rows(x))
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

    return narrow(out, x, weight).reshape(x.shape), pullback


def _normalized(x: Any, *parameters: Any) -> int:
    """The length of the last axis of x, which the parameters have to have."""
    if x.ndim == 0:
        raise ValueError("x must have at least one axis")
    if any(p is not None and p.shape != x.shape[-1:] for p in parameters):
        shapes = ", ".join(str(p.shape) for p in parameters if p is not None)
        raise ValueError(f"expected parameters of the shape of the last axis of x, {x.shape[-1:]}, got {shapes}")
    return int(max(1, x.shape[-1]))


def softmax(xp: Any, x: Any, axis: Any) -> tuple[Any, Any]:
    """exp(x) / sum(exp(x)), shifted by the maximum."""
    if x.size > xp.SMALL and x.ndim and axis in (-1, x.ndim - 1) and (fast := kernels_for(x)):
        return fast.softmax(x)
    given, x = x, wide(x)
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    out = e / xp.sum(e, axis=axis, keepdims=True)

    def pullback(g: Any) -> tuple[Any, ...]:
        g = wide(g)
        return (narrow(out * (g - xp.sum(g * out, axis=axis, keepdims=True)), given),)

    return narrow(out, given), pullback


def log_softmax(xp: Any, x: Any, axis: Any) -> tuple[Any, Any]:
    """x - logsumexp(x), shifted by the maximum."""
    if x.size > xp.SMALL and x.ndim and axis in (-1, x.ndim - 1) and (fast := kernels_for(x)):
        return fast.log_softmax(x)
    given, x = x, wide(x)
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    out = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))

    def pullback(g: Any) -> tuple[Any, ...]:
        g = wide(g)
        return (narrow(g - xp.exp(out) * xp.sum(g, axis=axis, keepdims=True), given),)

    return narrow(out, given), pullback
