"""Copies that a program can do without: of arrays that nobody changes for as long as the copy is used.

Backward copies a gradient that somebody else holds, since it can't know what becomes of it. A recording knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .instructions import GIVEN, Instruction, Variable


def without_copies(instructions: list[Instruction], outputs: Iterable[Variable]) -> list[Instruction]:
    """The instructions but for such copies; the others are changed to use the originals.

    A copy stays if it is one of ``outputs``, the variables that a step gives out, or is written into, has
    another layout in memory than the original, or is used at or after a change of the original. An argument may be a
    parameter's array, but no buffer of a gradient: a replay for which somebody holds one gets other buffers.
    """
    owned = {variable.root for variable in outputs}
    last: dict[Variable, int] = {}
    changes: dict[Any, list[int]] = {}
    for i, x in enumerate(instructions):
        last.update((variable.root, i) for variable in (*x.reads(), *x.results, *x.writes))
        for variable in x.writes:
            changes.setdefault(_memory(variable), []).append(i)
    originals: dict[Variable, Variable] = {}
    remaining = []
    for i, x in enumerate(instructions):
        x.replace(originals)
        if x.kind == "method" and x.name == "copy" and len(x.args) == 1 and not x.kwargs:
            (original,), (copy,) = x.args, x.results
            if (
                copy not in owned
                and copy not in changes
                and (original.shape, original.strides, original.dtype) == (copy.shape, copy.strides, copy.dtype)
                and not any(i <= j <= last[copy] for j in changes.get(_memory(original), ()))
            ):
                originals[copy] = original
                continue
        remaining.append(x)
    return remaining


def _memory(variable: Variable) -> Any:
    """What stands for a variable's memory: arrays that were there before may be one and the same."""
    return GIVEN if variable.root.kind in GIVEN else variable.root
