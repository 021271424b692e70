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
# The first one imports Numba, and makes settings if nobody else has done so before.
from microgradnd.kernels import numba_compiler, numba_parts, numba_threads  # isort: split # noqa: F401
from microgradnd.kernels.numba_jobs import ASLEEP, PATIENCE, STATE, load, store, yield_core

ROOT = Path(__file__).parents[1]
TOO_LARGE = 1 << 50  # elements: no process has addresses for so many


pytestmark = pytest.mark.usefixtures("four_threads")


@numba_parts.Kernel
def increase(begin, end, x):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        x[i] += 1


@numba_parts.Kernel
def meet(begin, end, address, met):  # type: ignore[no-untyped-def]
    """Every part says that it is there and waits for the others."""
    store(address + 8 * begin, 1)
    for _ in range(1 << 18):
        if load(address) + load(address + 8) + load(address + 16) + load(address + 24) == 4:
            met[begin] = 1
            break
        yield_core()


@numba_parts.Kernel
def fail(begin, end, bad, done):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        done[i] += np.empty(TOO_LARGE if i == bad else 1, np.float32).size


@numba_parts.Kernel
def take_long(begin, end, rounds, x):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        y = 0.0
        for _ in range(rounds):
            y = np.cos(y)
        x[i] = y


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parts as there are threads, however small the work."""
    monkeypatch.setattr(numba_threads, "SHARE", 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 1000])
def test_every_part_is_done_once(count: int, shared: None) -> None:
    x = np.zeros(count, np.float32)
    for _ in range(100):
        increase(count, 1, x)
    np.testing.assert_array_equal(x, 100)


def test_parts_run_at_the_same_time(shared: None) -> None:
    """Each waits for the others: in turn they would never get there."""
    there, met = np.zeros(4, np.int64), np.zeros(4, np.float32)
    for _ in range(10):  # cores may be busy with another program
        there[:] = met[:] = 0
        meet(4, 1, there.ctypes.data, met)
        if met.all():
            return
    raise AssertionError(met)


@pytest.mark.parametrize("bad", range(4))
def test_a_part_that_fails_does_not_keep_the_others(bad: int, shared: None) -> None:
    done = np.zeros(4, np.float32)
    with pytest.raises(MemoryError, match="a compiled kernel has found no memory"):
        fail(4, 1, bad, done)
    np.testing.assert_array_equal(done, np.arange(4) != bad)
    fail(4, 1, -1, done)  # and the next call goes well
    np.testing.assert_array_equal(done, 1 + (np.arange(4) != bad))


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_a_signal_is_raised_when_all_parts_are_done(error: type[BaseException], shared: None) -> None:
    x = np.zeros(4, np.float32)
    take_long(4, 1, 1, x)

    def interrupt(*args: Any) -> None:
        raise error

    before = signal.signal(signal.SIGINT, interrupt)
    x[:] = 0
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        with pytest.raises(error):
            take_long(4, 1, 10_000_000, x)
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_allclose(x, 0.7390851)  # where cos x = x


@pytest.mark.parametrize("attempt", range(5))
def test_nothing_is_kept_alive(attempt: int, shared: None) -> None:
    x = np.zeros(100, np.float32)
    gone = weakref.ref(x)
    increase(100, 1, x)
    del x
    assert gone() is None


def test_calls_from_several_threads(shared: None) -> None:
    """One of them has the others' help, the rest do without."""
    x = np.zeros((8, 1000), np.float32)

    def calls(row: Any) -> None:
        for _ in range(500):
            increase(1000, 1, row)

    callers = [threading.Thread(target=calls, args=(row,)) for row in x]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    np.testing.assert_array_equal(x, 500)


