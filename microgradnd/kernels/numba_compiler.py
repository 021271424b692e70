"""How kernels are compiled: once for one thread and once for all, by Numba, kept on disk.

A call on all threads costs some microseconds before it computes anything, so small work stays on one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba

# Numba's own threads sleep while they wait. Those of OpenMP, which it would choose, go on turning for a while, as those
# of OpenBLAS do: the step of a transformer took 4 times as long with both. NUMBA_THREADING_LAYER still chooses.
if numba.config.THREADING_LAYER == "default":
    numba.config.THREADING_LAYER = "workqueue"

# Sums may be added up in any order, as NumPy does, so that they are vectorised; products and sums may be fused.
# Nothing is assumed of NaN and infinity.
SUMS = {"reassoc", "contract"}
EXACT = {"contract"}

PARALLEL = 1 << 20  # elements from which all threads are faster than one: measured in tests/benchmarks/kernels.py


class Kernel:
    """A function of arrays, compiled when it is first called with arrays of a kind."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._serial = _compiled(function, "serial", parallel=False)
        self._parallel = _compiled(function, "parallel", parallel=True)

    def __call__(self, elements: int, *args: Any) -> None:
        """Run it on ``args``, which have so many ``elements`` to go through."""
        if elements < PARALLEL:
            self._serial(*args)
        else:
            with _launching:  # Numba's own threads take one call at a time
                self._parallel(*args)


_launching = threading.Lock()


def _fresh_lock() -> None:
    """In a forked process nobody is left who would release the lock."""
    global _launching
    _launching = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


def _compiled(function: Any, variant: str, parallel: bool) -> Callable[..., None]:
    # Under a name of its own: Numba's cache on disk tells functions apart by name, not by options.
    named = FunctionType(function.__code__, function.__globals__, f"{function.__name__}_{variant}")
    named.__qualname__, named.__module__ = named.__name__, function.__module__
    options: dict[str, Any] = {"parallel": parallel, "fastmath": SUMS, "error_model": "numpy", "nogil": True}
    try:
        return numba.njit(cache=True, **options)(named)
    except RuntimeError:  # there is no directory that could be written to
        return numba.njit(**options)(named)
