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

SHARE = 1 << 14  # elements that are worth a thread: measured in tests/benchmarks/kernels.py
THREADS = numba.config.NUMBA_NUM_THREADS  # cores that this process may use, or what the environment variable says
PATIENCE_TURNS = 10_000  # in which a worker looks for the next part before it sleeps: half a millisecond

OPENBLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"


def is_worth_sharing(count: int, width: int) -> bool:
    """Whether count * width elements are worth two threads."""
    return count * width >= 2 * SHARE


class Team:
    """So many threads, that of the caller among them; the others, workers, start with the first call that has parts."""

    def __init__(self, size: int) -> None:
        self.size = size
        memory = np.zeros(ROW // 8 * (size + 1), np.int64)
        aligned = memory[-memory.ctypes.data % ROW // 8 :]
        self._board = aligned[: ROW // 8 * size].reshape(size, ROW // 8)  # see numba_jobs
        self._board[:, PATIENCE // 8] = PATIENCE_TURNS
        self._address = self._board.ctypes.data
        self._bells: list[SimpleQueue[None]] = [SimpleQueue() for _ in range(1, size)]  # what wakes a worker
        self._workers: list[threading.Thread] = []
        self._starting = threading.Lock()

    def run(self, function: Callable[..., None], count: int, width: int, args: tuple[Any, ...]) -> None:
        """``function(count, parts, board, *args)``, compiled, in as many parts as count * width elements are worth."""
        parts = min(self.size, count, count * width // SHARE)
        if parts < 2:
            return function(count, 1, self._address, *args)
        if len(self._workers) < self.size - 1:
            self._start()
        for bell, state in zip(self._bells, self._board[1:parts, STATE // 8].tolist(), strict=False):
            if state == ASLEEP and bell.empty():  # a bell that has been rung will be heard
                bell.put(None)
        function(count, parts, self._address, *args)

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):  # by another thread, or by this one, below a signal's handler
            return
        try:
            # Compiled first: Numba loads another OpenBLAS then, SciPy's, if it is there.
            serving = compiled(serve, void(int64, int64))
            if not self._workers:
                _let_openblas_sleep()
            for i in range(len(self._workers) + 1, self.size):
                worker = threading.Thread(target=self._work, args=(serving, i), name=f"kernels {i}", daemon=True)
                self._workers.append(worker)  # before it starts: an interrupt may come at any moment
                try:
                    worker.start()
                except RuntimeError:  # the system has no more of them
                    self._workers.pop()
                    self.size = i
                    return
        finally:
            self._starting.release()

    def _work(self, serving: Callable[..., None], number: int) -> None:
        while self._board.item(number, PATIENCE // 8) >= 0:
            serving(self._address, number)
            self._bells[number - 1].get()

    def end(self) -> None:
        """Let the workers end; calls are done by their callers from now on."""
        self.size = 1
        self._board[:, PATIENCE // 8] = -1
        for bell in self._bells:
            bell.put(None)
        for worker in self._workers:
            if worker.is_alive():
                worker.join()


team = Team(THREADS)


@atexit.register
def _end() -> None:
    """Before what is compiled is thrown away."""
    team.end()


def _let_openblas_sleep() -> None:
    """Let OpenBLAS's threads fall asleep 30 us after a product, rather than turn for 130 ms on a part's core.

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
