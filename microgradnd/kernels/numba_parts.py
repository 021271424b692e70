"""Kernels: what a function does to a part of some work, compiled, and shared among the threads if the work is large."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import int64, void

from ..noting import hook
from . import numba_threads
from .numba_compiler import DAMAGED, SOURCES, SUMS, compiled, inner
from .numba_jobs import job, keep, share


class Kernel:
    """A function (begin, end, *arrays), compiled when it is first called with arrays of a kind, or for a signature."""

    def __init__(self, function: Callable[..., None], signature: Any = None) -> None:
        self._function, self._signature = function, signature
        self._call: Any = None  # compiled, once it is needed

    @classmethod
    def of(cls, signature: Any) -> Callable[[Callable[..., None]], Kernel]:
        """A decorator for functions of arguments of these types."""
        return lambda function: cls(function, signature)

    @functools.cached_property
    def __name__(self) -> str:
        return self._function.__name__

    @functools.cached_property
    def writes(self) -> tuple[int, ...]:
        """The positions of the arguments of a call that are written into: of its two numbers and then the arrays.

        A signature says so; else they are those with an element that is assigned to.
        """
        if self._signature is not None:
            return tuple(i for i, kind in enumerate(self._signature.args) if getattr(kind, "mutable", False))
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(self._function))).body
        targets = [target for x in ast.walk(definition) if isinstance(x, ast.Assign) for target in x.targets]
        targets += [x.target for x in ast.walk(definition) if isinstance(x, ast.AugAssign)]
        parts = [part for x in targets for part in (x.elts if isinstance(x, ast.Tuple) else [x])]
        written = {x.value.id for x in parts if isinstance(x, ast.Subscript) and isinstance(x.value, ast.Name)}
        names = self._function.__code__.co_varnames[: self._function.__code__.co_argcount]
        return tuple(i for i, name in enumerate(names) if name in written)

    def __call__(self, count: int, width: int, *args: Any) -> None:
        """Do what is to be done ``count`` times, with about ``width`` elements each; numbers are taken in float32."""
        if hook.call is not None:
            written = [(count, width, *args)[i] for i in self.writes]
            return hook.call(self.__name__, self, (count, width, *args), written)
        self.run(count, width, *args)

    def run(self, count: int, width: int, *args: Any) -> None:
        """The same, unnoticed by a recording. A part that finds no memory raises MemoryError when all are done."""
        args = _in_float32(args)
        try:
            numba_threads.team.run(self.compiled, count, width, args)
        except DAMAGED as error:
            if not _while_compiling(error):
                raise
            numba_threads.team.run(self._compile(cache=False), count, width, args)

    def replayed(self, args: tuple[Any, ...], real: tuple[Any, ...]) -> tuple[Callable[..., None], tuple[Any, ...]]:
        """A function, and its arguments, that do what a call with ``args`` did, which stand for ``real`` ones.

        Where work is not worth two threads that is the compiled function itself, which is found a microsecond sooner.
        """
        count, width, *_ = args
        changing = any(x.__class__ is float and y is not x for x, y in zip(real, args, strict=True))  # into float32
        if changing or numba_threads.is_worth_sharing(count, width):
            return self.run, args
        self.run(0, 1, *real[2:])  # compiled
        return self.compiled, (count, 1, 0, *_in_float32(args[2:]))

    @property
    def compiled(self) -> Callable[..., None]:
        """What is called: (count, parts, board, *arrays), see CALL; with a signature, or after a call."""
        return self._call or self._compile()

    def bind(self, count: int, width: int, *args: Any) -> Callable[..., None]:
        """For a kernel with a signature: a function of the remaining arguments, numbers, that does the same as run."""
        if numba_threads.is_worth_sharing(count, width):
            return functools.partial(self.run, count, width, *args)
        return functools.partial(self.compiled, count, 1, 0, *args)

    def _compile(self, cache: bool = True) -> Callable[..., None]:
        """A function (count, parts, board, *arrays) that does all parts of a call.

        Where ``parts`` is 0 it does none and stores the call at the address ``board``, for numba_sequences.

        Its text has the kernel as a global, since Numba keeps on disk what its file, name and code stand for: of a
        closure it compares the contents, and a compiled function is another in every process.
        """
        function = self._function
        name, *names = function.__code__.co_name, *function.__code__.co_varnames[2 : function.__code__.co_argcount]
        text = CALL.format(name=name, arguments=", ".join(names))
        scope = {
            "kernel": inner(fastmath=SUMS, error_model="numpy")(function),
            "job": job,
            "keep": keep,
            "share": share,
        }
        # Where the kernel's own lines are, since Numba, which keeps the function on disk, reads what stands there.
        lines_before = "\n" * (function.__code__.co_firstlineno - 1)
        exec(compile(lines_before + text, function.__code__.co_filename, "exec"), scope)
        call = scope[name]
        call.__module__, call.__qualname__ = function.__module__, f"{function.__qualname__}_{SOURCES}"
        signature = self._signature
        if signature is not None:
            signature = void(int64, int64, int64, *signature.args[2:])
        self._call = compiled(call, signature, cache)
        return self._call


def _in_float32(args: tuple[Any, ...]) -> tuple[Any, ...]:
    if float not in map(type, args):
        return args
    return tuple([np.float32(x) if x.__class__ is float else x for x in args])


def _while_compiling(error: BaseException) -> bool:
    """Whether an error is of Numba's cache, and nothing has been computed: no signal's handler has raised it since."""
    if isinstance(error, OSError) and error.errno is None:  # not the system's: that of a signal
        return False
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(name.startswith("numba.") for name in names)


CALL = """def {name}(count, parts, board, {arguments}):
    function, arguments = job(kernel, ({arguments},))
    if parts == 0:
        keep(board, function, count, ({arguments},))
    elif share(function, arguments, count, parts, board) != 0:
        raise MemoryError("a compiled kernel has found no memory")
"""
