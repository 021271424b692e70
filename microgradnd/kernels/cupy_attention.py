"""Attention on CuPy arrays without scores in device memory: the kernels are those of :mod:`.cuda_attention`.

Arrays are addressed as (A, B, G, T, width) by their strides, so heads that were made by transposing are not copied.
Heads of keys and values may be shared by all G heads of queries of a group.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np

from ..noting import noted
from .cuda_attention import FORWARD
from .cuda_attention_gradient import GRADIENTS

SOURCE = FORWARD + GRADIENTS
WIDTHS = (16, 32, 64, 128, 256)  # for which kernels are made; a head takes the next larger one
TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float", "float64": "double"}
MASKS = {"bool": "bool", **TYPES}
OPTIONS = ("-std=c++17",)
KERNELS = ("forward", "query_gradient", "key_gradient")
PROBLEM = np.dtype([("strides", np.int64, 37), ("sizes", np.int32, 7)], align=True)  # struct Problem
_compiled: dict[tuple[Any, ...], Any] = {}


class Tiles(NamedTuple):
    """Rows and threads of a block: what ``Tiles`` in the source says for a dtype and a width."""

    rows: int  # queries of forward
    side: int  # queries or keys of backward
    threads: int
    side_threads: int

    @classmethod
    @functools.cache
    def of(cls, dtype: str, width: int) -> Tiles:
        size = width * accumulator(dtype).itemsize
        return cls(*((64, 32, 128, 128) if size <= 256 else (32, 16, 128, 128) if size <= 512 else (16, 8, 128, 64)))


name_of = functools.cache(lambda dtype: dtype.name)  # NumPy makes the name anew each time


@functools.cache
def accumulator(dtype: str) -> Any:
    """In which sums are formed."""
    return np.dtype("float64" if dtype == "float64" else "float32")


def widest(dtype: str) -> int:
    """The widest head for which tiles fit into 48 KiB."""
    return 1024 // accumulator(dtype).itemsize


def expression(kernel: str, dtype: str, width: int, mask: str | None, is_causal: bool) -> str:
    """The name of a kernel's instance in C++, for names of dtypes."""
    kind = "NoMask" if mask is None else MASKS[mask]
    return f"{kernel}<{TYPES[dtype]}, {width}, {kind}, {str(is_causal).lower()}>"


