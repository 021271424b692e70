"""Parts of a kernel on several threads: every part once, errors and interrupts without anyone left behind."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("numba") is None:
    pytest.skip("Numba is not installed", allow_module_level=True)
from microgradnd.kernels import numba_compiler, numba_threads

ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("four_threads")


@pytest.mark.parametrize(("count", "parts"), [(10, 2), (10, 3), (3, 3), (1000, 7), (5, 1)])
def test_every_part_is_done_once(count: int, parts: int) -> None:
    x = np.zeros(count, int)

    def add(begin: int, end: int, x: Any, number: int) -> None:
        assert end > begin
        x[begin:end] += number

    numba_threads.in_parts(add, count, parts, (x, 3))
    np.testing.assert_array_equal(x, 3)


def test_parts_run_at_the_same_time() -> None:
    """Each waits for the others: in turn they would never get there."""
    barrier, met = threading.Barrier(4), []

    def meet(begin: int, end: int) -> None:
        barrier.wait(timeout=30)
        met.append(threading.get_ident())

    numba_threads.in_parts(meet, 4, 4, ())
    assert len(set(met)) == 4


@pytest.mark.parametrize("bad", range(4))
def test_an_error_of_any_part_is_raised_when_all_are_done(bad: int) -> None:
    done = []

    def fail(begin: int, end: int) -> None:
        if begin == bad:
            raise ZeroDivisionError
        time.sleep(0.01)
        done.append(begin)

    with pytest.raises(ZeroDivisionError):
        numba_threads.in_parts(fail, 4, 4, ())
    assert sorted(done) == [i for i in range(4) if i != bad]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("while_waiting", [False, True])
def test_a_signal_is_raised_when_all_parts_are_done(while_waiting: bool, error: type[BaseException]) -> None:
    """Whether it meets this thread's part or its waiting for the others."""
    numba_threads.in_parts(lambda begin, end: None, 4, 4, ())  # starts the threads
    done, ready = [], threading.Event()

    def interrupt(*args: Any) -> None:
        raise error

    def part(begin: int, end: int) -> None:
        if begin == 3:
            ready.set()
            if not while_waiting:
                time.sleep(30)
        else:
            ready.wait(30)
            time.sleep(0.05)
            if begin == 0:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                time.sleep(0.05)
            done.append(begin)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(error):
            numba_threads.in_parts(part, 4, 4, ())
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize("attempt", range(20))
def test_nothing_is_kept_alive(attempt: int) -> None:
    x = np.zeros(100)
    gone = weakref.ref(x)
    numba_threads.in_parts(lambda begin, end, x: None, 100, 4, (x,))
    del x
    assert gone() is None


def test_calls_from_several_threads() -> None:
    x = np.zeros((8, 1000), int)

    def add(begin: int, end: int, row: Any) -> None:
        row[begin:end] += 1

    def calls(row: Any) -> None:
        for _ in range(200):
            numba_threads.in_parts(add, 1000, 4, (row,))

    callers = [threading.Thread(target=calls, args=(row,)) for row in x]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    np.testing.assert_array_equal(x, 200)


def openblas(code: str, **environment: str) -> list[list[int]]:
    """After a product and again after ``code``: the timeout of OpenBLAS's threads, and how many threads there are."""
    program = (
        "import _thread, ctypes, os, time, numpy as np\n"
        "from microgradnd.kernels import numba_threads\n"
        "numba_threads.THREADS = 1\n"
        "x = np.ones((500, 500), np.float32)\n"
        "paths = {x.split()[-1] for x in open('/proc/self/maps') if 'openblas' in x}\n"
        "libraries = [ctypes.CDLL(path) for path in paths]\n"
        "def show():\n"
        "    timeouts = [x.openblas_thread_timeout() for x in libraries if hasattr(x, 'openblas_thread_timeout')]\n"
        "    print(*timeouts, len(os.listdir('/proc/self/task')))\n"
        "assert (x @ x == 500).all()\n"
        "show()\n"
        f"{code}\n"
        "show()\n"
        "assert (x @ x == 500).all()\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={name: x for name, x in os.environ.items() if name != numba_threads.OPENBLAS_TIMEOUT} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [[int(x) for x in line.split()] for line in result.stdout.splitlines()]


CALL = "numba_threads.in_parts(lambda begin, end: None, 2, 1, ())"
on_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="OpenBLAS is found on Linux alone")


@on_linux
def test_threads_of_openblas_sleep_once_parts_are_run() -> None:
    before, after = openblas(CALL)
    if len(before) == 1:
        pytest.skip("NumPy has no OpenBLAS here that could be told so")
    assert before[0] == 0  # its default
    assert after == [16, 1]  # its threads, which start with the timeout, have ended


@on_linux
def test_threads_of_openblas_are_left_alone() -> None:
    """With a setting by the user, and if another thread, which ``threading`` need not know, might be in a product."""
    before, after = openblas(CALL, OPENBLAS_THREAD_TIMEOUT="20")
    assert before == after
    before, after = openblas(f"_thread.start_new_thread(time.sleep, (0.5,))\n{CALL}")
    assert after == [*before[:-1], before[-1] + 1]


def test_nothing_is_done_twice_when_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that changes arrays in place is compiled before a part of it runs."""
    from numba.core.caching import FunctionCache

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    def increase(begin: int, end: int, x: Any) -> None:
        for i in range(begin, end):
            x[i] += 1

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    monkeypatch.setattr(numba_compiler, "SHARE", 1)
    x = np.zeros(10, np.float32)
    kernel = numba_compiler.Kernel(increase)
    for _ in range(2):
        kernel(10, 1, x)
    np.testing.assert_array_equal(x, 2)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_time_limit_is_no_damaged_cache(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TimeoutError, which handlers of signals raise, is an OSError: nothing is done again because of it."""
    calls = []

    def limited(begin: int, end: int, x: Any) -> None:
        calls.append((begin, end))
        if end > 0:
            raise TimeoutError

    monkeypatch.setattr(numba_compiler, "SHARE", 10 if parts == 1 else 1)
    kernel = numba_compiler.Kernel(limited)
    monkeypatch.setattr(kernel, "_compiled", lambda cache=True: limited)
    with pytest.raises(TimeoutError):
        kernel(4, 1, np.zeros(4))
    assert len(calls) == {1: 1, 4: 5}[parts]  # to be shared, it is compiled first
    monkeypatch.setattr(kernel, "_compiled", lambda cache=True: lambda begin, end, x: limited(0, 1, x))
    with pytest.raises(TimeoutError):
        kernel(4, 1, np.zeros(4))
    assert len(calls) == {1: 2, 4: 6}[parts]


def test_kernels_run_while_the_interpreter_ends() -> None:
    """On one thread: the others have ended by then."""
    program = (
        "import numpy as np, microgradnd as mg\n"
        "from microgradnd.kernels import numba_threads\n"
        "numba_threads.THREADS = 4\n"
        "x = np.ones((1000, 1000), np.float32)\n"
        "mg.gelu(x)\n"
        "class Last:\n"
        "    def __del__(self, mg=mg, x=x):\n"
        "        print(mg.gelu(x).shape)\n"
        "last = Last()\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == "(1000, 1000)\n"
