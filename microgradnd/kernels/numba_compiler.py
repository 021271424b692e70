"""How kernels are compiled, by Numba, kept on disk, and how large work is shared among the threads."""

from __future__ import annotations

import ast
import functools
import inspect
import pickle
import sys
import textwrap
from collections.abc import Callable
from typing import Any

_imported_by_others = "numba" in sys.modules

import numba  # noqa: E402
import numpy as np  # noqa: E402
from numba.core import codegen  # noqa: E402

from ..noting import hook  # noqa: E402
from . import numba_threads  # noqa: E402

SHARE = 1 << 16  # elements that are worth a thread: measured in tests/benchmarks/kernels.py

# LLVM uses half of the width of AVX-512 on Intel's processors, which lost clock speed by it in 2017. Beside somebody
# else's use of Numba its setting stays as it is.
FEATURES = numba.config.CPU_FEATURES
if FEATURES is None:
    FEATURES = codegen.get_host_cpu_features()
    if "+avx512f" in FEATURES.split(",") and not _imported_by_others:
        FEATURES = numba.config.CPU_FEATURES = f"{FEATURES},-prefer-256-bit"
AVX512 = "+avx512f" in FEATURES.split(",")

# Sums may be added up in any order, as NumPy does, so that they are vectorised; products and sums may be fused.
# Nothing is assumed of NaN and infinity.
SUMS = {"reassoc", "contract"}
EXACT = {"contract"}

DAMAGED = (EOFError, OSError, pickle.PickleError)  # the cache on disk is, or the disk is full


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
        """The same, unnoticed by a recording."""
        args = tuple([np.float32(x) if x.__class__ is float else x for x in args])
        parts = min(numba_threads.THREADS, count, count * width // SHARE)
        shared = parts > 1 and not sys.is_finalizing()  # then the other threads have ended
        function = self._compiled()
        if not shared or self._signature is None:
            own = 0 if shared else count  # compiled before it is shared: who fails to do so has written nothing
            try:
                function(0, own, *args)
            except DAMAGED as error:
                if isinstance(error, OSError) and error.errno is None:  # not the system's: that of a signal
                    raise
                function = self._compiled(cache=False)
                function(0, own, *args)
        if shared:
            numba_threads.in_parts(function, count, parts, args)

    @functools.cache  # noqa: B019 (kernels live as long as the process)
    def _compiled(self, cache: bool = True) -> Callable[..., None]:
        signature = () if self._signature is None else (self._signature,)
        options: dict[str, Any] = {"fastmath": SUMS, "error_model": "numpy", "nogil": True}
        try:
            return numba.njit(*signature, cache=cache, **options)(self._function)
        except (RuntimeError, *DAMAGED):  # RuntimeError: there is no directory that could be written to
            return numba.njit(*signature, **options)(self._function)


def contiguous(x: Any) -> Any:
    """x, or a copy of it, with its elements in memory in the order of their indices."""
    return x if x.flags.c_contiguous else x.copy()
