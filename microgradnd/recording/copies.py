"""Copies that a program can do without: of arrays that nobody changes for as long as the copy is used.

Backward copies a gradient that somebody else holds, since it can't know what becomes of it. A recording knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .instructions import GIVEN, Instruction, Variable


def without_copies(instructions: list[Instruction], fixed: Iterable[Variable]) -> list[Instruction]:
    """The instructions, with the originals in place of copies; ``fixed`` are variables that a step gives out or keeps.

    A copy stays if it is one of those or is written into, has another layout in memory than the original, or is used
    at or after a change of the original. Arrays that were there before may be one and the same, so that a change of
    any of them counts.
    """
    owned = {variable.root for variable in fixed}
    last: dict[Variable, int] = {}
    changes: dict[Any, list[int]] = {GIVEN: []}
    for i, x in enumerate(instructions):
        last.update((variable.root, i) for variable in (*x.reads(), *x.results, *x.writes))
        for variable in x.writes:
            changes.setdefault(variable.root, []).append(i)
            if variable.root.kind in GIVEN:
                changes[GIVEN].append(i)
    originals: dict[Variable, Variable] = {}
    remaining = []
    for i, x in enumerate(instructions):
        x.args, x.kwargs = _replaced((x.args, x.kwargs), originals) if originals else (x.args, x.kwargs)
        for variable in x.results:
            if variable.root in originals:
                variable.root = originals[variable.root].root
        if x.kind == "method" and x.name == "copy" and len(x.args) == 1 and not x.kwargs:
            (original,), (copy,) = x.args, x.results
            between = range(i, last[copy] + 1)
            changed = changes.get(GIVEN if original.root.kind in GIVEN else original.root, ())
            if (
                copy not in owned
                and copy not in changes
                and (original.shape, original.strides, original.dtype) == (copy.shape, copy.strides, copy.dtype)
                and not any(j in between for j in changed)
            ):
                originals[copy] = original
                continue
        remaining.append(x)
    return remaining


def _replaced(value: Any, originals: dict[Variable, Variable]) -> Any:
    """A nested argument with originals for copies."""
    if type(value) is Variable:
        return originals.get(value, value)
    if type(value) in (tuple, list):
        return type(value)(_replaced(part, originals) for part in value)
    if type(value) is dict:
        return {name: _replaced(part, originals) for name, part in value.items()}
    return value
