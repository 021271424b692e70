"""Candidates in processes of their own that take turns, so that a change of the machine's speed meets all of them.

A process each, since the threads of one library that wait for work slow another library's threads down.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Step: TypeAlias = Callable[[], Any]
Times: TypeAlias = dict[tuple[str, str], list[float]]

SPAWN = multiprocessing.get_context("spawn")  # a forked process would share its parent's thread pools


def seconds_per_call(step: Step, count: int) -> float:
    """Seconds per call of ``step`` in ``count`` calls, after a few more that wake threads and fill caches."""
    gc.collect()  # every turn starts alike; the collector stays on, unlike in timeit, as it does for users
    for _ in range(count // 10 + 1):
        step()
    start = time.perf_counter()
    for _ in itertools.repeat(None, count):
        step()
    return (time.perf_counter() - start) / count


def calls_within(step: Step, milliseconds: int) -> int:
    """A number of calls that takes about so long."""
    count = 1
    while (seconds := seconds_per_call(step, count)) * count < milliseconds / 4000:
        count *= 2
    return int(milliseconds / 1000 / seconds) + 1


def results(step: Step, count: int) -> list[float]:
    """The results of the first calls."""
    return [float(step()) for _ in range(count)]


class Worker:
    """A process that makes named steps, then waits on a pipe, without using the processor, for what to do with them.

    Args:
        make: a function of a module, called in the process; returns the steps by name.
    """

    def __init__(self, make: Callable[[], Mapping[str, Step]]) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()  # so that a process that died is an EOFError here

    def __call__(self, function: Callable[[Step, int], Any], name: str, number: int) -> Any:
        """``function(step, number)``, evaluated in the process."""
        self._pipe.send((function, name, number))
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, make: Callable[[], Mapping[str, Step]]) -> None:
    steps = make()
    while request := pipe.recv():
        function, name, number = request
        pipe.send(function(steps[name], number))


def interleaved(workers: Mapping[str, Worker], names: Sequence[str], rounds: int, turn: int, pause: int) -> Times:
    """Seconds per call by (name of the step, worker), one for each round.

    Args:
        turn: milliseconds that a turn takes.
        pause: milliseconds between two turns. Threads that ran out of work go on spinning for a while before they
            sleep, those of OpenBLAS for 2^28 ticks of the processor's clock (130 ms at 2.1 GHz).
    """
    turns = list(itertools.product(names, workers))
    counts = {(name, who): workers[who](calls_within, name, turn) for name, who in turns}
    times: Times = {key: [] for key in turns}
    for i in range(rounds):
        for name, who in turns if i % 2 == 0 else reversed(turns):  # nobody always follows the same one
            time.sleep(pause / 1000)
            times[name, who].append(workers[who](seconds_per_call, name, counts[name, who]))
    return times


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """The result of ``function(*args)`` in a new process."""
    with SPAWN.Pool(1) as pool:
        return pool.apply(function, args)


def peak_memory() -> int:
    """Bytes of memory that this process has held at most.

    Linux counts ``ru_maxrss`` on from the process that started this one, ``VmHWM`` from zero.
    """
    status = Path("/proc/self/status")
    if status.exists() and "VmHWM:" in (text := status.read_text()):
        return int(text.partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
    """Let the peak be what the process holds now, where the system can do so (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def median(times: Sequence[float]) -> float:
    return float(np.median(times))


def ratio(times: Sequence[float], baseline: Sequence[float], name: str) -> str:
    """The ratio of the medians, and the quartiles of the ratios within rounds, which tell how sure it is."""
    low, high = np.percentile(np.divide(times, baseline), [25, 75])
    return f"{median(times) / median(baseline):.2f} x {name} (by round {low:.2f} to {high:.2f})"


def line(label: str, times: Sequence[float], unit: str, figure: str = "", bar: str = "") -> None:
    """Print one candidate: median (minimum, quartiles), then the figure made of it and what to compare it with."""
    scale = {"us": 1e6, "ms": 1e3}[unit]
    least, low, middle, high = np.percentile(times, [0, 25, 50, 75]) * scale
    spread = f"(min {least:.2f}, quartiles {low:.2f} to {high:.2f})"
    print(f"  {label:<32} {middle:8.2f} {unit} {spread:<40} {figure:<38} {bar}".rstrip(), flush=True)
