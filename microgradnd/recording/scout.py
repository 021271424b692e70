"""Which of a program's functions a call runs: what their text names is what its outcome may depend on."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

LIBRARIES = frozenset(["builtins", "cupy", "llvmlite", "microgradnd", "nn", "numba", "numpy"])


def root_of(module: str | None) -> str:
    return (module or "").partition(".")[0]


def is_users(module: str | None) -> bool:
    """Whether a module is the program's own, neither ours nor one of Python's."""
    root = root_of(module)
    return root != "" and root not in LIBRARIES and (root == "__main__" or root not in sys.stdlib_module_names)


class Executed:
    """The program's own functions that a step has run so far."""

    def __init__(self) -> None:
        self.globals: dict[CodeType, dict[str, Any]] = {}
        self.functions: dict[CodeType, list[FunctionType]] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what runs in the block."""

        def profile(frame: Any, event: Any, argument: Any) -> None:
            if event == "call" and frame.f_code not in self.globals and is_users(frame.f_globals.get("__name__")):
                self.globals[frame.f_code] = frame.f_globals
            if outer is not None:
                outer(frame, event, argument)

        outer = sys.getprofile()
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(outer)
            self._find_functions()

    def _find_functions(self) -> None:
        """The functions that have the codes: their closures and defaults are read too."""
        new = [code for code in self.globals if code not in self.functions]
        self.functions |= {code: [] for code in new}
        if new:
            for found in gc.get_referrers(*new):
                if isinstance(found, FunctionType) and found.__code__ in self.functions:
                    self.functions[found.__code__].append(found)


def names_in(code: CodeType) -> list[str]:
    """The names in a function's text, those in functions within it included."""
    found = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found.update(dict.fromkeys(names_in(constant)))
    return list(found)
