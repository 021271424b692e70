"""Devices: the same tests run on NumPy and on the real CuPy over host memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tests import cupy_on_cpu

# In CI everything optional is installed first, so that nothing may be skipped for want of it.
COMPLETE = os.environ.get("CI") == "true"
_without_cupy = cupy_on_cpu.unavailable()
if _without_cupy is None:
    cupy_on_cpu.install()  # before anything imports CuPy


class Device:
    """An array library: arrays to and from it."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "numpy":
            self.xp: Any = np
        else:
            import cupy

            self.xp = cupy

    def array(self, x: Any) -> Any:
        """A NumPy array as this library's; anything else as it is. Layout is kept as far as it can be."""
        return self.xp.asarray(x) if isinstance(x, np.ndarray) else x

    def host(self, x: Any) -> Any:
        return x.get() if hasattr(x, "get") else x


@pytest.fixture(params=["numpy", "cupy-on-cpu"])
def device(request: pytest.FixtureRequest) -> Device:
    """NumPy, then CuPy on host memory."""
    if request.param == "cupy-on-cpu" and _without_cupy is not None:
        pytest.skip(f"CuPy on host memory is not available: {_without_cupy}")
    return Device(request.param)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test fails the run: everything that it could lack is installed."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if COMPLETE and reporter else []
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"CI may skip nothing, and {len(skipped)} were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
