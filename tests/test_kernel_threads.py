"""Parts of a kernel on several threads: every part once, errors and interrupts without anyone left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("numba") is None:
    pytest.skip("Numba is not installed", allow_module_level=True)
from microgradnd.kernels import numba_threads


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of cores: they take turns."""
    monkeypatch.setattr(numba_threads, "THREADS", 4)
    monkeypatch.setattr(numba_threads, "_started", False)


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
    barrier = threading.Barrier(4)
    numba_threads.in_parts(lambda begin, end: barrier.wait(timeout=30) and None, 4, 4, ())


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


@pytest.mark.parametrize("own", [0.0, 0.2])
def test_an_interrupt_is_raised_when_all_parts_are_done(own: float) -> None:
    """Whether it meets this thread's part or its waiting for the others."""
    done = []

    def slow(begin: int, end: int) -> None:
        if begin == 3:
            time.sleep(own)
        else:
            time.sleep(0.4)
            done.append(begin)

    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            numba_threads.in_parts(slow, 4, 4, ())
    finally:
        signal.signal(signal.SIGINT, before)
        timer.join()
    assert sorted(done) == [0, 1, 2]


def test_nothing_is_kept_alive() -> None:
    x = np.zeros(100)
    gone = weakref.ref(x)
    numba_threads.in_parts(lambda begin, end, x: None, 100, 4, (x,))
    del x
    deadline = time.monotonic() + 10  # the threads let go a moment after they said that they were done
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
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


def seconds_turning(code: str, **environment: str) -> float:
    """Processor time that a process uses in a quarter of a second after a product, after ``code``."""
    program = (
        "import time, numpy as np\n"
        "from microgradnd.kernels import numba_threads\n"
        "numba_threads.THREADS = 2\n"
        f"{code}\n"
        "x = np.ones((500, 500), np.float32)\n"
        "assert (x @ x == 500).all()\n"
        "before = time.process_time()\n"
        "time.sleep(0.25)\n"
        "print(time.process_time() - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={name: x for name, x in os.environ.items() if name != numba_threads.OPENBLAS_TIMEOUT} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(result.stdout)


CALL = "numba_threads.in_parts(lambda begin, end: None, 2, 2, ())"


def test_threads_of_openblas_sleep_once_parts_are_run() -> None:
    turning = seconds_turning("")
    if turning < 0.02:
        pytest.skip("NumPy's products leave nobody turning here")
    assert seconds_turning(CALL) < turning / 4


def test_threads_of_openblas_are_left_alone() -> None:
    """With a setting by the user, and if another thread might be in the middle of a product."""
    turning = seconds_turning("", OPENBLAS_THREAD_TIMEOUT="28")
    if turning < 0.02:
        pytest.skip("NumPy's products leave nobody turning here")
    assert seconds_turning(CALL, OPENBLAS_THREAD_TIMEOUT="28") > turning / 4
    other = "import threading; threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start()"
    assert seconds_turning(f"{other}\n{CALL}") > turning / 4
