"""Compiled kernels in a row on small arrays: replays do all of them, and products between them, by one call.

Python takes 1 to 2 us for a call, more than what is done by it where arrays have a few thousand elements. Arrays that
are others in each replay are copied into memory that stays where it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import numpy as np

from .instructions import GIVEN, Instruction, Variable, bare
from .writable import can_write, may_diverge

SMALL = 1 << 16  # bytes: larger arrays are not copied
LARGE = 1 << 18  # bytes: a product or a sum that gives more takes so long that a call of its own does not count
PRODUCTS = ("dot", "matmul", "inner", "outer", "tensordot", "einsum", "vdot")

# The name of a compiled function, itself, and its arguments: how often, and those after parts and board.
Call = tuple[str, Any, tuple[Any, ...]]


def in_one_call(*calls: tuple[Any, ...]) -> Callable[[], None]:
    """See kernels.numba_sequences."""
    return importlib.import_module("..kernels.numba_sequences", __package__).in_one_call(*calls)  # type: ignore[no-any-return]


class Sequence:
    """Calls by their positions; between the ``first`` and the ``last`` one is only what computes nothing."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}

    @property
    def first(self) -> int:
        return min(self.calls)

    @property
    def last(self) -> int:
        return max(self.calls)


def sequences(
    body: list[Instruction],
    does_nothing: Callable[[Instruction], bool],
    is_static: Callable[[Variable], bool],
) -> dict[int, Sequence]:
    """Those of at least two calls, of which one is a kernel's, by the position of the first one.

    Args:
        does_nothing: whether a replay does nothing for an instruction.
        is_static: whether an array is the same object in every replay.
    """
    if not any(x.kind == "kernel" for x in body):
        return {}  # also where there is no Numba
    found: list[Sequence] = [Sequence()]
    for i, x in enumerate(body):
        if does_nothing(x):
            continue
        call = call_of(x)
        if call is not None and all(map(is_static, (*x.reads(), *x.results, *x.writes))):
            found[-1].calls[i] = call
        elif found[-1].calls:
            found.append(Sequence())
    return {x.first: x for x in found if len(x.calls) > 1 and any(body[i].kind == "kernel" for i in x.calls)}


def call_of(x: Instruction) -> Call | None:
    """What does the same as an instruction, bit for bit, as a call of a compiled function; None where nothing does."""
    if x.kind == "kernel":
        shared = isinstance(x.function, MethodType)  # Kernel.run, on several threads
        return None if shared else (x.name, x.function, (x.args[0], *x.args[3:]))
    arrays = [*x.args, *x.results, *x.kwargs.values()]
    if not all(type(v) is Variable and v.array_type is np.ndarray and v.dtype == np.float32 for v in arrays):
        return None
    if any(1 in v.shape or 0 in v.shape for v in arrays) or not all(
        v.is_c_contiguous or v.is_f_contiguous for v in arrays
    ):
        return None
    if any(v.nbytes > LARGE for v in (*x.results, *x.writes)):
        return None
    if bare(x.name) == "dot" and len(x.args) == 2 and len(x.results) == 1 and not x.kwargs:
        return _product(x.args[0], x.args[1], x.results[0])
    if x.kind == "ufunc" and x.name == "np.add" and list(x.kwargs) == ["out"] and x.kwargs["out"] is x.args[0]:
        return _sum(*x.args)
    return None


def _product(a: Variable, b: Variable, out: Variable) -> Call | None:
    blas = importlib.import_module("..kernels.numba_blas", __package__)
    if len(b.shape) != 2 or not out.is_c_contiguous:
        return None
    if a.shape == b.shape[::-1] and a.strides == b.strides[::-1]:
        return None  # if it is a matrix and its own transpose, now or in another replay, NumPy computes a half
    if len(a.shape) == 2 and blas.SGEMM:
        return "dot", blas.dot, (1, a, b, out)
    if len(a.shape) == 1 and b.is_c_contiguous and blas.SGEMV:
        return "vector_dot", blas.vector_dot, (1, a, b, out)
    return None


def _sum(x: Variable, bias: Variable) -> Call | None:
    if len(x.shape) != 2 or bias.shape != x.shape[1:] or not x.is_c_contiguous:
        return None
    if x.root.kind in GIVEN or x.root is bias.root:
        return None  # they may overlap, or be read-only
    kernels = importlib.import_module("..kernels.numba_kernels", __package__)
    return "add_bias", kernels.add_bias.compiled, (x.shape[0], x, bias)


