"""What the variables and functions of a program are called in its text."""

from __future__ import annotations

import builtins
import keyword
import re
import unicodedata
from collections import Counter
from typing import Any

from .instructions import Instruction, Variable, bare
from .program import Program
from .sequences import in_one_call

SHORT = {"scaled_dot_product_attention": "attention", "cross_entropy": "loss"}
# Names of what stands in every module, or of parameters of np.savez, which takes arrays by name.
RESERVED = {
    "Diverged",
    "Path",
    "arrays",
    "cp",
    "memory",
    "np",
    "step",
    "allow_pickle",
    "args",
    "device_memory",
    "file",
    "kwds",
    *dir(builtins),
}


class Names:
    """Names for the variables and functions of a program, each for one thing alone.

    Args:
        taken: what can't be had.
        gradients: of which variables, or of what else, some others are the gradients.

    Attributes:
        of_variables: those that have been given.
    """

    def __init__(self, program: Program, taken: set[str], gradients: dict[Variable, Variable | str]) -> None:
        self.of_variables: dict[Variable, str] = {}
        self._program = program
        self._gradients = gradients
        self._taken = set(RESERVED) | set(keyword.kwlist) | taken
        self._numbers: Counter[str] = Counter()  # the last one that was tried with each name
        self._own: dict[Any, str] = {}  # what functions of ours are called
        for x in program.body:
            if x.kind in ("whole", "kernel"):
                self.function(x.function, x.name)
        called = [call for found in program.sequences.values() for call in found.calls.values()]
        for name, function, _ in called:
            self.function(function, name)
        if called:
            self.function(in_one_call, "in_one_call")

    def variable(self, variable: Variable, wish: str | None = None) -> str:
        """The name that it has, or gets now: this one or its own, if it is still there."""
        if variable not in self.of_variables:
            wish = unicodedata.normalize("NFKC", variable.name if wish is None else wish)  # as Python reads names
            wish = re.sub(r"\W+", "_", wish).strip("_")
            wish = wish if f"x{wish}".isidentifier() else re.sub(r"\W+", "_", wish, flags=re.ASCII).strip("_")
            wish = f"x_{wish}" if wish[:1].isdigit() else wish or "x"
            self.of_variables[variable] = self.unused(wish)
        return self.of_variables[variable]

    def result(self, x: Instruction, variable: Variable) -> str:
        """The name of a result of an instruction."""
        return self.variable(variable, self._wish(x, variable))

    def unused(self, wish: str) -> str:
        """A name that stands for nothing so far: this one, or with a number."""
        name = wish
        while name in self._taken:
            self._numbers[wish] += 1
            name = f"{wish}_{self._numbers[wish]}"
        self._taken.add(name)
        return name

    def function(self, function: Any, wish: str) -> str:
        """The name of a function of ours; of two with the same name one gets a number."""
        if function not in self._own:
            self._own[function] = self.unused(wish.strip("_"))
        return self._own[function]

    def _wish(self, x: Instruction, variable: Variable) -> str:
        """What a result is called: by the operation that it belongs to."""
        if variable in self._gradients:
            of = self._gradients[variable]
            return f"d_{of if isinstance(of, str) else self.variable(of)}"
        if x.kind == "create" and variable.root in self._program.constant:
            return bare(x.name)
        if x.name == "copy" and not x.note:
            original = x.args[0]
            made = self._program.makers.get(original)
            return f"{self.result(made, original) if made else self.variable(original)}_copy"
        source = next((v for v in x.reads() if v.root is variable.root and v in self.of_variables), None)
        if source is not None and self._program.is_view(x):
            if bare(x.name) in ("T", "transpose", "swapaxes"):
                return f"{self.of_variables[source]}_T"
            return (
                f"{re.sub(r'_(rows|part)$', '', self.of_variables[source])}_{'part' if x.kind == 'getitem' else 'rows'}"
            )
        if x.note.startswith("gradient of "):
            note = x.note.removeprefix("gradient of ")
            return f"d_{SHORT.get(note, note)}"
        return SHORT.get(x.note, x.note.split(" ")[0]) or bare(x.name)
