"""What a time depends on besides the code: versions, the BLAS library, the processor."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

TORCH_INSTALLED = find_spec("torch") is not None


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blas() -> dict[str, Any]:
    """threadpoolctl's description of NumPy's BLAS; empty where threadpoolctl or the library is unknown."""
    if find_spec("threadpoolctl") is None:
        return {}
    from threadpoolctl import threadpool_info

    return next((pool for pool in threadpool_info() if pool["user_api"] == "blas"), {})


def blas_threads() -> int:
    """The number of threads that NumPy's BLAS uses; without threadpoolctl its usual default, one per core."""
    return int(blas().get("num_threads", cores()))


def print_environment() -> None:
    """Print what the figures below it were measured with."""
    pool = blas()
    if pool:
        kernel = pool.get("architecture", "unknown kernel")
        library = f"{pool['internal_api']} {pool['version']}, {kernel}, {pool['num_threads']} threads"
    else:
        library = "unknown (needs threadpoolctl)"
    print(f"NumPy    {np.__version__}")
    print(f"BLAS     {library}")
    print(f"Python   {platform.python_version()}")
    print(f"PyTorch  {version('torch') if TORCH_INSTALLED else 'is not installed'}")
    print(f"CPU      {_processor()}, {cores()} cores{_load()}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _load() -> str:
    """How many cores others have lately kept busy: where it is more than none, figures are noisy."""
    return f", load average {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""
