"""Recorded instructions as Python, one at a time."""

from __future__ import annotations

from typing import Any

from .instructions import Instruction, Variable, bare, variables
from .literals import literal, slice_text
from .names import Names
from .operators import OPERATORS, UNARY
from .program import Program
from .writable import SHAPING, may_diverge

SYMBOLS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "and": "&", "or": "|", "xor": "^", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "neg": "-", "pos": "+", "invert": "~",
}  # fmt: skip
POWERS = {2: "square", 0.5: "sqrt", -1: "reciprocal", 1: "positive"}  # what NumPy's ** calls for these exponents
FILLS = {"np.zeros": 0, "np.ones": 1}


class Statements:
    """What the instructions of a program are as statements of Python.

    Attributes:
        names: of the variables.
        functions: what the statements call besides NumPy, by name.
        setup: lines that run before all replays.
        in_blocks: what arrays are called within the loop that is being written.
    """

    def __init__(self, program: Program, names: Names) -> None:
        self.program, self.names = program, names
        self.functions: dict[str, Any] = {}
        self.setup: list[str] = []
        self.in_blocks: dict[Variable, str] = {}
        self.reshaped: dict[Any, str] = {}  # buffers in another shape

    def term(self, value: Any) -> str:
        """A variable or a literal, as an operand."""
        if type(value) is Variable:
            return self.in_blocks.get(value) or self.names.variable(value)
        text = literal(value, self.term)
        return f"({text})" if text.startswith("-") else text

    def statement(self, x: Instruction) -> str:
        """One instruction; empty where a buffer is all that it needs."""
        args = [self.term(arg) for arg in x.args]
        if x.kind == "branch":
            tests = {"branch": f"{args[0]} != {args[1]}", "bool": f"bool({args[0]}) is not {args[1]}"}
            test = tests.get(x.name, f"{x.name}({args[0]}) != {args[1]}")
            if type(x.args[1]) is float and x.args[1] == 0:  # of which there are two
                test = f"repr({args[0]}) != {repr(x.args[1])!r}"
            return f"if {test}:\n    raise Diverged"
        if x.kind == "setitem":
            return f"{args[0]}[{self._index(x.args[1])}] = {args[2]}"
        if x.kind == "in place" and x.args[0].is_on_device:
            if x.name in ("matmul", "pow"):
                return f"{args[0]}.__i{x.name}__({args[1]})"
            return f"cp.{OPERATORS[x.name]}({args[0]}, {args[1]}, {args[0]})"
        if x.kind == "in place":
            if x.name == "pow":
                return f"{args[0]}[...] = {args[0]} ** {args[1]}"
            return f"np.{OPERATORS[x.name]}({args[0]}, {args[1]}, {args[0]})"
        root = x.results[0] if len(x.results) == 1 else None
        if root is not None and (root in self.program.planned or root in self.in_blocks):
            return self._into(x, args, self.term(root))
        expression = self._expression(x, args)
        if not x.results:
            return expression
        checks, names = "", self.names.of_variables
        if may_diverge(x):
            arrays = [v for v in x.results if v.shape is not None]
            checks = "".join(f"\nif {names[v]}.shape != {v.shape}:\n    raise Diverged" for v in arrays)
        if x.is_tuple:
            return f"{', '.join(names[v] for v in x.results)}, = {expression}{checks}"
        return f"{names[x.results[0]]} = {expression}{checks}"

    def _into(self, x: Instruction, args: list[str], out: str) -> str:
        """The statement that writes the result into the buffer ``out``."""
        root = x.results[0]
        if root.is_on_device and x.kind in ("operator", "method"):
            name = OPERATORS.get(x.name, x.name)
            return f"cp.{name}({', '.join([*args, out])})"
        if x.kind == "operator":
            name = OPERATORS[x.name]
            if x.name == "pow" and type(x.args[1]) in (int, float):
                power = POWERS.get(x.args[1])
                name, args = (power, args[:1]) if power else (name, args)
            return f"np.{name}({', '.join([*args, _out(name, out)])})"
        if x.kind == "create":
            if bare(x.name) == "empty":
                return ""
            if x.name == "np.full":
                return f"{out}[...] = {args[1]}"
            return f"{out}.fill({FILLS[x.name]})"
        if x.kind == "draw":
            return f"{args[0]}.{x.name}(dtype={literal(root.dtype)}, out={out})"
        if x.name in ("astype", "copy", "np.ascontiguousarray", "np.asarray", "np.array"):
            return f"{out}[...] = {args[0]}"
        if x.name in SHAPING or x.name == "np.reshape":
            source = x.args[0]
            if source.shape not in (None, root.shape):  # of a number there is nothing to reshape
                key = root, source.shape
                if key not in self.reshaped:
                    self.reshaped[key] = self.names.unused(f"{out}_as_{'_'.join(map(str, source.shape))}")
                    self.setup.append(f"{self.reshaped[key]} = {out}.reshape({literal(source.shape)})")
                out = self.reshaped[key]
            return f"{out}[...] = {args[0]}"
        if x.name == "dot":
            return f"np.dot({', '.join(args)}, out={out})"
        keywords = [f"{k}={self.term(v)}" for k, v in x.kwargs.items() if k != "out"]
        if x.kind == "ufunc":
            return f"{x.name}({', '.join([*args, _out(x.name[3:], out), *keywords])})"
        if x.kind == "method":
            return f"{args[0]}.{x.name}({', '.join([*args[1:], *keywords, f'out={out}'])})"
        return f"{x.name}({', '.join([*args, *keywords, f'out={out}'])})"

    def _expression(self, x: Instruction, args: list[str]) -> str:
        if x.kind == "operator":
            if x.name == "abs":
                return f"abs({args[0]})"
            if x.name in UNARY:
                return f"{SYMBOLS[x.name]}{args[0]}"
            return f"{args[0]} {SYMBOLS[x.name]} {args[1]}"
        if x.kind == "attribute":
            return f"{args[0]}.{x.name}"
        if x.kind == "getitem":
            return f"{args[0]}[{self._index(x.args[1])}]"
        keywords = [f"{k}={self.term(v)}" for k, v in x.kwargs.items()]
        if x.kind in ("method", "draw"):
            return f"{args[0]}.{x.name}({', '.join([*args[1:], *keywords])})"
        if x.kind not in ("whole", "kernel"):
            return f"{x.name}({', '.join([*args, *keywords])})"
        name, bound = self.names.function(x.function, x.name), getattr(x.function, "bound", None)
        if bound is None or not all(map(self.program.is_static, variables(x.args[0]))):
            self.functions[name] = x.function
            return f"{name}({', '.join(args)})"
        return f"{self._bound(name, bound, args[0])}({', '.join(args[1:])})"

    def _bound(self, name: str, bound: Any, first: str) -> str:
        """The name of a function of ours that has its first argument, the same in every replay, from the beginning."""
        maker, short = self.names.unused(f"{name}_for"), self.names.unused(name.removesuffix("_all"))
        self.functions[maker] = bound
        self.setup.append(f"{short} = {maker}({first})")
        return short

    def _index(self, index: Any) -> str:
        parts = index if type(index) is tuple else (index,)
        text = ", ".join(slice_text(part, self.term) if type(part) is slice else self.term(part) for part in parts)
        return f"{text}," if type(index) is tuple and len(parts) == 1 else text or "()"


def _out(ufunc: str, out: str) -> str:
    """The argument for the result: by position, which is faster, but where NumPy wants a keyword."""
    return f"out={out}" if ufunc in ("maximum", "minimum") else out
