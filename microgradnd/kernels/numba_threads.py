"""The threads that do parts of kernels' calls: in compiled code, which holds no lock of Python's.

A call costs 3 us more than its parts while the threads turn, which they do for a fraction of a millisecond after one
(see numba_jobs), and 20 to 50 where they have to be woken. Threads of OpenMP and of OpenBLAS turn too, for longer: with
those of both the step of a transformer took 4 times as long.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numba
import numpy as np
from numba import int64, void

from .numba_compiler import compiled
from .numba_jobs import ASLEEP, PATIENCE, ROW, STATE, serve

THREADS = numba.config.NUMBA_NUM_THREADS  # cores that this process may use, or what the environment variable says
TURNS = 10_000  # that a thread waits for the next call, about 60 ns each, before it sleeps

OPENBLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"


class Team:
    """So many threads, that of the caller among them; the others start with the first call that has parts."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._board = np.zeros((size, ROW // 8), np.int64)
        self._board[0, PATIENCE // 8] = TURNS
        self._address = self._board.ctypes.data
        self._bells: list[SimpleQueue[None]] = [SimpleQueue() for _ in range(1, size)]  # what wakes a worker
        self._workers: list[threading.Thread] = []
        self._starting = threading.Lock()

    def run(self, function: Callable[..., None], count: int, parts: int, args: tuple[Any, ...]) -> None:
        """``function(count, parts, board, *args)``, compiled, with the workers awake that it needs."""
        if parts > 1:
            if len(self._workers) < self.size - 1:
                self._start()
            for i in range(1, parts):
                if self._board.item(i, STATE) == ASLEEP:
                    self._bells[i - 1].put(None)  # once too often does no harm
        function(count, parts, self._address, *args)

    def _start(self) -> None:
        with self._starting:
            serving = compiled(
                serve, void(int64, int64)
            )  # first: Numba loads another OpenBLAS, SciPy's, if it is there
            if not self._workers:
                _let_openblas_sleep()
            for i in range(len(self._workers) + 1, self.size):
                worker = threading.Thread(target=self._work, args=(serving, i), name=f"kernels {i}", daemon=True)
                try:
                    worker.start()
                except RuntimeError:  # the system has no more of them, or the interpreter ends: callers do the work
                    return
                self._workers.append(worker)

    def _work(self, serving: Callable[..., None], number: int) -> None:
        while self._board.item(0, PATIENCE // 8) >= 0:
            serving(self._address, number)
            self._bells[number - 1].get()

    def end(self) -> None:
        """Let the workers end; calls are done by their callers then."""
        self._board[0, PATIENCE // 8] = -1
        for bell in self._bells:
            bell.put(None)
        for worker in self._workers:
            worker.join()


team = Team(THREADS)


@atexit.register
def _end() -> None:
    """Before what is compiled is thrown away."""
    team.end()


def _let_openblas_sleep() -> None:
    """Let OpenBLAS's threads sleep 30 us after a product, rather than turn for 130 ms on the core that a part needs.

    As long as they turn, two threads are as slow as one. Its environment variable says how long that is, in powers of
    two of ticks; whoever sets it keeps what they set. It is read, and threads are started, when there is a product and
    there are none: so they are ended, as OpenBLAS does itself before a fork. If any thread is about that is not
    OpenBLAS's, which might be in the middle of a product, everything stays as it is.
    """
    maps, tasks = Path("/proc/self/maps"), Path("/proc/self/task")
    if OPENBLAS_TIMEOUT in os.environ or not maps.exists():
        return
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "openblas" in line}
    try:
        libraries = [ctypes.CDLL(path) for path in paths]
        steps = [(x.openblas_read_env, x.blas_thread_shutdown_) for x in libraries]
        threads = 1 + sum(ctypes.c_int.in_dll(x, "blas_num_threads").value - 1 for x in libraries)
    except (OSError, AttributeError, ValueError):  # another kind of OpenBLAS
        return
    if len(list(tasks.iterdir())) != threads:
        return
    for read, end in steps:
        os.environ[OPENBLAS_TIMEOUT] = "16"
        try:
            read()
        finally:
            del os.environ[OPENBLAS_TIMEOUT]
        end()


def _forked() -> None:
    """In a forked process nobody is left who would take parts, or release a lock."""
    global team
    team = Team(team.size)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