def arranged(body: list[Instruction], outputs: Iterable[Variable]) -> list[Instruction]:
    """The instructions with what depends on arguments alone first, and copies of small arrays that calls read.

    Copied are arguments, and what is made anew in each replay; none of ``outputs``, which a step gives out, and
    none that is written into. An argument may be a part of anything that was there before: what reads it after a
    change of that stays where it is, and so does the argument. What may fail stays behind a branch.
    """
    if not any(x.kind == "kernel" and call_of(x) for x in body):
        return body
    unchanged = first_of(body, lambda x: any(v.root.kind in GIVEN for v in x.writes))
    before_branch = min(unchanged, first_of(body, lambda x: x.kind == "branch" or may_diverge(x)))
    written = {v.root for x in body for v in x.writes}
    body = early_first(body[:before_branch], written, _is_given_or_small) + body[before_branch:]
    rows = sequences(body, _is_view_or_memory, lambda v: True)
    calls = {body[i] for row in rows.values() for i in row.calls}
    kept = written | {v.root for v in outputs} | _with_parts(body)
    kept |= {v.root for x in body[unchanged:] for v in x.reads() if v.root.kind == "argument"}
    # Whether the two factors of a product are the same memory may be seen in its bits.
    kept |= {v.root for x in body if bare(x.name) in PRODUCTS and x not in calls for v in x.reads()}
    read = {v.root for x in calls for v in x.reads()} - kept
    buffers: dict[Variable, Variable] = {}
    copies = [_copied(v, buffers) for v in read if v.kind == "argument" and _is_small(v)]
    arrangement = sorted(copies, key=lambda x: str(x.args[0].name))
    for x in body:
        x.replace(buffers)
        arrangement.append(x)
        arrangement += [
            _copied(v, buffers)
            for v in x.results
            if v in read and v.root is v and v.kind == "made" and _is_small(v) and not can_write(x, v)
        ]
    return arrangement


def _is_view_or_memory(x: Instruction) -> bool:
    """Whether a replay will do nothing for an instruction, as far as can be told before memory is planned."""
    return bool(x.results) and (bare(x.name) == "empty" or all(v.root is not v for v in x.results))


def _with_parts(body: list[Instruction]) -> set[Variable]:
    """Arrays of whose memory something else is seen too, that is no view of them: another argument, a parameter."""
    views: set[Variable] = set()
    found: set[Variable] = set()
    for x in body:
        for v in x.results:
            if v.root is not v:
                known = any(w is v.root or (w in views and w.root is v.root) for w in x.reads())
                (views if known else found).add(v if known else v.root)
    return found


def first_of(body: list[Instruction], holds: Callable[[Instruction], bool]) -> int:
    """The position of the first instruction for which that holds; after the last one if there is none."""
    return next((i for i, x in enumerate(body) if holds(x)), len(body))


def early_first(
    body: list[Instruction], written: set[Variable], holds: Callable[[Variable], bool]
) -> list[Instruction]:
    """The instructions with those first that need nothing but arguments.

    Neither these nor what they give is ``written`` into, and for both that ``holds``.
    """

    def may_be_early(v: Variable) -> bool:
        return v.root not in written and holds(v)

    known: set[Variable] = set()
    early, late = [], []
    for x in body:
        if (
            x.results
            and not x.writes
            and x.kind != "draw"
            and all(v in known or (v.kind == "argument" and may_be_early(v)) for v in x.reads())
            and all(map(may_be_early, x.results))
        ):
            known.update(x.results)
            early.append(x)
        else:
            late.append(x)
    return early + late


def _is_given_or_small(v: Variable) -> bool:
    return v.kind == "argument" or v.root is not v or _is_small(v)


def _is_small(v: Variable) -> bool:
    return v.array_type is np.ndarray and v.is_c_contiguous and v.nbytes <= SMALL


def _copied(v: Variable, buffers: dict[Variable, Variable]) -> Instruction:
    """A copy of an array, in whose place it is used from now on."""
    buffers[v] = copy = v.twin()
    instruction = Instruction("method", "copy", None, (v,), {}, "")
    instruction.results.append(copy)
    return instruction
