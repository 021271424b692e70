"""What a row of the table is, and what rows have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sample:
    """One call: the shapes of the array arguments, or arrays where values matter, and the options."""

    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Op:
    """A row: what the operation computes, on what, and which laws hold."""

    name: str
    reference: Callable[..., Any]
    samples: tuple[Sample, ...]
    low: float = -2.0  # arguments are drawn uniformly from [low, high]
    high: float = 2.0
    differentiable: tuple[int, ...] = (0,)  # positions of the arguments with a gradient
    analytic: Callable[..., Any] | None = None  # the reference for complex arguments, where it differs
    on_gpu: Callable[..., Any] | None = None  # the reference there, where it differs
    sequence: bool = False  # takes the arrays as one sequence
    torch: Callable[..., Any] | None = None  # (torch, *args, **options)
    keeps_dtype: bool = True

    def __str__(self) -> str:
        return self.name


def shapes(*shapes: Any, **options: Any) -> Sample:
    return Sample(shapes, options)


ELEMENTWISE = (shapes((3, 4)), shapes((2, 3, 2)), shapes(()), shapes((1,)), shapes((0, 3)))
BROADCASTING = (
    shapes((3, 4), (3, 4)),
    shapes((3, 4), (4,)),
    shapes((3, 1), (1, 4)),
    shapes((), (2, 3)),
    shapes((2, 1, 3), (4, 1)),
    shapes((), ()),
    shapes((0, 3), (3,)),
)
REDUCING = (
    shapes((3, 4)),
    shapes((3, 4), axis=0),
    shapes((3, 4), axis=-1, keepdims=True),
    shapes((2, 3, 4), axis=(0, -1)),
    shapes((2, 3, 4), axis=(2, 0), keepdims=True),
    shapes((2, 3, 4), axis=1),
    shapes(()),
    shapes((3, 4), keepdims=True),
    shapes((5,), axis=0),
)
ALONG = (shapes((3, 4)), shapes((3, 4), axis=0), shapes((2, 3, 4), axis=1), shapes((5,)), shapes((2, 3), axis=(0, 1)))


def mask(*shape: int) -> Any:
    return np.random.default_rng(7).random(shape) < 0.5


def torch_axes(function: str) -> Callable[..., Any]:
    def call(torch: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axis = tuple(range(x.ndim)) if axis is None else axis
        return getattr(torch, function)(x, dim=axis, keepdim=keepdims)

    return call


def torch_named(name: str) -> Callable[..., Any]:
    return lambda torch, *args: getattr(torch, name)(*args)


def torch_functional(name: str) -> Callable[..., Any]:
    return lambda torch, *args: getattr(torch.nn.functional, name)(*args)


def elementwise(name: str, reference: Callable[..., Any] | None = None, **row: Any) -> Op:
    row.setdefault("torch", torch_named(name))
    return Op(name, reference or getattr(np, name), ELEMENTWISE, **row)


def binary(name: str, reference: Callable[..., Any] | None = None, **row: Any) -> Op:
    row.setdefault("differentiable", (0, 1))
    row.setdefault("torch", torch_named(name))
    return Op(name, reference or getattr(np, name), BROADCASTING, **row)
