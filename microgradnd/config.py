"""What computes: versions, the BLAS library and its threads, kernels, devices."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from typing import Any

import numpy as np

from .backends import tf32
from .devices import cuda_is_available
from .kernels import installed, kernels


def show_config() -> None:
    """Print what is in use: versions, the BLAS library and its threads, the kernels, and CuPy's devices.

    Threads are known where ``threadpoolctl`` is installed; CuPy is asked only if the program has imported it.
    """
    for name, what in _lines():
        print(f"{name:<12} {what}")


def memory_report() -> dict[str, dict[str, int]]:
    """Bytes of memory by device: ``{"cpu": {...}, "cuda:0": {...}}``.

    Of the host ``resident``, what the process has in memory (on Linux). Of each GPU, once the program has imported
    CuPy: ``used`` by arrays, ``held`` by CuPy's pool for them and for arrays to come, and ``free`` of ``total`` on the
    device, whoever has the rest.
    """
    report: dict[str, dict[str, int]] = {"cpu": {}}
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            report["cpu"]["resident"] = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    cupy: Any = sys.modules.get("cupy")
    for i in range(cupy.cuda.runtime.getDeviceCount() if cupy is not None and cuda_is_available() else 0):
        with cupy.cuda.Device(i):
            pool = cupy.get_default_memory_pool()
            free, total = cupy.cuda.runtime.memGetInfo()
            report[f"cuda:{i}"] = {"used": pool.used_bytes(), "held": pool.total_bytes(), "free": free, "total": total}
    return report


def _lines() -> list[tuple[str, str]]:
    return [
        ("microgradnd", _version("microgradnd")),
        ("Python", f"{platform.python_version()}, {platform.machine()}"),
        ("NumPy", np.__version__),
        ("BLAS", _blas()),
        ("kernels", _kernels()),
        ("CuPy", _cupy()),
    ]


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # a third of the time of NumPy's own import

    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _blas() -> str:
    if importlib.util.find_spec("threadpoolctl") is not None:
        from threadpoolctl import threadpool_info

        for pool in threadpool_info():
            if pool["user_api"] == "blas":
                kernel = pool.get("architecture", "unknown kernel")
                return f"{pool['internal_api']} {pool['version']}, {kernel}, {pool['num_threads']} threads"
    built: Any = np.show_config(mode="dicts")
    blas = built.get("Build Dependencies", {}).get("blas", {})
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _kernels() -> str:
    if not installed():
        return f"{kernels.current!r}: NumPy; Numba is not installed"
    used_threads = sys.modules.get("microgradnd.kernels.numba_threads")
    if kernels.current == "numpy" or kernels._compiled is False:
        return f"{kernels.current!r}: NumPy"
    threads = f"{used_threads.THREADS} threads" if used_threads else "not needed so far"
    return f"{kernels.current!r}: Numba {_version('numba')}, {threads}"


def _cupy() -> str:
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return f"not in use{', TF32 chosen' if tf32.allow_tf32.current else ''}"
    if not cuda_is_available():
        return f"{cupy.__version__}, no GPU"
    count = cupy.cuda.runtime.getDeviceCount()
    names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
    products = "TF32" if tf32.in_use() else "float32"
    return f"{cupy.__version__}, {', '.join(names)}, products of float32 in {products}"
