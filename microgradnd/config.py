"""What computes: versions, the BLAS library and its threads, kernels, devices."""

from __future__ import annotations

import importlib.util
import platform
import sys
from typing import Any

import numpy as np

from .backends import tf32
from .kernels import installed, kernels


def show_config() -> None:
    """Print what is in use: versions, the BLAS library and its threads, the kernels, and CuPy's devices.

    Threads are known where ``threadpoolctl`` is installed; CuPy is asked only if the program has imported it.
    """
    for name, what in _lines():
        print(f"{name:<12} {what}")


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
    numba = sys.modules.get("numba")
    used = f"Numba {_version('numba')}" if kernels.current != "numpy" else "NumPy"
    threads = f", {numba.get_num_threads()} threads" if numba else ", not needed so far"
    return f"{kernels.current!r}: {used}{threads if kernels.current != 'numpy' else ''}"


def _cupy() -> str:
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return f"not in use{', TF32 chosen' if tf32.allow_tf32.current else ''}"
    products = "TF32" if tf32.in_use() else "float32"
    return f"{cupy.__version__}, {cupy.cuda.runtime.getDeviceCount()} devices, products of float32 in {products}"
