"""Operations of the table on their samples: values, gradients, and complex steps to compare these with."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.op_table import OPS, Op, Sample

CASES = [pytest.param(op, sample, id=f"{op}-{i}") for op in OPS for i, sample in enumerate(op.samples)]
SMOOTH = [case for case in CASES if case.values[0].differentiable]


def drawn(op: Op, sample: Sample, dtype: Any = np.float64) -> list[Any]:
    """The sample's arguments: a tuple of integers is the shape of an array to draw."""
    rng = np.random.default_rng(len(op.name) + len(sample.args))
    args = []
    for x in sample.args:
        if isinstance(x, tuple):
            x = np.asarray(rng.uniform(op.low, op.high, x), dtype)
        elif is_floating(x):
            x = x.astype(dtype)
        args.append(x)
    return args


def reference_of(op: Op, device: Any) -> Any:
    return op.on_gpu if op.on_gpu is not None and device.name == "cuda" else op.reference


def is_floating(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def varied(op: Op, args: list[Any]) -> list[int]:
    """The positions of the arguments whose gradient is checked."""
    return [i for i in op.differentiable if i < len(args) and is_floating(args[i])]


def evaluated(op: Op, function: Callable[..., Any], args: list[Any], options: dict[str, Any]) -> Any:
    return function(args, **options) if op.sequence else function(*args, **options)


def weights(shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    return np.asarray(np.random.default_rng(99).uniform(0.5, 1.5, shape), dtype)


def gradients(op: Op, sample: Sample, args: list[Any], device: Any, order: int = 1) -> tuple[Any, list[Any]]:
    """The result and, for the weighted sum of its elements, the gradients for the varied arguments."""
    positions = varied(op, args)
    tensors: list[Any] = [
        mg.tensor(device.array(x), requires_grad=i in positions) if isinstance(x, np.ndarray) else x
        for i, x in enumerate(args)
    ]
    out = evaluated(op, getattr(mg, op.name), tensors, sample.options)
    loss = (out * device.array(weights(out.shape, out.dtype))).sum()
    loss.backward(create_graph=order == 2)
    found = [tensors[i].grad for i in positions]
    if order == 2:
        for i in positions:
            tensors[i].grad = mg.zeros_like(tensors[i])  # a gradient that does not vary leaves nothing
        total = functools.reduce(operator.add, [(g * g * device.array(weights(g.shape))).sum() for g in found])
        if total.requires_grad:
            total.backward()
        found = [tensors[i].grad for i in positions]
    return out, [device.host(g.data) for g in found]


def complex_step(f: Callable[..., Any], args: list[Any], i: int) -> Any:
    """The gradient of a scalar analytic function: Im f(x + ih) / h, exact to rounding (Squire and Trapp, 1998)."""
    h = 1e-30
    numbers = np.empty(args[i].shape)
    for position in np.ndindex(args[i].shape):
        moved = [x.astype(complex) if is_floating(x) else x for x in args]
        moved[i][position] += 1j * h
        numbers[position] = np.imag(f(*moved)) / h
    return numbers


def assert_close(ours: Any, expected: Any, tolerance: float) -> None:
    assert np.shape(ours) == np.shape(expected)
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def compare_with_complex_step(op: Op, sample: Sample, device: Any) -> None:
    args = drawn(op, sample)
    _, ours = gradients(op, sample, args, device)
    reference = op.analytic or reference_of(op, device)

    def scalar(*values: Any) -> Any:
        out = evaluated(op, reference, list(values), sample.options)
        return np.sum(out * weights(np.shape(out)))

    for i, gradient in zip(varied(op, args), ours, strict=True):
        assert_close(gradient, complex_step(scalar, args, i), 1e-12)
