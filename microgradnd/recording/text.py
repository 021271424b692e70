"""A recorded program as Python: what one would write by hand, with memory made beforehand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .chains import Chain
from .instructions import GIVEN, Instruction, Variable
from .literals import literal
from .names import Names
from .program import ALIGNMENT, Program
from .sequences import Sequence, in_one_call
from .statements import Statements
from .writable import fills_root, may_diverge

LARGE = 1 << 16  # bytes of an array that is given back as soon as it was used for the last time


class Text:
    """The text of a program.

    Attributes:
        source: a module: buffers and views, then the function ``step``.
        names: of the variables.
        functions: what ``source`` calls besides NumPy, by name.
        first_change: the number of the first line that changes what was there before.
    """

    def __init__(
        self,
        program: Program,
        arguments: list[Variable],
        numbers: dict[Variable, str],
        written_numbers: dict[str, Any],
        returned: list[Variable],
        title: str,
        taken: set[str],
        gradients: dict[Variable, Variable | str],
    ) -> None:
        self.program = program
        self._names = Names(program, taken, gradients)
        self.names = self._names.of_variables
        self._statements = Statements(program, self._names)
        self.functions = self._statements.functions
        self._setup = self._statements.setup
        for variable in (*arguments, *numbers):
            self._names.variable(variable)
        self._blocks: dict[Any, str] = {}  # memory for what only a chain uses
        self._empty: dict[str, Variable] = {}  # arrays without elements, by how they are made
        self._loop_names: tuple[str, str] | None = None  # what counts the rows in loops, and the rows of a turn
        self._lines: list[str] = []
        self._first_change = 1 << 30
        self._note = ""
        for variable, place in numbers.items():
            self._line(f"{self.names[variable]} = {place}")
        for x in program.first:
            self._write(x)
        for root, offset in program.planned.items():
            self._buffer(root, offset)
        self._write_all(written_numbers)
        given: set[Variable] = set()
        self._line(f"return {', '.join([self._returned(variable, given) for variable in returned]) or 'None'}")
        self._join(f"step({', '.join(self.names[variable] for variable in arguments)})", title)

    def _write_all(self, written_numbers: dict[str, Any]) -> None:
        """All instructions, and the numbers where what depends on them is next; of constants nothing does."""
        program = self.program
        pending = dict(written_numbers)
        places: dict[Variable, list[str]] = {}  # of the numbers on which a variable depends
        for place, number in pending.items():
            for v in program.depending_on(number):
                places.setdefault(v, []).append(place)
        due: list[str] = []  # of these, where a number is to be written as soon as no branch follows
        end = -1  # of the chain or sequence that has been written
        # What is written before a branch could not be taken back where that goes another way.
        last_branch = max((i for i, x in enumerate(program.body) if x.kind == "branch" or may_diverge(x)), default=-1)
        for i, x in enumerate(program.body):
            chain, sequence = program.chains.get(i), program.sequences.get(i)
            nearest = program.body[i : i + 1 if chain is None else chain.last + 1]
            if met := {place for y in nearest for v in y.reads() for place in places.get(v, ())}:
                due += [place for place in pending if place in met and place not in due]
            while due and i > last_branch:
                self._write_number(place := due.pop(0), pending.pop(place))  # as the step, should a later one fail
            if chain is not None:
                self._write_chain(chain)
                end = chain.last
            elif sequence is not None:
                self._write_sequence(sequence)
                end = sequence.last
            elif i > end:
                self._write(x)
            self._release(i)
        self._note = ""
        for place, number in pending.items():
            self._write_number(place, number)

    def _join(self, signature: str, title: str) -> None:
        """The source of memory, buffers and function, and the line of it at which the first change is made."""
        program, memory = self.program, []
        if program.memory:
            memory = [
                f"memory = np.zeros({program.memory + ALIGNMENT}, np.uint8)",
                f"memory = memory[-memory.ctypes.data % {ALIGNMENT} :]  # what lives at different times shares it",
            ]
        if program.device_memory:
            memory.append(f"device_memory = cp.empty({program.device_memory}, np.uint8)")
        body = [f"    {line}".rstrip() for line in self._lines]
        title = re.sub(r'["\\\n]', " ", title)
        head = [*memory, *self._setup, "", "", f"def {signature}:", f'    """{title}"""']
        self.source = "\n".join([*head, *body, ""])
        self.first_change = len(head) + 1 + sum(line.count("\n") for line in self._lines[: self._first_change])
        self.first_change += self._first_change

    # Lines

    def _write_number(self, place: str, number: Any) -> None:
        self._changes()
        self._line(f"{place} = {self.names[number] if type(number) is Variable else literal(number)}")

    def _changes(self) -> None:
        """Note that the next line is the first that changes what was there before, unless one before did."""
        self._first_change = min(self._first_change, len(self._lines))

    def _line(self, text: str, comment: str = "") -> None:
        self._lines.append(f"{text}  # {comment}" if comment else text)

    def _buffer(self, root: Variable, offset: int | None) -> None:
        name = self._names.result(self.program.makers[root], root)
        shape, dtype = literal(root.shape), literal(root.dtype)
        ordered = root.strides == np.empty(root.shape, root.dtype).strides
        strides = "" if ordered else f", {literal(root.strides)}"
        if offset is None and ordered:
            made = f"{'cp' if root.is_on_device else 'np'}.empty({shape}, {dtype})"
        elif root.is_on_device:
            memory = f"cp.empty({root.nbytes}, np.uint8).data" if offset is None else f"device_memory.data + {offset}"
            made = f"cp.ndarray({shape}, {dtype}, {memory}{strides})"
        elif offset is None:  # an array that owns its memory: views of it hold it then, which replays notice
            outer_first = sorted(range(len(root.shape)), key=lambda i: -root.strides[i])
            lengths = literal(tuple(root.shape[i] for i in outer_first))
            axes = literal(tuple(map(outer_first.index, range(len(root.shape)))))
            made = f"np.empty_like(np.empty({lengths}, {dtype}).transpose({axes}))"
        else:
            made = f"np.ndarray({shape}, {dtype}, memory, {offset}{strides})"
        self._setup.append(f"{name} = {made}")

    def _write(self, x: Instruction) -> None:
        if x.kind == "create" and 0 in x.results[0].shape and self.program.is_hoisted(x):
            # Without elements one is enough.
            same = self._empty.setdefault(repr((x.name, x.args, x.kwargs)), x.results[0])
            if same is not x.results[0]:
                self.names[x.results[0]] = self.names[same]
                return
        for variable in x.results:
            self._names.result(x, variable)
        text = self._statements.statement(x)
        if self.program.is_hoisted(x):
            self._setup.append(text)
            return
        if not text:
            return
        if any(v.root.kind in GIVEN for v in x.writes):
            self._changes()
        if x.note != self._note:
            self._note = x.note
            if x.note:
                self._line(f"# {x.note}")
        # Blocks are of other shapes; a call that makes an array says its shape.
        is_told = bool(self._statements.in_blocks) or (x.kind == "create" and x.results[0] not in self.program.planned)
        shown = [] if is_told else x.results
        shapes = ", ".join(str(v.shape) for v in shown if v.shape is not None and v.root is v)
        for line in text.split("\n"):
            self._line(line, shapes)
            shapes = ""

    def _write_chain(self, chain: Chain) -> None:
        """A loop over blocks of rows."""
        body = self.program.body
        operations = [body[i] for i in chain.members]
        for x in operations:
            for v in x.results:
                name = self._names.result(x, v)
                if v not in self.program.planned and v not in chain.temporaries:  # it is handed out
                    self._line(f"{name} = np.empty({literal(v.shape)}, {literal(v.dtype)})")
        for x in body[chain.first : chain.last]:
            if self.program.computes_nothing(x) and not any(v.root in chain.temporaries for v in x.results):
                self._write(x)
        if any(v.root.kind in GIVEN for x in operations for v in x.writes):
            self._changes()  # from the loop's first line on: in its next iteration lines above a write run after it
        count, step = chain.shape[0], chain.step
        self._loop_names = self._loop_names or (self._names.unused("i"), self._names.unused("rows"))
        turn, rows = self._loop_names
        for x in operations:
            for v in (*x.reads(), *x.results):
                if v.root in chain.temporaries:
                    block = self._block(v, (step, *chain.shape[1:]), chain.temporaries[v.root])
                    self._statements.in_blocks[v] = block if count % step == 0 else f"{block}[: {count} - {turn}]"
                elif chain.is_split(v):
                    self._statements.in_blocks[v] = f"{self._names.variable(v)}[{rows}]"
        self._line(f"for {turn} in range(0, {count}, {step}):", "rows that stay in the cache")
        before = len(self._lines)
        self._line(f"{rows} = slice({turn}, {turn} + {step})")
        for x in operations:
            self._write(x)
        self._statements.in_blocks = {}
        self._lines[before:] = [f"    {line}" for line in self._lines[before:]]

    def _write_sequence(self, sequence: Sequence) -> None:
        """The calls as a list, made before all replays, and one call."""
        body = self.program.body[sequence.first : sequence.last + 1]
        lines: list[str] = []
        notes: list[str] = []
        for i, x in enumerate(body, sequence.first):
            if i not in sequence.calls:
                self._write(x)
                continue
            for v in x.results:
                self._names.result(x, v)
            if x.note and x.note != (notes or [""])[-1]:
                notes.append(x.note)
                lines.append(f"    # {x.note}")
            wish, function, args = sequence.calls[i]
            name = self._names.function(function, wish)
            self.functions[name] = function
            lines.append(f"    ({', '.join([name, *map(self._statements.term, args)])}),")
        maker, calls = self._names.function(in_one_call, "in_one_call"), self._names.unused("calls")
        self.functions[maker] = in_one_call
        self._setup += [f"{calls} = {maker}(", *lines, ")"]
        if any(v.root.kind in GIVEN for x in body for v in x.writes):
            self._changes()
        self._note = ""
        if notes:
            self._line(f"# {' to '.join(dict.fromkeys([notes[0], notes[-1]]))}")
        self._line(f"{calls}()")

    def _block(self, v: Variable, shape: tuple[int, ...], number: int) -> str:
        """The name of memory for a block of a temporary, or of a view of it in another dtype."""
        key = shape, v.root.dtype, v.dtype, number
        if key not in self._blocks:
            self._blocks[key] = self._names.unused("block" if v.dtype == v.root.dtype else "block_view")
            value = f"np.empty({literal(shape)}, {literal(v.dtype)})"
            if v.dtype != v.root.dtype:
                value = f"{self._block(v.root, shape, number)}.view({literal(v.dtype)})"
            self._setup.append(f"{self._blocks[key]} = {value}")
        return self._blocks[key]

    def _release(self, i: int) -> None:
        """Forget large arrays that have no buffer after their last use."""
        program = self.program
        for root in program.ending.get(i, ()):
            if root.kind != "made" or root.shape is None or root in program.leaving or program.is_static(root):
                continue
            if root.nbytes >= LARGE and not any(root in chain.temporaries for chain in program.chains.values()):
                names = [name for v, name in self.names.items() if v.root is root]
                self._line(f"del {', '.join(names)}")

    def _returned(self, variable: Variable, given: set[Variable]) -> str:
        """What a replay hands out, as memory of nobody else: not of ``given``, the roots that have been handed out."""
        root, name = variable.root, self._statements.term(variable)
        is_ours = root in self.program.planned or root in self.program.constant or root.kind == "constant"
        if root.kind == "made" and not root.is_on_device:
            is_ours = is_ours or root in given or not fills_root(variable)
        if is_ours:
            return f"{name}.copy()" if _is_in_rows(variable) else f'{name}.copy("K")'
        given.add(root)
        return name


def _is_in_rows(variable: Variable) -> bool:
    """Whether a copy has its axes in the order of this array, the last one innermost, without being asked for it."""
    strides = [abs(stride) for stride, length in zip(variable.strides, variable.shape, strict=True) if length > 1]
    return strides == sorted(strides, reverse=True)
