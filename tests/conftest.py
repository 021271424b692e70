"""Devices: one suite, on NumPy, on the real CuPy over host memory, or on a GPU.

python -m pytest                        on NumPy
python -m pytest --device cupy-cpu      tests with the fixtures below on CuPy over host memory: see cupy_on_cpu
python -m pytest --device cuda          the same on a GPU, but for those that count launches
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd.dtypes import as_dtype
from tests import cupy_on_cpu

pytest.register_assert_rewrite(
    "tests.against_numpy",
    "tests.against_pytorch",
    "tests.capture_on_cupy",
    "tests.numba_against_numpy",
    "tests.op_gradients",
    "tests.training_steps",
    "tests.transformer_formulas",
)

# In CI everything optional is installed first, so that nothing may be skipped for want of it.
COMPLETE = os.environ.get("CI") == "true"
DEVICES = ("numpy", "cupy-cpu", "cuda")
CHOICE = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=DEVICES, default="numpy", help="what computes in tests of devices (numpy)")


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--device")
    config.stash[CHOICE] = chosen
    if chosen == "cuda":
        if not mg.cuda_is_available():
            raise pytest.UsageError(
                "--device cuda: CuPy is not installed, or finds no GPU here; --device cupy-cpu works without one"
            )
    elif (missing := cupy_on_cpu.unavailable()) is None:
        cupy_on_cpu.install()  # before anything imports CuPy
    elif chosen == "cupy-cpu":
        raise pytest.UsageError(f"--device cupy-cpu: {missing}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Elsewhere than on NumPy only what has to do with devices; on a GPU nothing that rests on the stand-in."""
    chosen = config.stash[CHOICE]
    kept, left = [], []
    for item in items:
        names = set(item.fixturenames)
        if chosen == "numpy":
            wanted = not names & {"cupy", "counted"}
        else:
            wanted = bool(names & {"device", "cupy"})
            wanted &= not (chosen == "cuda" and "counted" in names)
        (kept if wanted else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """For compiled kernels, whatever the number of cores: new ones, which nobody else gives work to."""
    from microgradnd.kernels import numba_threads

    team = numba_threads.Team(4)
    monkeypatch.setattr(numba_threads, "team", team)
    yield team
    team.end()


@pytest.fixture(params=["one thread", "all threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, four_threads: Any) -> str:
    """Compiled kernels on one thread, then on four whatever the size and the number of cores."""
    from microgradnd.kernels import numba_threads

    monkeypatch.setattr(numba_threads, "SHARE", 1 if request.param == "all threads" else 1 << 40)
    return str(request.param)


@pytest.fixture
def numpy_kernels() -> Iterator[None]:
    with mg.kernels("numpy"):
        yield


@pytest.fixture
def numba_kernels() -> Iterator[None]:
    with mg.kernels("numba"):
        yield


@pytest.fixture
def numba_products(numba_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large products by the kernel, also where it isn't the faster one."""
    from microgradnd.kernels import numba_compiler, numba_matmul  # noqa: F401 (in this order, as they are loaded)

    monkeypatch.setattr(numba_matmul, "FASTER", True)


@pytest.fixture(params=["float16", "bfloat16"])
def low(request: pytest.FixtureRequest) -> Any:
    """A float of 16 bits."""
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it comes with the extra bfloat16")
    return as_dtype(request.param)


class Device:
    """An array library: arrays to and from it."""

    def __init__(self, chosen: str) -> None:
        self.chosen = chosen
        self.name = "cpu" if chosen == "numpy" else "cuda"  # of mg.device
        if chosen == "numpy":
            self.xp: Any = np
        else:
            import cupy

            self.xp = cupy

    def array(self, x: Any) -> Any:
        """A NumPy array as this library's; anything else as it is. Layout is kept as far as it can be."""
        return self.xp.asarray(x) if isinstance(x, np.ndarray) else x

    def host(self, x: Any) -> Any:
        return x.get() if hasattr(x, "get") else x


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Device:
    """What ``--device`` chose."""
    return Device(request.config.stash[CHOICE])


@pytest.fixture
def cupy() -> Any:
    """CuPy, for tests that NumPy has no part in: they run with another ``--device`` alone."""
    import cupy

    return cupy


class Cost:
    """Count what happens on CuPy over host memory within a ``with`` block."""

    def __enter__(self) -> Cost:
        self._before = cupy_on_cpu.counters()
        return self

    def __exit__(self, *exception: object) -> None:
        now = cupy_on_cpu.counters()
        self.launches, self.library_calls, self.copies, self.synchronizations = (
            sum(now[name] - self._before[name] for name in names)
            for names in (
                ["launches"],
                ["library_calls"],
                ["host_to_device", "device_to_host"],
                ["synchronizations"],
            )
        )

    def is_quiet(self) -> bool:
        """Whether nothing was copied between host and device, or waited for."""
        return self.copies == self.synchronizations == 0


@pytest.fixture
def counted(cupy: Any) -> type[Cost]:
    """``with counted() as cost: ...`` and then ``cost.launches``, ``cost.copies``, ``cost.synchronizations``."""
    return Cost


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test fails the run: everything that it could lack is installed."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if COMPLETE and reporter else []
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"CI may skip nothing, and {len(skipped)} were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
