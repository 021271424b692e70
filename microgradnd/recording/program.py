"""From what was recorded to what is replayed: what is needed, what is constant, and where in memory it lies.

Memory is planned by whole arrays: the variables of one array and its views live and die together. Instructions keep
their order, so a value that is changed in place is read before or after the change as it was in the recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .active import CaptureError
from .chains import Chain, chains
from .copies import without_copies
from .instructions import GIVEN, Instruction, Variable, bare
from .residuals import with_residuals
from .sequences import arranged, early_first, first_of, sequences
from .writable import ELEMENTWISE, can_write, fills_root, may_diverge

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
LARGE_RESULT = 1 << 18  # bytes: to copy less takes a few microseconds, as it would to call kernels for other arrays


class Program:
    """The instructions that are needed, and for each array made by them what it is.

    Args:
        instructions: what was recorded.
        outputs: arrays that a replay hands out.
        kept: those of them with a buffer of their own, which is handed out itself: gradients.
        numbers: what an optimiser keeps from this step for the next, needed even if no array is computed with it.

    Attributes:
        first: instructions on numbers alone, which come before all others.
        body: the others.
        constant: roots that no replay changes.
        planned: roots with a buffer of their own: (offset in the memory that they share, or None). Not of large results
            that are handed out, which each replay makes anew. On a device only what elementwise functions and products
            of matrices give; for the rest CuPy's pool serves every call.
        chains: elementwise operations that replays do block by block, by the position of the first one.
        sequences: calls of kernels that replays do by one call, by the position of the first one.
        memory: bytes of the memory that is shared; ``device_memory`` of that on a device.
        last: the position in ``body`` of the last instruction that uses a root.
    """

    def __init__(
        self, instructions: list[Instruction], outputs: list[Variable], kept: set[Variable], numbers: list[Variable]
    ) -> None:
        self.outputs, self.kept = outputs, kept
        needed = without_copies(_needed(instructions, [*outputs, *numbers]), outputs)
        alone = _numbers_alone(needed)
        self.first = [x for x in needed if x in alone]
        self.body = with_residuals([x for x in needed if x not in alone], outputs)
        self.body = arranged(_checks_first(self.body), outputs)
        _refuse_late_branches(self.body)
        self.draws = any(x.kind == "draw" for x in self.body)
        self.constant = _constant(self.body, outputs)
        self.makers = {variable.root: x for x in self.body for variable in x.results if variable.root is variable}
        self.last = {
            variable.root: i for i, x in enumerate(self.body) for variable in (*x.reads(), *x.results, *x.writes)
        }
        self.used = {variable for x in (*self.first, *self.body) for variable in x.reads()} | {*outputs, *numbers}
        self.ending: dict[int, list[Variable]] = {}  # by the position of the last instruction that uses them
        for root, i in self.last.items():
            self.ending.setdefault(i, []).append(root)
        self.leaving = {variable.root for variable in outputs}
        self.planned: dict[Variable, int | None] = {}
        self.chains = chains(self.body, self.last, self.leaving, self.computes_nothing)
        self.memory = self.device_memory = 0
        self._plan()
        self.sequences = sequences(self.body, self._does_nothing, self.is_static)

    def is_static(self, variable: Variable) -> bool:
        """Whether the array is the same object in every replay, so that views of it can be made beforehand."""
        root = variable.root
        if "argument" in (variable.kind, root.kind):
            return False
        return root.kind in ("input", "constant") or root in self.planned or root in self.constant

    def depending_on(self, number: Variable) -> set[Variable]:
        """A number, and those that are computed from it."""
        found = {number}
        for x in self.first:
            if any(v in found for v in x.reads()):
                found.update(x.results)
        return found

    def is_view(self, instruction: Instruction) -> bool:
        return (
            bool(instruction.results)
            and all(variable.shape is not None and variable.root is not variable for variable in instruction.results)
            and not instruction.writes
        )

    def is_hoisted(self, instruction: Instruction) -> bool:
        """Whether the instruction is run once, before all replays."""
        touched = (*instruction.results, *instruction.writes)
        if touched and all(v.root in self.constant for v in touched):
            return True
        return self.is_view(instruction) and all(map(self.is_static, instruction.reads()))

    def computes_nothing(self, x: Instruction) -> bool:
        """Whether an instruction gives a view, or is run before all replays."""
        return self.is_view(x) or self.is_hoisted(x)

    def _does_nothing(self, x: Instruction) -> bool:
        """Whether a replay does nothing for an instruction: it computes nothing, or gives memory that is planned."""
        return self.computes_nothing(x) or (
            x.kind == "create" and bare(x.name) == "empty" and x.results[0] in self.planned
        )

    def _plan(self) -> None:
        """A place in memory for each array that an instruction can write into, free again after its last use.

        The arrays of a chain, which is done block by block, are free after its last operation. A result may still reuse
        the memory of an argument that its operation is the last to read, since both have the same layout.
        """
        leaving = self.leaving
        whole = {v.root for v in self.outputs if fills_root(v)}  # of others a part would keep all of their memory
        chain: Chain | None = None
        dying_later: list[Variable] = []  # at the end of the chain
        free = {False: _Free(), True: _Free()}  # of the host, and of a device

        def dying(i: int) -> list[Variable]:
            return [v for v in self.ending.get(i, ()) if self.planned.get(v) is not None and v not in leaving]

        for i, x in enumerate(self.body):
            root = x.results[0] if len(x.results) == 1 else None
            taken: Variable | None = None  # in whose memory the result is written
            chain = self.chains.get(i, chain)
            if root is not None and chain is not None and root in chain.temporaries:
                pass  # the memory of a block
            elif root is not None and root.root is root and root not in self.constant and can_write(x, root):
                if root in self.kept:
                    self.planned[root] = None
                elif root in leaving and (root.is_on_device or (_size(root) >= LARGE_RESULT and root in whole)):
                    pass  # made anew by each replay, since it would have to be copied out of a buffer
                else:
                    across = chain.across if chain is not None else ()
                    taken = self._in_place(x, root, [dead for dead in dying(i) if dead not in across])
                    if taken is not None:
                        self.planned[root] = self.planned[taken]
                    else:
                        self.planned[root] = free[root.is_on_device].take(_size(root))
            dying_later += [dead for dead in dying(i) if dead is not taken]  # also a result that nobody reads
            if chain is not None and i < chain.last:
                continue
            for dead in dying_later:
                free[dead.is_on_device].give(self.planned[dead], _size(dead))
            chain, dying_later = None, []
        self.memory, self.device_memory = free[False].end, free[True].end

    def _in_place(self, x: Instruction, root: Variable, dying: list[Variable]) -> Variable | None:
        """An argument in whose memory the result can be written, since nobody reads it any more."""
        if x.kind not in ELEMENTWISE or x.name == "matmul" or root.is_on_device:
            return None  # of another array in the memory of the result CuPy makes a copy first
        reads = x.reads()
        for other in dying:
            # As large, and read as the result lies in memory: also through a view of another shape.
            same = (math.prod(other.shape), other.dtype.itemsize) == (math.prod(root.shape), root.dtype.itemsize)
            if same and all(v.root is not other or (v.shape, v.strides) == (root.shape, root.strides) for v in reads):
                return other
        return None


class _Free:
    """Memory by offset: what is free of it, and where it ends."""

    def __init__(self) -> None:
        self.end = 0
        self._blocks: list[tuple[int, int]] = []  # (offset, size), by offset, neighbours joined

    def take(self, size: int) -> int:
        fitting = [block for block in self._blocks if block[1] >= size]
        if fitting:
            offset, length = min(fitting, key=lambda block: (block[1], -block[0]))
            self._blocks.remove((offset, length))
            if length > size:
                self._blocks.append((offset + size, length - size))
            return offset
        if self._blocks and sum(max(self._blocks)) == self.end:  # the last one is grown
            offset, _ = block = max(self._blocks)
            self._blocks.remove(block)
        else:
            offset = self.end
        self.end = offset + size
        return offset

    def give(self, offset: int | None, size: int) -> None:
        assert offset is not None
        self._blocks.append((offset, size))
        joined: list[tuple[int, int]] = []
        for start, length in sorted(self._blocks):
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._blocks = joined


def _size(root: Variable) -> int:
    return -(-root.nbytes // ALIGNMENT) * ALIGNMENT


def _needed(instructions: list[Instruction], outputs: list[Variable]) -> list[Instruction]:
    """Those on which an output, an array that was there before, a branch or a generator depends.

    And those by whose values the step has gone where it asked for a shape.
    """
    live: set[Variable] = set()
    decisive = _deciding_shapes(instructions)

    def read(found: Iterable[Variable]) -> None:
        for variable in found:
            live.update((variable, variable.root))

    read(outputs)
    needed = []
    for x in reversed(instructions):
        if (
            x.kind in ("draw", "branch")
            or x in decisive
            or any(variable in live for variable in x.results)
            or any(variable.root in live or variable.root.kind in GIVEN for variable in x.writes)
        ):
            needed.append(x)
            read(x.reads())
            read(x.writes)
    return needed[::-1]


def _deciding_shapes(instructions: list[Instruction]) -> set[Instruction]:
    """Those that give shapes by values, where the step has asked for these shapes, or for what follows from them."""
    asked = {v.root for x in instructions for v in x.results if v.root.is_asked}
    found = set()
    for x in reversed(instructions):
        if any(v.root in asked for v in x.results):
            asked.update(v.root for v in x.reads())
            if may_diverge(x):
                found.add(x)
    return found


def _numbers_alone(instructions: list[Instruction]) -> set[Instruction]:
    """Those that compute numbers from numbers, and the branches on these."""
    known: set[Variable] = set()
    made = {variable for x in instructions for variable in x.results}
    found = set()
    for x in instructions:
        reads = x.reads()
        computes = x.kind == "branch" or (x.kind == "operator" and all(v.kind == "number" for v in x.results))
        if computes and reads and all(v in known or (v.kind == "number" and v not in made) for v in reads):
            found.add(x)
            known.update(x.results)
    return found


def _checks_first(body: list[Instruction]) -> list[Instruction]:
    """The instructions with those that check class indices before the first change.

    Should a check fail, nothing has been done, and the step itself raises the error. What is computed from arguments of
    integers alone comes first, but none of what is written into.
    """
    changed = first_of(body, lambda x: any(v.root.kind in GIVEN for v in x.writes))
    written = {v.root for x in body for v in x.writes}
    if any(v.kind in GIVEN and _is_of_integers(v) for v in written):
        return body  # an argument may be a part of it
    return body[:changed] + early_first(body[changed:], written, _is_of_integers)


def _is_of_integers(v: Variable) -> bool:
    return v.array_type is np.ndarray and v.dtype.kind in "iu"


def _refuse_late_branches(body: list[Instruction]) -> None:
    changed = False
    for x in body:
        if (x.kind == "branch" or may_diverge(x)) and changed:
            does, instead = "branches on the value of a tensor", "Branch before"
            if x.kind != "branch":
                name = "x[mask]" if x.kind == "getitem" else x.name
                does, instead = f"calls for {name}, whose shape depends on values,", "Do so before, or after the call"
            raise CaptureError(
                f"capture: the step {does} after it changed parameters; such a step can't be taken back where it goes "
                f"another way. {instead}, or use mg.where"
            )
        changed = changed or any(variable.root.kind in GIVEN for variable in x.writes)


def _constant(body: list[Instruction], outputs: list[Variable]) -> set[Variable]:
    """The arrays that come out the same in every replay, whatever there is before it."""
    constant = {v.root for x in body for v in x.results if v.root.kind == "made"}
    constant -= {variable.root for variable in outputs}
    changed = {v.root: i for i, x in enumerate(body) for v in x.writes}  # when for the last time
    changing = True
    while changing:
        changing = False
        for i, x in enumerate(body):
            touched = {v.root for v in (*x.results, *x.writes)}
            if x.kind in ("draw", "branch") or not all(v.root in constant for v in (*x.reads(), *touched)):
                # What every replay does can't read what is changed later, which would have been done before.
                touched |= {v.root for v in x.reads() if changed.get(v.root, -1) > i}
                if touched & constant:
                    constant -= touched
                    changing = True
    return constant
