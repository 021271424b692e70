"""Calls of kernels in a row, and of what lies between them, as one call: Python takes 1 to 2 us for each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import int64, types, void

from .numba_compiler import compiled
from .numba_jobs import CALL_ARGUMENTS, CALL_COUNT, CALL_FUNCTION, KEPT, do, load


def run_calls(places):
    """Do the calls that are kept at these addresses, one after another."""
    failed = 0
    for i in range(places.size):
        failed |= do(load(places[i] + CALL_FUNCTION), places[i] + CALL_ARGUMENTS, 0, load(places[i] + CALL_COUNT))
    if failed != 0:
        raise MemoryError("a compiled kernel has found no memory")


@functools.cache
def _run_calls() -> Any:
    return compiled(run_calls, void(types.Array(int64, 1, "C", readonly=True)))


def in_one_call(*calls: tuple[Any, ...]) -> Callable[[], None]:
    """A function that does all calls, each (compiled function, count, *arguments), on the thread that calls it.

    It holds their arrays, which have to stay where they are. A call that finds no memory raises MemoryError when all
    are done.
    """
    memory = [np.zeros((CALL_ARGUMENTS + KEPT * len(call)) // 8, np.int64) for call in calls]
    places = np.array([x.ctypes.data for x in memory], np.int64)
    for place, (function, count, *args) in zip(places.tolist(), calls, strict=True):
        function(count, 0, place, *args)
    run: Any = functools.partial(_run_calls(), places)
    run.held = calls, memory
    return run