@pytest.mark.parametrize("turns", [0, 1, 10, 100])
def test_workers_fall_asleep_and_wake_at_any_moment(turns: int, shared: None, four_threads: Any) -> None:
    """With little patience they sleep between two calls, or are about to, or have just woken."""
    four_threads._board[:, PATIENCE // 8] = turns
    x = np.zeros(4, np.float32)
    for i in range(3000):
        if i % 7 == 0:
            time.sleep(i % 3 * 1e-5)
        increase(4, 1, x)
    np.testing.assert_array_equal(x, 3000)


def test_workers_sleep_when_nothing_comes(shared: None, four_threads: Any) -> None:
    increase(4, 1, np.zeros(4, np.float32))
    states = four_threads._board[1:, STATE // 8]
    for _ in range(1000):
        if (states == ASLEEP).all():
            return
        time.sleep(0.01)
    raise AssertionError(states)


def test_bells_are_not_rung_in_advance(shared: None, four_threads: Any) -> None:
    """Where workers come too late, as on few cores: they would turn for seconds after the last call."""
    for _ in range(3000):
        increase(4, 1, np.zeros(4, np.float32))
        assert all(bell.qsize() <= 1 for bell in four_threads._bells)


def test_an_interrupt_while_workers_start(shared: None, four_threads: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start, raised = threading.Thread.start, []

    def interrupted(self: Any) -> None:
        start(self)
        if not raised:
            raised.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    x = np.zeros(4, np.float32)
    with pytest.raises(KeyboardInterrupt):
        increase(4, 1, x)
    increase(4, 1, x)
    four_threads.end()
    names = [thread.name for thread in four_threads._workers]
    assert len(set(names)) == len(names) == 3
    np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize("why", ["ended", "cannot be started"])
def test_without_workers_the_caller_does_everything(
    why: str, shared: None, four_threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    if why == "ended":
        increase(4, 1, np.zeros(4, np.float32))
        four_threads.end()
    else:
        monkeypatch.setattr(threading.Thread, "start", refuse)
    x = np.zeros(1000, np.float32)
    for _ in range(3):
        increase(1000, 1, x)
    np.testing.assert_array_equal(x, 3)


def openblas(code: str, **environment: str) -> list[list[int]]:
    """After a product and again after ``code``: the timeout of OpenBLAS's threads, and how many threads there are."""
    program = (
        "import _thread, ctypes, os, time, numpy as np\n"
        "from microgradnd.kernels import numba_threads\n"
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


on_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="OpenBLAS is found on Linux alone")


@on_linux
def test_threads_of_openblas_sleep_once_parts_are_run() -> None:
    before, after = openblas("numba_threads.Team(1)._start()")
    if len(before) == 1:
        pytest.skip("NumPy has no OpenBLAS here that could be told so")
    assert before[0] == 0  # its default
    assert after == [16, 1]  # its threads, which start with the timeout, have ended


@on_linux
def test_threads_of_openblas_are_left_alone() -> None:
    """With a setting by the user, and if another thread, which ``threading`` need not know, might be in a product."""
    before, after = openblas("numba_threads._let_openblas_sleep()", OPENBLAS_THREAD_TIMEOUT="20")
    assert before == after
    before, after = openblas("_thread.start_new_thread(time.sleep, (0.5,))\nnumba_threads._let_openblas_sleep()")
    assert after == [*before[:-1], before[-1] + 1]


def test_nothing_is_done_twice_when_the_disk_is_full(monkeypatch: pytest.MonkeyPatch, shared: None) -> None:
    """A kernel that changes arrays in place is compiled before a part of it runs."""
    from numba.core.caching import FunctionCache

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    x = np.zeros(10, np.float32)
    kernel = numba_parts.Kernel(increase._function)
    for _ in range(2):
        kernel(10, 1, x)
    np.testing.assert_array_equal(x, 2)


def test_an_error_of_a_signal_is_raised_and_nothing_done_twice(shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that looks like that of a disk."""
    x = np.zeros(1_000_000, np.float32)
    increase(1, 1, x)

    def interrupt(*args: Any) -> None:
        raise OSError(errno.EPIPE, "broken pipe")

    before = signal.signal(signal.SIGINT, interrupt)
    run = numba_threads.Team.run

    def interrupted(*args: Any) -> None:
        run(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(numba_threads.Team, "run", interrupted)
    try:
        with pytest.raises(OSError, match="broken pipe"):
            increase(1_000_000, 1, x)
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_array_equal(x[1:], 1)


def test_a_call_within_a_call_that_starts_threads(shared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a signal's handler, or when memory is collected: nobody waits for oneself."""
    compiled, x = numba_threads.compiled, np.zeros(1000, np.float32)

    def interrupted(*args: Any) -> Any:
        increase(1000, 1, x)
        return compiled(*args)

    monkeypatch.setattr(numba_threads, "compiled", interrupted)
    increase(1000, 1, x)
    np.testing.assert_array_equal(x, 2)


@pytest.mark.parametrize("share", [1, 10])
def test_a_time_limit_is_no_damaged_cache(share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """TimeoutError, which handlers of signals raise, is an OSError: nothing is done again because of it."""
    calls = []

    def limited(count: int, parts: int, board: int, x: Any) -> None:
        if count > 0:
            calls.append(parts)
            raise TimeoutError

    monkeypatch.setattr(numba_threads, "SHARE", share)
    kernel = numba_parts.Kernel(increase._function)
    monkeypatch.setattr(kernel, "_call", limited)
    with pytest.raises(TimeoutError):
        kernel(4, 1, np.zeros(4))
    assert calls == [{1: 4, 10: 1}[share]]


@pytest.mark.parametrize("before", ["mg.gelu(x)", "mg.gelu(x[:10])"])
def test_kernels_run_while_the_interpreter_ends(before: str) -> None:
    """By its thread alone: the others have ended by then, or are not started any more."""
    program = (
        "import numpy as np, microgradnd as mg\n"
        "from microgradnd.kernels import numba_threads\n"
        "numba_threads.team = numba_threads.Team(4)\n"
        "x = np.ones((1000, 1000), np.float32)\n"
        f"{before}\n"
        "class Last:\n"
        "    def __del__(self, mg=mg, x=x):\n"
        "        print(mg.gelu(x).shape)\n"
        "last = Last()\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout == "(1000, 1000)\n"
