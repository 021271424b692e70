"""Parts of one call on all cores: by Python's threads, which hold no lock of Python's while compiled code runs.

They take 15 to 90 us to start, Numba's parallel loops with its own threads 30 to 100. Those of OpenMP start at once,
because they go on turning while they wait, as those of OpenBLAS do: the step of a transformer took 4 times as long with
both. These sleep, take calls from several threads at a time, and leave the settings of Numba alone.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numba

THREADS = numba.config.NUMBA_NUM_THREADS  # cores that this process may use, or what the environment variable says

OPENBLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"

_calls: SimpleQueue[tuple[Any, ...]] = SimpleQueue()  # what the other threads wait for
_started = False
_starting = threading.Lock()


def in_parts(function: Callable[..., None], count: int, parts: int, args: tuple[Any, ...]) -> None:
    """``function(begin, end, *args)`` for neighbouring parts of range(count), the last of them on this thread.

    An exception of a part, and that of a signal, is raised here when all parts are done: a caller that catches
    KeyboardInterrupt finds nobody else writing into its arrays.
    """
    if not _started:
        _start()
    edges = [count * i // parts for i in range(parts + 1)]
    ended: list[BaseException | None] = []  # of the parts of others, in the order in which they end
    bell: SimpleQueue[None] = SimpleQueue()
    sent, interrupted = 0, None
    try:
        for begin, end in itertools.pairwise(edges[:-1]):
            sent += 1
            _calls.put((function, begin, end, args, ended, bell))
        function(edges[-2], count, *args)
    except BaseException as error:  # that of a signal among them
        interrupted = error
    while len(ended) < sent:
        try:
            while len(ended) < sent:  # not the bells are counted: a signal may come when one has just been heard
                bell.get()
        except BaseException as error:
            interrupted = error
    for problem in (interrupted, *ended):
        if problem is not None:
            raise problem


def _start() -> None:
    global _started
    with _starting:
        if not _started:
            _let_openblas_sleep()
            for i in range(1, THREADS):
                threading.Thread(target=_work, args=(_calls,), name=f"kernels {i}", daemon=True).start()
            _started = True


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


def _work(calls: SimpleQueue[tuple[Any, ...]]) -> None:
    while True:
        function, begin, end, args, ended, bell = calls.get()
        problem = None
        try:
            function(begin, end, *args)
        except BaseException as error:
            problem = error
        del function, args  # nothing of the caller's is kept alive when it goes on
        ended.append(problem)
        bell.put(None)
        del problem, ended, bell


def _forked() -> None:
    """In a forked process nobody is left who would take calls, or release a lock."""
    global _calls, _started, _starting
    _calls, _started, _starting = SimpleQueue(), False, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
