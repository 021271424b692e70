"""Kernels: what a function does to a part of some work, compiled, and shared among the threads if the work is large."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import int64, types, void

from ..noting import hook
from . import numba_threads
from .numba_compiler import DAMAGED, SUMS, compiled
from .numba_jobs import job, share

SHARE = 1 << 14  # elements that are worth a thread: measured in tests/benchmarks/kernels.py


class Kernel:
    """A function (begin, end, *arrays), compiled when it is first called with arrays of a kind, or for a signature."""

    def __init__(self, function: Callable[..., None], signature: Any = None) -> None:
        self._function, self._signature = function, signature

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
        args = tuple([np.float32(x) if x.__class__ is float else x for x in args])
        parts = max(1, min(numba_threads.team.size, count, count * width // SHARE))
        try:
            numba_threads.team.run(self._compiled(), count, parts, args)
        except DAMAGED as error:  # who fails to compile it has written nothing
            if isinstance(error, OSError) and error.errno is None:  # not the system's: that of a signal
                raise
            numba_threads.team.run(self._compiled(cache=False), count, parts, args)

    @functools.cache  # noqa: B019 (kernels live as long as the process)
    def _compiled(self, cache: bool = True) -> Callable[..., None]:
        """``_call`` of this kernel, by its name and place, under which Numba keeps it on disk."""
        function = self._function
        kernel = numba.njit(fastmath=SUMS, error_model="numpy")(function)
        name, place = function.__qualname__, function.__code__
        code = _call.__code__.replace(
            co_name=self.__name__, co_qualname=name, co_filename=place.co_filename, co_firstlineno=place.co_firstlineno
        )
        call = FunctionType(code, {**globals(), "kernel": kernel, "__name__": function.__module__}, self.__name__)
        call.__qualname__, call.__module__ = name, function.__module__
        signature = self._signature
        if signature is not None:
            first, second, *others = signature.args
            signature = void(first, second, int64, types.StarArgTuple.from_types(tuple(others)))
        return compiled(call, signature, cache)


def _call(count, parts, board, *args):
    function, arguments = job(kernel, args)  # type: ignore[name-defined] # noqa: F821 (see Kernel)
    if share(function, arguments, count, parts, board) != 0:
        raise MemoryError("a compiled kernel has found no memory")
