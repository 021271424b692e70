"""Elementwise operations in a row on large arrays: replays do them block by block, all of them for each.

What they hand on to one another stays in the processor's cache, and takes the memory of a block. A block is of
neighbouring rows, parts along the first axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .instructions import GIVEN, Instruction, Variable, bare
from .writable import can_write

BLOCK = 1 << 15  # elements: of 2^12 to 2^16 the best for float32, where the second cache has 2 MB
LARGE = 1 << 18  # so many elements are worth it; the blocks of an optimiser by NumPy are smaller
VECTORS = 64  # a block has a multiple of so many elements: at the end of an array NumPy may give NaN another sign


class Chain:
    """Operations whose results have one shape.

    Attributes:
        first, last: the positions of the first and the last instruction; between them are only views besides.
        members: the positions of the operations.
        shape: that of their results.
        step: rows of a block.
        temporaries: the results that nobody else uses, each with a number: those of one dtype with the same number take
            turns in the memory of one block.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.members: list[int] = []
        self.shape = shape
        self.step = _step(shape)
        self.temporaries: dict[Variable, int] = {}
        self._used: set[Variable] = set()
        self._changed: set[Variable] = set()  # roots

    @property
    def first(self) -> int:
        return self.members[0]

    @property
    def last(self) -> int:
        return self.members[-1]

    def add(self, i: int, x: Instruction) -> bool:
        """Let the instruction at a position be a member; False, with nothing changed, where rows depend on others."""
        used = self._used | {v for v in (*x.reads(), *x.results) if v.shape is not None}
        changed = self._changed | {v.root for v in (*x.results, *x.writes)}
        if any(v.root in changed and not self._lies_alike(v) for v in used) or not _are_apart(used, changed, {}):
            return False
        self._used, self._changed = used, changed
        self.members.append(i)
        return True

    def holds_for(self, arrays: Mapping[Variable, Any]) -> bool:
        """Whether it may still be done block by block where inputs are these arrays."""
        return _are_apart(self._used, self._changed, arrays)

    def _lies_alike(self, v: Variable) -> bool:
        """Whether an array has the shape of the results and goes through all of its root, as they do."""
        return v.shape == self.shape and _is_whole(v)

    @property
    def across(self) -> set[Variable]:
        """The roots of arrays that lie otherwise than the results: of other rows, or of parts of some."""
        return {v.root for v in self._used if not self._lies_alike(v)}

    def is_split(self, v: Variable) -> bool:
        """Whether a block has its own rows of an array, rather than all of it."""
        return len(v.shape or ()) == len(self.shape) and v.shape[0] == self.shape[0]


def chains(
    body: list[Instruction],
    last: dict[Variable, int],
    leaving: set[Variable],
    computes_nothing: Callable[[Instruction], bool],
) -> dict[int, Chain]:
    """The chains among the instructions, by the position of the first member.

    Args:
        last: the position where a root is used last.
        leaving: roots that somebody uses afterwards.
        computes_nothing: whether an instruction gives a view, or is run before all replays.
    """
    found: list[Chain] = []
    current: Chain | None = None
    for i, x in enumerate(body):
        if computes_nothing(x):
            continue
        shape = _shape(x)
        if current is not None and shape == current.shape and current.add(i, x):
            continue
        current = None
        if shape is not None and (new := Chain(shape)).add(i, x):
            found.append(new)
            current = new
    found = [chain for chain in found if len(chain.members) > 1]
    for chain in found:
        _share_memory(chain, body, last, leaving)
    return {chain.first: chain for chain in found}


def _are_apart(used: set[Variable], changed: set[Variable], arrays: Mapping[Variable, Any]) -> bool:
    """Whether none of the arrays that were there before the step overlaps one that is changed.

    What NumPy knows to share memory has one root. An argument may be a part of anything.
    """
    given = {v.root for v in used if v.root.kind in GIVEN}
    for v in changed & given:
        for w in given - {v}:
            if "argument" in (v.kind, w.kind) or np.may_share_memory(arrays.get(v, v.array), arrays.get(w, w.array)):
                return False
    return True


def _share_memory(chain: Chain, body: list[Instruction], last: dict[Variable, int], leaving: set[Variable]) -> None:
    """A number for each temporary: one that is free again after the operation that reads it for the last time."""
    live: dict[Variable, int] = {}
    free: dict[np.dtype, list[int]] = {}
    for i in chain.members:
        for root in [root for root in live if last[root] <= i]:
            free[root.dtype].append(live.pop(root))
        for root in body[i].results:
            if last[root] <= chain.last and root not in leaving:
                numbers = free.setdefault(root.dtype, [])
                new = 1 + max([n for x, n in chain.temporaries.items() if x.dtype == root.dtype], default=-1)
                chain.temporaries[root] = live[root] = numbers.pop() if numbers else new


def _step(shape: tuple[int, ...]) -> int:
    """How many rows make a block; 0 if none do."""
    row = math.prod(shape[1:])
    unit = VECTORS // math.gcd(row, VECTORS)
    return BLOCK // row // unit * unit


def _shape(x: Instruction) -> tuple[int, ...] | None:
    """The shape of the result of an operation on large arrays, element by element; None of all others."""
    if x.kind == "in place" and x.name != "matmul":
        target: Variable = x.args[0]
    elif _is_elementwise(x) and len(x.results) == 1 and not x.writes and can_write(x, x.results[0]):
        (target,) = x.results
    else:
        return None
    shape: tuple[int, ...] = target.shape
    if math.prod(shape) < LARGE or not 0 < _step(shape) < shape[0] or not _is_whole(target):
        return None
    return shape if all(map(_is_by_rows, x.reads())) else None


def _is_elementwise(x: Instruction) -> bool:
    if x.kind == "operator":
        return x.name != "matmul"
    if x.kind == "method":
        return x.name == "astype" and len(x.args) == 2 and not x.kwargs
    ufunc = getattr(np, bare(x.name), None) if x.kind == "ufunc" else None
    return isinstance(ufunc, np.ufunc) and ufunc.signature is None and ufunc.nout == 1 and not x.kwargs


def _is_by_rows(v: Variable) -> bool:
    """Whether it is a number, or an array on the host whose last axis is contiguous, or repeats one element.

    Of others, such as a transpose, NumPy chooses a better order for the whole than rows are.
    """
    if not v.shape:
        return True
    return not v.is_on_device and (v.shape[-1] == 1 or v.strides[-1] in (0, v.dtype.itemsize))


def _is_whole(v: Variable) -> bool:
    """Whether an array on the host goes through all the memory of its root, in the order of its indices."""
    root = v.root
    if v.is_on_device or v.address != root.address or v.dtype.itemsize != root.dtype.itemsize:
        return False
    return math.prod(v.shape) == math.prod(root.shape) and v.is_c_contiguous
