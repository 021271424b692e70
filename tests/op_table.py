"""Every operation and what is true of it: one row per operation, from which tests/test_ops.py derives its properties.

A row gives an independent reference in NumPy, sample arguments, and PyTorch's counterpart. Adding an
operation is adding a row; a test fails while one is missing.
"""

from __future__ import annotations

import math
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


def _var(x: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """np.var without its absolute values, which differ for complex numbers."""
    squares = (x - np.mean(x, axis=axis, keepdims=True)) ** 2
    count = np.ones(x.shape).sum(axis=axis, keepdims=keepdims)
    return np.sum(squares, axis=axis, keepdims=keepdims) / (count - ddof)


def _logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    return np.log(np.sum(np.exp(x), axis=axis, keepdims=keepdims))


def _softmax(x: Any, axis: Any = -1) -> Any:
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


def _scatter_add(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    where = np.broadcast_to(np.arange(int(np.prod(shape))).reshape(shape)[index], x.shape)
    out = np.zeros(int(np.prod(shape)), x.dtype)
    for position, value in zip(where.ravel(), x.ravel(), strict=True):
        out[position] += value
    return out.reshape(shape)


def _cross_entropy(logits: Any, targets: Any) -> Any:
    p = _softmax(logits)
    if np.shape(targets) != np.shape(logits):
        targets = np.eye(logits.shape[-1])[targets]
    return -np.sum(targets * np.log(p)) / (logits.size // logits.shape[-1])


def _erf(x: Any) -> Any:
    """math.erf, with its derivative for the imaginary part of complex numbers that lie next to the real axis."""
    real = np.vectorize(math.erf, otypes=[float])(x.real)
    if not np.iscomplexobj(x):
        return real.astype(x.dtype)
    return real + 1j * x.imag * 2 / np.sqrt(np.pi) * np.exp(-(x.real**2))


def _tanh_form(x: Any) -> Any:
    return np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


_NO_KEY_FOR_SOME = np.array([[0, 1, 1, 0, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)


def _hidden(shape: tuple[int, ...], attn_mask: Any, is_causal: bool) -> tuple[Any, Any]:
    """Which scores do not count, and what is added to the others."""
    hidden = ~np.tri(*shape[-2:], dtype=bool) if is_causal else np.zeros(shape[-2:], bool)
    if attn_mask is None:
        return hidden, 0.0
    if attn_mask.dtype.kind == "b":
        return hidden | ~attn_mask, 0.0
    return hidden | (attn_mask == -np.inf), np.where(attn_mask == -np.inf, 0.0, attn_mask)


def _dropped(shape: tuple[int, ...], dropout_p: float, rng: int) -> Any:
    seed = np.random.default_rng(rng).integers(2**63) if dropout_p else 0
    generator = np.random.Generator(np.random.Philox(key=[int(seed), 0]))
    return (generator.random(shape, np.float32) >= dropout_p) / (1 - dropout_p)


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, rng: int = 0,
) -> Any:  # fmt: skip
    scores = q @ np.swapaxes(k, -1, -2) * (1 / np.sqrt(q.shape[-1]) if scale is None else scale)
    hidden, added = _hidden(scores.shape, attn_mask, is_causal)
    e = np.where(hidden, 0, np.exp(scores + added))
    total = np.sum(e, axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total) * _dropped(e.shape, dropout_p, rng) @ v


def _torch_attention(
    torch: Any, q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, rng: int = 0,
) -> Any:  # fmt: skip
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden, added = _hidden(tuple(scores.shape), None if attn_mask is None else attn_mask.numpy(), is_causal)
    scores = scores + torch.as_tensor(added)
    hidden = torch.from_numpy(np.broadcast_to(hidden, scores.shape).copy())
    weights = torch.softmax(scores.masked_fill(hidden, -1e300), -1).masked_fill(hidden, 0)
    return weights * torch.from_numpy(_dropped(tuple(weights.shape), dropout_p, rng)) @ v


def _heads(columns: Any, stack: Any, heads: int, num_kv_heads: int | None) -> list[Any]:
    """Queries, keys and values, each of ``heads`` heads, of which some may share theirs, from columns per head."""
    shared = num_kv_heads or heads
    keys = [heads + h * shared // heads for h in range(heads)]
    return [stack([columns[i] for i in at]) for at in (range(heads), keys, [i + shared for i in keys])]


def _self_attention(
    qkv: Any, attn_mask: Any = None, *, num_heads: int, num_kv_heads: int | None = None, **options: Any
) -> Any:
    columns = np.split(qkv, num_heads + 2 * (num_kv_heads or num_heads), axis=-1)
    heads = _heads(columns, lambda x: np.stack(x, axis=-3), num_heads, num_kv_heads)
    return np.concatenate(list(np.moveaxis(_attention(*heads, attn_mask, **options), -3, 0)), axis=-1)


def _torch_self_attention(
    torch: Any, qkv: Any, attn_mask: Any = None, *, num_heads: int, num_kv_heads: int | None = None, **options: Any
) -> Any:
    columns = torch.chunk(qkv, num_heads + 2 * (num_kv_heads or num_heads), -1)
    heads = _heads(columns, lambda x: torch.stack(x, -3), num_heads, num_kv_heads)
    return torch.cat(list(torch.unbind(_torch_attention(torch, *heads, attn_mask, **options), -3)), dim=-1)


def _torch_cross_entropy(torch: Any, logits: Any, targets: Any) -> Any:
    rows = targets.reshape(-1) if targets.ndim < logits.ndim else targets.reshape(-1, targets.shape[-1])
    return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), rows)


def _torch_axes(function: str) -> Callable[..., Any]:
    def call(torch: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axis = tuple(range(x.ndim)) if axis is None else axis
        return getattr(torch, function)(x, dim=axis, keepdim=keepdims)

    return call


def _torch_spread(function: str) -> Callable[..., Any]:
    def call(torch: Any, x: Any, axis: Any = None, ddof: int = 0, keepdims: bool = False) -> Any:
        axis = tuple(range(x.ndim)) if axis is None else axis
        return getattr(torch, function)(x, dim=axis, correction=ddof, keepdim=keepdims)

    return call


def _torch_named(name: str) -> Callable[..., Any]:
    return lambda torch, *args: getattr(torch, name)(*args)


def _torch_functional(name: str) -> Callable[..., Any]:
    return lambda torch, *args: getattr(torch.nn.functional, name)(*args)


def elementwise(name: str, reference: Callable[..., Any] | None = None, **row: Any) -> Op:
    row.setdefault("torch", _torch_named(name))
    return Op(name, reference or getattr(np, name), ELEMENTWISE, **row)


def binary(name: str, reference: Callable[..., Any] | None = None, **row: Any) -> Op:
    row.setdefault("differentiable", (0, 1))
    row.setdefault("torch", _torch_named(name))
    return Op(name, reference or getattr(np, name), BROADCASTING, **row)


def comparing(name: str) -> Op:
    return Op(name, getattr(np, name), BROADCASTING, differentiable=(), keeps_dtype=False)


def masking(name: str) -> Op:
    samples = (Sample((mask(3, 4), mask(4))), Sample((np.arange(6).reshape(2, 3), np.array(3))))
    return Op(name, getattr(np, name), samples, differentiable=(), keeps_dtype=False)


def choosing(name: str) -> Op:
    samples = (shapes((3, 4)), shapes((3, 4), axis=1), shapes((2, 3, 4), axis=0, keepdims=True))
    return Op(name, getattr(np, name), samples, differentiable=(), keeps_dtype=False)


def testing(name: str) -> Op:
    samples = tuple(Sample((mask(3, 4),), options) for options in ({}, {"axis": 1}, {"axis": (0, 1), "keepdims": True}))
    samples += (Sample((np.array([[0, 2], [0, 0]]),), {"axis": 0}), shapes((0, 3), axis=0), shapes(()))
    return Op(name, getattr(np, name), samples, differentiable=(), keeps_dtype=False)


def _quotients() -> tuple[Sample, ...]:
    rng = np.random.default_rng(11)
    pairs = [(sample.args, sign) for sample in BROADCASTING for sign in (1, -1)]
    return tuple(Sample((rng.uniform(2.2, 2.8, x), sign * rng.uniform(0.97, 1.02, y))) for (x, y), sign in pairs)


AWAY_FROM_WHOLE_QUOTIENTS = tuple(Sample(tuple(map(np.asarray, sample.args))) for sample in _quotients())
_INDEX = np.array([[2, 0], [2, -1]])


def _gelu(x: Any, approximate: str = "none") -> Any:
    return x * (1 + (_erf(x / np.sqrt(2)) if approximate == "none" else _tanh_form(x))) / 2


LINEAR_SAMPLES = (
    shapes((5, 3), (3, 4), (4,)),
    shapes((2, 5, 3), (3, 4), (4,)),
    shapes((3,), (3, 4), (4,)),
    shapes((5, 3), (3, 4)),
    shapes((0, 3), (3, 4), (4,)),
)

OPS = (
    # arithmetic
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
        torch=_torch_named("remainder"),
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
        torch=lambda torch, x, y: torch.pow(x, y),
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
        torch=lambda torch, c, x, y: torch.where(c, x, y),
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
            Sample(((3, 4), np.array(0.9), np.array(-0.9))),
            shapes((0, 3), a_min=-0.5, a_max=0.7),
        ),
        differentiable=(0, 1, 2),
        analytic=lambda x, a_min, a_max: np.minimum(
            x if a_min is None else np.maximum(x, a_min), np.inf if a_max is None else a_max
        ),
        torch=lambda torch, x, a_min, a_max: torch.clamp(x, a_min, a_max),
    ),
    # elementary functions
    elementwise("exp"),
    elementwise("log", low=0.2),
    elementwise("log1p", low=-0.8),
    elementwise("sqrt", low=0.2),
    elementwise("tanh"),
    elementwise("sin"),
    elementwise("cos"),
    elementwise("erf", _erf, low=-4.0, high=4.0),
    # activations
    elementwise("relu", lambda x: np.maximum(x, 0)),
    elementwise("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    elementwise("silu", lambda x: x / (1 + np.exp(-x)), torch=_torch_functional("silu")),
    Op(
        "leaky_relu",
        lambda x, negative_slope=0.01: np.maximum(x, negative_slope * x),
        (*ELEMENTWISE, shapes((3, 4), negative_slope=0.3)),
        torch=lambda torch, x, negative_slope=0.01: torch.nn.functional.leaky_relu(x, negative_slope),
    ),
    Op(
        "swiglu",
        lambda gate, x: gate / (1 + np.exp(-gate)) * x,
        (
            shapes((3, 4), (3, 4)),
            shapes((2, 3, 4), (4,)),
            shapes((), ()),
            shapes((0, 3), (0, 3)),
            shapes((3, 1), (1, 4)),
        ),
        differentiable=(0, 1),
        torch=lambda torch, gate, x: torch.nn.functional.silu(gate) * x,
    ),
    Op(
        "gelu",
        _gelu,
        (*ELEMENTWISE, shapes((3, 4), approximate="tanh"), shapes((), approximate="tanh")),
        torch=lambda torch, x, approximate="none": torch.nn.functional.gelu(x, approximate=approximate),
    ),
    Op(
        "dropout",
        lambda x, p=0.5, rng=0, residual=0.0: (
            x * (np.random.default_rng(rng).random(x.shape, np.float32) >= p) / (1 - p) + residual
        ),
        (
            shapes((3, 4), p=0.5, rng=3),
            shapes((2, 3, 2), p=0.25, rng=5),
            shapes((3,), p=0.0, rng=0),
            shapes((3, 4), 0.5, 3, (3, 4)),
            shapes((2, 3), 0.5, 4, (3,)),
        ),
        on_gpu=lambda x, p=0.5, rng=0, residual=0.0: x * _dropped(x.shape, p, rng) + residual,
        differentiable=(0, 3),
    ),
    # normalisation
    Op(
        "layer_norm",
        lambda x, weight=1.0, bias=0.0, eps=1e-5, residual=0.0: (
            ((x + residual) - (x + residual).mean(-1, keepdims=True))
            / np.sqrt((((x + residual) - (x + residual).mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True) + eps)
            * weight
            + bias
        ),
        (
            shapes((3, 4), (4,), (4,)),
            shapes((2, 3, 5), (5,), (5,), eps=0.1),
            shapes((4,), (4,), (4,)),
            shapes((2, 1, 4)),
            shapes((3, 4), (4,)),
            shapes((0, 4), (4,), (4,)),
            shapes((2, 3, 4), (4,), (4,), 1e-5, (2, 3, 4)),
        ),
        differentiable=(0, 1, 2, 4),
        torch=lambda torch, x, weight=None, bias=None, eps=1e-5, residual=0.0: torch.nn.functional.layer_norm(
            x + residual, x.shape[-1:], weight, bias, eps
        ),
    ),
    Op(
        "rms_norm",
        lambda x, weight=1.0, eps=1e-6, residual=0.0: (
            (x + residual) / np.sqrt(((x + residual) ** 2).mean(-1, keepdims=True) + eps) * weight
        ),
        (
            shapes((3, 4), (4,)),
            shapes((2, 3, 5), (5,), eps=0.1),
            shapes((4,), (4,)),
            shapes((2, 1, 4)),
            shapes((0, 4), (4,)),
            shapes((2, 3, 4), (4,), 1e-6, (2, 3, 4)),
        ),
        differentiable=(0, 1, 3),
        torch=lambda torch, x, weight=None, eps=1e-6, residual=0.0: torch.nn.functional.rms_norm(
            x + residual, x.shape[-1:], weight, eps
        ),
    ),
    # attention
    Op(
        "scaled_dot_product_attention",
        _attention,
        (
            shapes((2, 3, 4), (2, 5, 4), (2, 5, 3)),
            shapes((2, 2, 4, 3), (2, 2, 4, 3), (2, 2, 4, 3), is_causal=True),
            shapes((5, 3), (2, 3), (2, 4), is_causal=True),
            shapes((2, 3), (5, 3), (5, 4), is_causal=True, scale=0.3),
            shapes((2, 2, 3, 4, 2), (2, 2, 1, 5, 2), (2, 2, 1, 5, 2)),  # heads that share keys and values
            Sample(((2, 3, 4), (2, 5, 4), (2, 5, 3), mask(2, 3, 5))),
            Sample(((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 3), _NO_KEY_FOR_SOME), {"is_causal": True}),
            Sample(((3, 4), (5, 4), (5, 3), np.where(mask(2, 3, 5), 0.3, -np.inf))),
            shapes((0, 2, 3), (0, 4, 3), (0, 4, 2)),
            shapes((2, 3), (0, 3), (0, 2)),
            shapes((2, 3, 4), (2, 5, 4), (2, 5, 3), dropout_p=0.4, rng=3),
            shapes((4, 3), (4, 3), (4, 3), dropout_p=0.4, rng=3, is_causal=True),
        ),
        differentiable=(0, 1, 2),
        torch=_torch_attention,
    ),
    Op(
        "self_attention",
        _self_attention,
        (
            shapes((2, 5, 24), num_heads=2),
            shapes((5, 6), num_heads=1, is_causal=True, scale=0.7),
            shapes((2, 4, 6), num_heads=2, is_causal=True),  # heads of one number
            shapes((2, 5, 16), num_heads=4, num_kv_heads=2, is_causal=True),
            shapes((4, 12), num_heads=4, num_kv_heads=1),
            shapes((3, 2, 4, 12), num_heads=2),
            Sample(((2, 5, 12), mask(2, 1, 5, 5)), {"num_heads": 2}),
            Sample(((2, 4, 16), mask(4, 4, 4)), {"num_heads": 4, "num_kv_heads": 2}),
            Sample(((2, 4, 16), np.where(mask(4), 0.3, -np.inf)), {"num_heads": 4, "num_kv_heads": 2}),
            shapes((2, 3, 12), num_heads=2, dropout_p=0.4, rng=3),
            shapes((0, 3, 12), num_heads=2),
        ),
        torch=_torch_self_attention,
    ),
    Op(
        "rotate_halves",
        lambda x, cos, sin: np.concatenate(
            [
                x[..., : len(cos.T)] * cos - x[..., len(cos.T) :] * sin,
                x[..., len(cos.T) :] * cos + x[..., : len(cos.T)] * sin,
            ],
            axis=-1,
        ),
        (
            Sample(((2, 3, 4), np.cos(np.arange(6.0).reshape(3, 2)), np.sin(np.arange(6.0).reshape(3, 2)))),
            Sample(((6,), np.cos(np.arange(3.0)), np.sin(np.arange(3.0)))),
        ),
    ),
    # comparisons and constants
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
    # reductions
    Op("sum", np.sum, (*REDUCING, shapes((0, 3)), shapes((0, 3), axis=0)), torch=_torch_axes("sum")),
    Op("mean", np.mean, (*REDUCING, shapes((0, 3), axis=1)), torch=_torch_axes("mean")),
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
    Op("max", np.max, (*REDUCING, shapes((0, 3), axis=1)), torch=_torch_axes("amax")),
    Op("min", np.min, (*REDUCING, shapes((0, 3), axis=1)), torch=_torch_axes("amin")),
    *map(choosing, ("argmax", "argmin")),
    *map(testing, ("all", "any")),
    Op("logsumexp", _logsumexp, (*REDUCING, shapes((0, 3), axis=1)), torch=_torch_axes("logsumexp")),
    Op("softmax", _softmax, ALONG, torch=lambda torch, x, axis=-1: _torch_flat(torch.softmax, x, axis)),
    Op(
        "log_softmax",
        lambda x, axis=-1: np.log(_softmax(x, axis)),
        ALONG,
        torch=lambda torch, x, axis=-1: _torch_flat(torch.log_softmax, x, axis),
    ),
    # shapes
    Op(
        "reshape",
        lambda x, shape: np.reshape(x, shape),  # NumPy 2.0 has no keyword shape
        (
            shapes((2, 6), shape=(3, 4)),
            shapes((2, 6), shape=(-1,)),
            shapes((4,), shape=(2, 1, -1)),
            shapes((0, 3), shape=(3, 0)),
            shapes((1,), shape=()),
        ),
        torch=lambda torch, x, shape: x.reshape(shape),
    ),
    Op("ravel", np.ravel, (shapes((2, 3)), shapes(()), shapes((0, 3)))),
    Op(
        "transpose",
        np.transpose,
        (
            shapes((2, 3)),
            shapes((2, 3, 4)),
            shapes((2, 3, 4), axes=(1, 2, 0)),
            shapes((2, 3, 4), axes=(-1, 0, 1)),
            shapes((5,)),
            shapes(()),
        ),
        torch=lambda torch, x, axes=None: x.permute(tuple(range(x.ndim))[::-1] if axes is None else axes),
    ),
    Op(
        "swapaxes",
        np.swapaxes,
        (shapes((2, 3, 4), axis1=0, axis2=-1), shapes((2, 3), axis1=1, axis2=0)),
        torch=lambda torch, x, axis1, axis2: x.swapaxes(axis1, axis2),
    ),
    Op("expand_dims", np.expand_dims, (shapes((2, 3), axis=1), shapes((2, 3), axis=(0, -1)), shapes((), axis=0))),
    Op(
        "squeeze",
        np.squeeze,
        (shapes((1, 3, 1)), shapes((1, 3, 1), axis=0), shapes((1, 3, 1), axis=(0, 2)), shapes((1,))),
    ),
    Op(
        "broadcast_to",
        np.broadcast_to,
        (shapes((3, 1), shape=(2, 3, 4)), shapes((), shape=(2,)), shapes((1, 3), shape=(0, 3))),
        torch=lambda torch, x, shape: torch.broadcast_to(x, shape),
    ),
    Op(
        "astype",
        lambda x, dtype: x.astype(np.result_type(dtype, x.dtype)),
        (shapes((2, 3), dtype=np.float64), shapes((), dtype=np.float64)),
        analytic=lambda x, dtype: x,
        keeps_dtype=False,
    ),
    Op("alias", lambda x: x, ELEMENTWISE),
    Op(
        "concatenate",
        np.concatenate,
        (
            shapes((2, 3), (4, 3)),
            shapes((2, 3), (2, 1), (2, 4), axis=1),
            shapes((2, 3), (4,), axis=None),
            shapes((0, 3), (2, 3)),
            shapes((2, 1, 3), (2, 2, 3), axis=-2),
        ),
        differentiable=(0, 1, 2),
        sequence=True,
    ),
    Op(
        "stack",
        np.stack,
        (
            shapes((2, 3), (2, 3)),
            shapes((2, 3), (2, 3), (2, 3), axis=1),
            shapes((), ()),
            shapes((2, 3), (2, 3), axis=-1),
        ),
        differentiable=(0, 1, 2),
        sequence=True,
        torch=lambda torch, xs, axis=0: torch.stack(xs, axis),
    ),
    # indexing
    Op(
        "getitem",
        lambda x, index: x[index],
        (
            shapes((3, 4), index=1),
            shapes((3, 4), index=(slice(None, None, 2), -1)),
            shapes((3, 4), index=(..., None, slice(1, 3))),
            shapes((3, 4), index=_INDEX),
            shapes((3, 4), index=(np.array([0, 0, 2]), np.array([1, 1, 3]))),
            shapes((3, 4), index=(_INDEX, slice(1, 3))),
            shapes((3, 4), index=mask(3, 4)),
            shapes((3, 4), index=(slice(None), mask(4))),
            shapes((3, 4), index=[0, 0, 1]),
            shapes((3, 4), index=[]),
            shapes((), index=()),
            shapes((2, 3, 4), index=(np.array([1, 0]), slice(None), np.array([3, 3]))),
        ),
        torch=lambda torch, x, index: x[index],
    ),
    Op(
        "scatter_add",
        _scatter_add,
        (
            shapes((2, 2, 4), index=_INDEX, shape=(3, 4)),
            shapes((3,), index=(np.array([0, 0, 2]), np.array([1, 1, 3])), shape=(3, 4)),
            shapes((4,), index=1, shape=(3, 4)),
        ),
    ),
    # products
    Op(
        "matmul",
        np.matmul,
        (
            shapes((2, 3), (3, 4)),
            shapes((3,), (3,)),
            shapes((3,), (3, 4)),
            shapes((2, 3), (3,)),
            shapes((5, 2, 3), (5, 3, 4)),
            shapes((5, 2, 3), (3, 4)),
            shapes((2, 3), (5, 3, 4)),
            shapes((2, 1, 2, 3), (5, 3, 4)),
            shapes((5, 2, 3), (3,)),
            shapes((3,), (5, 3, 4)),
            shapes((0, 3), (3, 4)),
            shapes((2, 0), (0, 4)),
        ),
        differentiable=(0, 1),
        torch=lambda torch, x, y: torch.matmul(x, y),
    ),
    Op(
        "linear",
        lambda x, weight, bias=None: x @ weight + (0 if bias is None else bias),
        LINEAR_SAMPLES,
        differentiable=(0, 1, 2),
        torch=lambda torch, x, weight, bias=None: torch.nn.functional.linear(x, weight.T, bias),
    ),
    Op(
        "linear_relu",
        lambda x, weight, bias=None: np.maximum(x @ weight + (0 if bias is None else bias), 0),
        LINEAR_SAMPLES,
        differentiable=(0, 1, 2),
        torch=lambda torch, x, weight, bias=None: torch.relu(torch.nn.functional.linear(x, weight.T, bias)),
    ),
    Op(
        "linear_gelu",
        lambda x, weight, bias=None, approximate="none": _gelu(x @ weight + (0 if bias is None else bias), approximate),
        (*LINEAR_SAMPLES, shapes((5, 3), (3, 4), (4,), approximate="tanh")),
        differentiable=(0, 1, 2),
        torch=lambda torch, x, weight, bias=None, approximate="none": torch.nn.functional.gelu(
            torch.nn.functional.linear(x, weight.T, bias), approximate=approximate
        ),
    ),
    Op(
        "einsum",
        np.einsum,
        tuple(
            Sample((subscripts, *operands))
            for subscripts, *operands in (
                ("ij,jk->ik", (2, 3), (3, 4)),
                ("bij,bjk->bik", (5, 2, 3), (5, 3, 4)),
                ("ij->ji", (2, 3)),
                ("ij->i", (2, 3)),
                ("ij->", (2, 3)),
                ("ii->i", (3, 3)),
                ("ii", (3, 3)),
                ("iij->j", (3, 3, 2)),
                ("ij,ij->i", (2, 3), (2, 3)),
                ("i,j->ij", (2,), (3,)),
                ("i,j,k->kji", (2,), (3,), (4,)),
                ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
                ("...ij,...jk->...ik", (5, 2, 3), (3, 4)),
                ("b...i,...i->b...", (4, 5, 3), (5, 3)),
                ("ij,jk", (2, 3), (3, 4)),
                ("ij,kj", (2, 3), (4, 3)),
                ("ij,k->i", (2, 3), (4,)),
                (" i j , j -> i ", (2, 3), (3,)),
                ("ij,ij->ij", (1, 3), (2, 3)),
                ("i,i->", (1,), (3,)),
                ("ij,jk->ik", (2, 1), (3, 4)),
                ("...->...", (2, 3)),
                ("ij,jk->ik", (0, 3), (3, 4)),
            )
        ),
        differentiable=(1, 2, 3),
        torch=lambda torch, subscripts, *operands: torch.einsum(subscripts.replace(" ", ""), *operands),
    ),
    # losses
    Op(
        "cross_entropy",
        _cross_entropy,
        (
            Sample(((5, 3), np.array([0, 2, 1, 1, 0]))),
            Sample(((3, 40), np.array([0, 39, 7]))),
            Sample(((2, 40), np.abs(np.random.default_rng(4).standard_normal((2, 40))))),
            Sample(((2, 3, 4), np.array([[0, 3, 1], [2, 2, 0]]))),
            Sample(((3,), np.array(1))),
            Sample(((5, 3), np.abs(np.random.default_rng(3).standard_normal((5, 3))))),
            Sample(((2, 2, 3), np.eye(3)[[[0, 1], [2, 2]]])),
        ),
        differentiable=(0, 1),
        torch=_torch_cross_entropy,
    ),
)


def _torch_flat(function: Callable[..., Any], x: Any, axis: Any) -> Any:
    if isinstance(axis, tuple):  # PyTorch takes one axis: here always all of them
        return function(x.reshape(-1), 0).reshape(x.shape)
    return function(x, axis)
