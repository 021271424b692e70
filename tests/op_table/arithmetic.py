"""Arithmetic, comparisons and constants."""

from __future__ import annotations

import numpy as np

from .rows import BROADCASTING, ELEMENTWISE, Op, Sample, binary, elementwise, mask, shapes, torch_named


def comparing(name: str) -> Op:
    return Op(name, getattr(np, name), BROADCASTING, differentiable=(), keeps_dtype=False)


def masking(name: str) -> Op:
    samples = (Sample((mask(3, 4), mask(4))), Sample((np.arange(6).reshape(2, 3), np.array(3))))
    return Op(name, getattr(np, name), samples, differentiable=(), keeps_dtype=False)


def _quotients() -> tuple[Sample, ...]:
    rng = np.random.default_rng(11)
    pairs = [(sample.args, sign) for sample in BROADCASTING for sign in (1, -1)]
    drawn = [(rng.uniform(2.2, 2.8, x), sign * rng.uniform(0.97, 1.02, y)) for (x, y), sign in pairs]
    return tuple(Sample(tuple(map(np.asarray, args))) for args in drawn)


AWAY_FROM_WHOLE_QUOTIENTS = _quotients()


OPS = (
    binary("add"),
    binary("subtract"),
    binary("multiply"),
    binary("divide", low=0.5),
    Op(
        "floor_divide",
        np.floor_divide,
        AWAY_FROM_WHOLE_QUOTIENTS,
        differentiable=(0, 1),
        analytic=lambda x, y: np.floor(x.real / y.real) + 0j,
    ),
    Op(
        "remainder",
        np.remainder,
        AWAY_FROM_WHOLE_QUOTIENTS,
        differentiable=(0, 1),
        analytic=lambda x, y: x - y * np.floor(x.real / y.real),
        torch=torch_named("remainder"),
    ),
    elementwise("negative"),
    elementwise("positive"),
    Op(
        "power",
        np.power,
        (
            *BROADCASTING,
            Sample(((2, 3), 2)),
            Sample(((2, 3), 0.5)),
            Sample((2.0, (2, 3))),
            Sample(((2, 3), 0)),
            Sample(((2, 3), np.array([0.0, 1.0, 2.0]))),
        ),
        low=0.5,
        differentiable=(0, 1),
        torch=torch_named("pow"),
    ),
    elementwise("absolute", analytic=lambda x: np.where(x.real < 0, -x, x)),
    elementwise("abs", analytic=lambda x: np.where(x.real < 0, -x, x)),
    elementwise("sign", analytic=lambda x: np.sign(x.real) + 0j),
    binary("maximum"),
    binary("minimum"),
    Op(
        "where",
        np.where,
        (
            Sample((mask(3, 4), (3, 4), (3, 4))),
            Sample((mask(3, 1), (4,), (3, 4))),
            Sample((mask(3), (), (2, 3))),
            Sample((mask(0, 3), (0, 3), (3,))),
            Sample((mask(2, 3), (2, 3), 0.0)),
        ),
        differentiable=(1, 2),
        torch=torch_named("where"),
    ),
    Op(
        "clip",
        np.clip,
        (
            shapes((3, 4), a_min=-0.5, a_max=0.7),
            shapes((3, 4), a_min=None, a_max=0.7),
            shapes((3, 4), a_min=-0.5, a_max=None),
            Sample(((3, 4), np.full(4, -0.4), np.full((3, 1), 0.6))),
            Sample(((3, 4), None, np.full(4, 0.1))),
            Sample(((3, 4), np.full(4, -0.4), None)),
            Sample(((2, 3), np.array(0.2), None)),
            Sample(((3, 4), np.array(0.9), np.array(-0.9))),
            shapes((0, 3), a_min=-0.5, a_max=0.7),
        ),
        differentiable=(0, 1, 2),
        analytic=lambda x, a_min, a_max: np.minimum(
            x if a_min is None else np.maximum(x, a_min), np.inf if a_max is None else a_max
        ),
        torch=lambda torch, x, a_min, a_max: torch.clamp(x, a_min, a_max),
    ),
    *map(comparing, ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")),
    *map(masking, ("bitwise_and", "bitwise_or", "bitwise_xor")),
    Op("invert", np.invert, (Sample((mask(3, 4),)), Sample((np.arange(5),))), differentiable=(), keeps_dtype=False),
    Op(
        "isfinite",
        np.isfinite,
        (Sample((np.array([1.0, np.inf, -np.inf, np.nan]),)),),
        differentiable=(),
        keeps_dtype=False,
    ),
    Op("zeros_like", np.zeros_like, ELEMENTWISE, differentiable=()),
    Op("ones_like", np.ones_like, ELEMENTWISE, differentiable=()),
)
