"""Which of a program's functions a call runs: what their text names is what its outcome may depend on."""

from __future__ import annotations

import dis
import functools
import gc
import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import CO_GENERATOR
from queue import SimpleQueue
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from .active import CaptureError, is_recording
from .held_types import HeldTypes
from .instructions import root_of

LIBRARIES = frozenset(
    ["builtins", "cupy", "cupy_backends", "cupyx", "fastrlock", "llvmlite", "microgradnd", "nn", "numba", "numpy"]
)
GLOBAL_NAMES = ("DELETE_GLOBAL", "LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL")
PATHS = ("posixpath", "ntpath")
OUTSIDE = ("os", *PATHS, "queue")  # what these do, a replay does not do either
ENTERING = (getattr(np.errstate.__enter__, "__code__", None),)
BY_STRINGS = frozenset(["attrgetter", "delattr", "hasattr", "methodcaller", "setattr"])
IMPORTING = vars(importlib._bootstrap)  # whoever is called from there is imported
UNREPEATED = (globals, input, next, open, print)  # what a replay does not do


def is_users(module: str | None) -> bool:
    """Whether a module is neither ours nor one of Python's."""
    return isinstance(module, str) and _is_users(module)


@functools.cache  # while a step is recorded it is asked for each call of a function
def _is_users(module: str) -> bool:
    root = root_of(module)
    return root != "" and root not in LIBRARIES and (root == "__main__" or root not in sys.stdlib_module_names)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in the block: whoever's it is, its finalizers would be taken for a part of the step."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Executed:
    """The program's own functions that a step has run so far.

    Attributes:
        globals: the global variables of each, by its code.
        unrepeated: a function that the last call used and no replay would, such as ``print``, by its name.
    """

    def __init__(self, step: Any) -> None:
        # Those of the step are the program's, whatever they say of their module.
        self.own = getattr(getattr(step, "__func__", step), "__globals__", None)
        self.globals: dict[CodeType, dict[str, Any]] = {}
        self.unrepeated: str | None = None
        self.ignores_errors = False  # whether the program itself has used np.errstate in the last call
        self._generators: set[Any] = set()  # frames of those that the step has begun
        self._importing: Any = None  # the frame of what an import has called, until it returns
        self._types = HeldTypes()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what runs in the block. A profiler of the program goes on, but for cProfile, up to Python 3.11."""
        self.unrepeated = self._importing = None
        self.ignores_errors = False
        outer: Any = sys.getprofile()
        is_put_aside = outer is not None and not callable(outer)  # C alone can call it
        if is_put_aside and not hasattr(outer, "enable"):
            raise CaptureError(
                f"capture: the profiler {outer!r} can't be put aside while a step is recorded; begin it after the "
                "first three calls, and after those with new shapes"
            )

        def both(frame: Any, event: Any, argument: Any) -> None:
            self._note(frame, event, argument)
            outer(frame, event, argument)

        note = self._note if outer is None or is_put_aside else both
        try:
            sys.setprofile(note)
            yield
        finally:
            if sys.getprofile() is not note:
                self.unrepeated = "a profiler"
            if is_put_aside:
                outer.enable()  # which returns to what has called it: disable would have ended that in the profile
            else:
                sys.setprofile(outer)
            self._types.take_away()
            self._generators.clear()

    def _note(self, frame: Any, event: Any, argument: Any) -> None:
        scope = frame.f_globals
        if event == "c_call":
            users = self._importing is None and (scope is self.own or is_users(scope.get("__name__")))
            if users and _is_unrepeated(argument):
                owner = argument.__module__ or type(argument.__self__).__name__
                self.unrepeated = f"{owner}.{argument.__name__}".removeprefix("builtins.")
        elif event == "call":
            if self._importing is None:
                self._note_call(frame, scope)
        elif frame is self._importing and event == "return":
            self._importing = None

    def _note_call(self, frame: Any, scope: Any) -> None:
        caller = frame.f_back
        if caller is not None and caller.f_globals is IMPORTING:
            self._importing = frame  # of modules of their own, such as Numba's and SciPy's, once
            return
        module = scope.get("__name__")
        if scope is self.own or is_users(module):
            self.globals.setdefault(frame.f_code, scope)
            if is_recording():
                self._types.put(frame.f_code, scope)
            if frame.f_code.co_flags & CO_GENERATOR:
                if frame.f_lasti < _first_yield(frame.f_code):  # begun, and not gone on with
                    self._generators.add(frame)
                elif frame not in self._generators:
                    self.unrepeated = f"a generator that was there before, {frame.f_code.co_name}"
        elif module in OUTSIDE and self.unrepeated is None and _is_called_by_users(frame):
            self.unrepeated = f"{'os' if module in PATHS else module}.{frame.f_code.co_name}"
        elif module == "logging" and frame.f_code.co_name == "_log" and _is_called_by_users(frame):
            self.unrepeated = f"logging.{caller.f_code.co_name}"  # of a level that is on
        elif frame.f_code in ENTERING and is_users(caller.f_globals.get("__name__")):
            self.ignores_errors = True

    def names(self) -> set[str]:
        """All names in their text, those of attributes and of functions within them included.

        Where attributes are looked up by strings or patterns, constants too that may be their names.
        """
        found = {name for code in [*self.globals] for part in _with_inner(code) for name in part.co_names}
        patterns = any(x.opname == "MATCH_CLASS" for code in self.globals for x in dis.get_instructions(code))
        if patterns or BY_STRINGS & found:
            found |= self.strings()
        return found | ({"__match_args__"} if patterns else set())

    def strings(self) -> set[str]:
        """All strings in their text that may be names."""
        return {name for code in self.globals for name in _strings_in(code.co_consts)}


def _strings_in(constants: tuple[Any, ...]) -> Iterator[str]:
    """The strings among constants that may name attributes, also "a.b", and those in tuples, as of keywords."""
    for constant in constants:
        if isinstance(constant, tuple):
            yield from _strings_in(constant)
        elif isinstance(constant, str):
            yield from (name for name in constant.split(".") if name.isidentifier())


@functools.cache
def _first_yield(code: CodeType) -> int:
    """Where a generator function yields first."""
    return next((x.offset for x in dis.get_instructions(code) if x.opname == "YIELD_VALUE"), sys.maxsize)


def _is_unrepeated(function: Any) -> bool:
    """Whether a replay would not do what a function of Python's does: the clock, files and iterators go on."""
    return (
        function in UNREPEATED
        or function.__module__ == "time"
        or isinstance(getattr(function, "__self__", None), io.IOBase | SimpleQueue)
    )


def _is_called_by_users(frame: Any) -> bool:
    """Whether the program has called a function of Python's library, which may call others of it."""
    caller = frame.f_back
    while caller is not None and root_of(caller.f_globals.get("__name__")) in sys.stdlib_module_names:
        caller = caller.f_back
    return caller is not None and is_users(caller.f_globals.get("__name__"))


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def globals_in(code: CodeType) -> list[str]:
    """The global variables that a function reads or sets, and functions within it."""
    instructions = (x for part in _with_inner(code) for x in dis.get_instructions(part))
    return list(dict.fromkeys(x.argval for x in instructions if x.opname in GLOBAL_NAMES))


def modules_in(code: CodeType, scope: dict[str, Any]) -> list[ModuleType]:
    """The modules that a function imports itself, as far as they have been imported."""
    names = [x.argval for x in dis.get_instructions(code) if x.opname == "IMPORT_NAME"]
    package = scope.get("__package__") or ""  # relative ones are taken for those of the innermost package
    found = [sys.modules.get(name) for x in names for name in (x, f"{package}.{x}".strip("."))]
    return [module for module in found if module is not None]