def sources() -> Iterator[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """Name, code, name expressions and options of everything that may be compiled."""
    for dtype, width in itertools.product(TYPES, WIDTHS):
        if width <= widest(dtype):
            masks = dict.fromkeys([None, "bool", dtype, accumulator(dtype).name])
            variants = itertools.product(KERNELS, masks, (False, True))
            names = tuple(expression(kernel, dtype, width, mask, causal) for kernel, mask, causal in variants)
            yield f"attention_{dtype}_{width}", SOURCE, names, OPTIONS


def launch(kernel: str, variant: tuple[Any, ...], blocks: int, threads: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel's instance, which is compiled when it is first used on a device."""
    at = (kernel, cupy.cuda.runtime.getDevice(), *variant)
    function = _compiled.get(at)
    if function is None:
        name = expression(kernel, *variant)
        module = cupy.RawModule(code=SOURCE, options=OPTIONS, name_expressions=(name,))
        function = _compiled[at] = module.get_function(name)
    function((blocks,), (threads,), arguments)


def _strides(x: Any) -> list[int]:
    """Strides of (A, B, G, T, width) in elements, 0 for axes of length 1."""
    return [0] * (5 - x.ndim) + [0 if n == 1 else s // x.itemsize for n, s in zip(x.shape, x.strides, strict=True)]


def _with_rows(x: Any) -> Any:
    """x, or a copy of it, with the elements of a row side by side."""
    return x if x.shape[-1] == 1 or x.strides[-1] == x.itemsize else cupy.ascontiguousarray(x)


def _empty_heads(leading: tuple[int, ...], count: int, width: int, dtype: Any) -> Any:
    """(*leading, count, width), in whose memory the heads of one position lie side by side, as they are joined."""
    batch, heads = leading[: len(leading) > 1], leading[len(leading) > 1 :]
    return cupy.moveaxis(cupy.empty((*batch, count, *heads, width), dtype), len(batch), -2)


class Call:
    """What the kernels are told of one call: its arrays with their rows side by side, its variant, its sizes."""

    def __init__(self, query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, scale: float) -> None:
        dtype, leading = name_of(query.dtype), query.shape[:-2]
        (queries, width), (keys, value_width) = query.shape[-2:], value.shape[-2:]
        self.arrays = [_with_rows(x) for x in (query, key, value)]
        mask, mask_name, self._mask_strides = np.uintp(0), None, [0] * 5
        if attn_mask is not None:
            known = name_of(attn_mask.dtype) in ("bool", dtype)
            mask = attn_mask if known else attn_mask.astype(accumulator(dtype), copy=False)
            mask_name, self._mask_strides = name_of(mask.dtype), _strides(mask)
        self.mask = mask
        padded = next(w for w in WIDTHS if w >= max(width, value_width))
        self.variant = (dtype, padded, mask_name, is_causal)
        self.tiles = Tiles.of(dtype, padded)
        self.number = accumulator(dtype).type
        self.scale = self.number(scale)
        self.heads, self.own_heads = math.prod(leading), math.prod(key.shape[:-2])
        b, g = ((1, 1) + leading)[-2:]
        self.sizes = (b, g, self.heads // self.own_heads, queries, keys, width, value_width)

    def problem(self, *others: Any) -> Any:
        """``struct Problem``, passed by value; the others are out, and in backward g and the gradients."""
        strides = [n for x in (*self.arrays, *others) for n in _strides(x)[:4]]
        return np.array(((*strides, *[0] * (32 - len(strides)), *self._mask_strides), self.sizes), PROBLEM)


@noted
def attention_forward(
    query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, scale: float
) -> tuple[Any, Any, Any]:
    """The result, and of each query the largest score and 1 / the sum of exp(score - largest)."""
    call = Call(query, key, value, attn_mask, is_causal, scale)
    leading, queries = query.shape[:-2], query.shape[-2]
    out = _empty_heads(leading, queries, value.shape[-1], query.dtype)
    largest, share = (cupy.empty((call.heads, queries), call.number) for _ in range(2))
    blocks = call.heads * -(-queries // call.tiles.rows)
    arguments = *call.arrays, call.mask, out, largest, share, call.problem(out), call.scale
    launch("forward", call.variant, blocks, call.tiles.threads, arguments)
    return out, largest, share


@noted
def attention_gradients(
    g: Any, query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, scale: float, out: Any, largest: Any,
    share: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Those of query, key and value, from what :func:`attention_forward` gave."""
    call = Call(query, key, value, attn_mask, is_causal, scale)
    g = _with_rows(g.astype(query.dtype, copy=False))
    dq, dk, dv = (_empty_heads(x.shape[:-2], x.shape[-2], x.shape[-1], query.dtype) for x in (query, key, value))
    delta = cupy.empty_like(share)
    settings = call.problem(out, g, dq, dk, dv), call.scale
    threads, side = call.tiles.side_threads, call.tiles.side
    common = g, *call.arrays, call.mask
    arguments = *common, out, largest, share, delta, dq, *settings
    launch("query_gradient", call.variant, call.heads * -(-query.shape[-2] // side), threads, arguments)
    arguments = *common, largest, share, delta, dk, dv, *settings
    launch("key_gradient", call.variant, call.own_heads * -(-key.shape[-2] // side), threads, arguments)
    return dq, dk, dv


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any, is_causal: bool, scale: float
) -> tuple[Any, Any] | None:
    """softmax(scale query key^T + mask) value of arrays of one dtype, and its pullback.

    None for more than three leading axes, leading axes that broadcast otherwise than groups of heads, widths beyond
    ``widest``, other dtypes, arrays without elements, and arrays on the host.
    """
    dtype, leading = name_of(query.dtype), query.shape[:-2]
    shared = (*leading[:-1], 1)
    (queries, width), (keys, value_width) = query.shape[-2:], value.shape[-2:]
    if (
        dtype not in TYPES
        or any(x.dtype != query.dtype or not isinstance(x, cupy.ndarray) for x in (key, value))
        or len(leading) > 3
        or key.shape[:-2] not in (leading, shared)
        or value.shape[:-2] != key.shape[:-2]
        or 0 in (*query.shape, *value.shape)
        or max(width, value_width) > widest(dtype)
    ):
        return None
    if attn_mask is not None:
        shape = (*leading, queries, keys)
        if not isinstance(attn_mask, cupy.ndarray) or attn_mask.ndim != len(shape):
            return None
        if any(m not in (1, n) for m, n in zip(attn_mask.shape, shape, strict=True)):
            return None
    arguments = query, key, value, attn_mask, bool(is_causal), scale
    out, largest, share = attention_forward(*arguments)
    return out, lambda g, places=None: attention_gradients(g, *arguments, out, largest, share)
