"""How kernels are compiled: once for one thread and once for all, by Numba, kept on disk.

A call on all threads costs some microseconds before it computes anything, so small work stays on one.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import pickle
import sys
import textwrap
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

_imported_by_others = "numba" in sys.modules

import numba  # noqa: E402
import numpy as np  # noqa: E402

from ..noting import hook  # noqa: E402

PARALLEL = 1 << 20  # elements from which all threads are faster than one: measured in tests/benchmarks/kernels.py

# Numba's own threads sleep while they wait. Those of OpenMP, which it would choose, go on turning for a while, as those
# of OpenBLAS do: the step of a transformer took 4 times as long with both. NUMBA_THREADING_LAYER still chooses, and
# beside somebody else's use of Numba its setting stays as it is, and kernels stay on one thread.
if numba.config.THREADING_LAYER == "default":
    if _imported_by_others:
        PARALLEL = sys.maxsize
    else:
        numba.config.THREADING_LAYER = "workqueue"

# Sums may be added up in any order, as NumPy does, so that they are vectorised; products and sums may be fused.
# Nothing is assumed of NaN and infinity.
SUMS = {"reassoc", "contract"}
EXACT = {"contract"}


class Kernel:
    """A function of arrays, compiled when it is first called with arrays of a kind, or for those of a signature."""

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
        """The positions of the arguments of a call, the number of elements first, that are written into."""
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(self._function))).body
        targets = [target for x in ast.walk(definition) if isinstance(x, ast.Assign) for target in x.targets]
        targets += [x.target for x in ast.walk(definition) if isinstance(x, ast.AugAssign)]
        parts = [part for x in targets for part in (x.elts if isinstance(x, ast.Tuple) else [x])]
        written = {x.value.id for x in parts if isinstance(x, ast.Subscript) and isinstance(x.value, ast.Name)}
        names = self._function.__code__.co_varnames[: self._function.__code__.co_argcount]
        return tuple(i + 1 for i, name in enumerate(names) if name in written)

    def __call__(self, elements: int, *args: Any) -> None:
        """Run it on ``args``, which have so many ``elements`` to go through; numbers are taken in float32."""
        if hook.call is not None:
            written = [(elements, *args)[i] for i in self.writes]
            return hook.call(self.__name__, self, (elements, *args), written)
        self.run(elements, *args)

    def run(self, elements: int, *args: Any) -> None:
        """The same, unnoticed by a recording."""
        args = tuple([np.float32(x) if x.__class__ is float else x for x in args])
        if elements < PARALLEL:
            self._run("serial", args)
        else:
            with _launching:  # Numba's own threads take one call at a time
                self._run("parallel", args)

    def _run(self, variant: str, args: tuple[Any, ...]) -> None:
        try:
            self._compiled(variant)(*args)
        except (EOFError, OSError, pickle.PickleError):  # the cache on disk is damaged, or the disk is full
            self._compiled(variant, cache=False)(*args)

    @functools.cache  # noqa: B019 (kernels live as long as the process)
    def _compiled(self, variant: str, cache: bool = True) -> Callable[..., None]:
        function = self._function
        # Under a name of its own: Numba's cache on disk tells functions apart by name, not by options.
        named: Any = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_{variant}")
        named.__qualname__, named.__module__ = named.__name__, function.__module__
        signature = () if self._signature is None else (self._signature,)
        options: dict[str, Any] = {"fastmath": SUMS, "error_model": "numpy", "nogil": True}
        options["parallel"] = variant == "parallel"
        try:
            return numba.njit(*signature, cache=cache, **options)(named)
        except RuntimeError:  # there is no directory that could be written to
            return numba.njit(*signature, **options)(named)


_launching = threading.Lock()


def _fresh_lock() -> None:
    """In a forked process nobody is left who would release the lock."""
    global _launching
    _launching = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)
