"""Reductions, and what is divided by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .rows import ALONG, REDUCING, Op, Sample, mask, shapes, torch_axes


def choosing(name: str) -> Op:
    samples = (shapes((3, 4)), shapes((3, 4), axis=1), shapes((2, 3, 4), axis=0, keepdims=True))
    return Op(name, getattr(np, name), samples, differentiable=(), keeps_dtype=False)


def testing(name: str) -> Op:
    samples = tuple(Sample((mask(3, 4),), options) for options in ({}, {"axis": 1}, {"axis": (0, 1), "keepdims": True}))
    samples += (Sample((np.array([[0, 2], [0, 0]]),), {"axis": 0}), shapes((0, 3), axis=0), shapes(()))
    return Op(name, getattr(np, name), samples, differentiable=(), keeps_dtype=False)


def _var(x: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """np.var without its absolute values, which differ for complex numbers."""
    squares = (x - np.mean(x, axis=axis, keepdims=True)) ** 2
    count = np.ones(x.shape).sum(axis=axis, keepdims=keepdims)
    return np.sum(squares, axis=axis, keepdims=keepdims) / (count - ddof)


def _logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


def softmax(x: Any, axis: Any = -1) -> Any:
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


def _torch_spread(function: str) -> Callable[..., Any]:
    def call(torch: Any, x: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        axis = tuple(range(x.ndim)) if axis is None else axis
        return getattr(torch, function)(x, dim=axis, correction=ddof, keepdim=keepdims)

    return call


def _torch_flat(function: Callable[..., Any], x: Any, axis: Any) -> Any:
    if isinstance(axis, tuple):  # PyTorch takes one axis: here always all of them
        return function(x.reshape(-1), 0).reshape(x.shape)
    return function(x, axis)


OPS = (
    Op("sum", np.sum, (*REDUCING, shapes((0, 3)), shapes((0, 3), axis=0)), torch=torch_axes("sum")),
    Op("mean", np.mean, (*REDUCING, shapes((0, 3), axis=1)), torch=torch_axes("mean")),
    Op(
        "var",
        np.var,
        (*REDUCING, shapes((3, 4), axis=0, ddof=1), shapes((2, 3, 4), axis=(0, 2), ddof=1, keepdims=True)),
        analytic=_var,
        torch=_torch_spread("var"),
    ),
    Op(
        "std",
        np.std,
        (*(s for s in REDUCING if s.args != ((),)), shapes((3, 4), axis=0, ddof=1)),
        analytic=lambda x, **options: np.sqrt(_var(x, **options)),
        torch=_torch_spread("std"),
    ),
    Op("max", np.max, (*REDUCING, shapes((0, 3), axis=1)), torch=torch_axes("amax")),
    Op("min", np.min, (*REDUCING, shapes((0, 3), axis=1)), torch=torch_axes("amin")),
    *map(choosing, ("argmax", "argmin")),
    *map(testing, ("all", "any")),
    Op("logsumexp", _logsumexp, (*REDUCING, shapes((0, 3), axis=1)), torch=torch_axes("logsumexp")),
    Op("softmax", softmax, ALONG, torch=lambda torch, x, axis=-1: _torch_flat(torch.softmax, x, axis)),
    Op(
        "log_softmax",
        lambda x, axis=-1: np.log(softmax(x, axis)),
        ALONG,
        torch=lambda torch, x, axis=-1: _torch_flat(torch.log_softmax, x, axis),
    ),
)
