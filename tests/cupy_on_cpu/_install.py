"""Puts the parts of the stand-in together around CuPy."""

import ctypes
import dataclasses
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.cupy_on_cpu import _cublas, _kernels, _refusals
from tests.cupy_on_cpu._build import BuildError, KernelBuilder, device_library
from tests.cupy_on_cpu._capsules import replace_functions
from tests.cupy_on_cpu._profiling import unseen
from tests.cupy_on_cpu._random import replace_random
from tests.cupy_on_cpu._requirements import unavailable
from tests.cupy_on_cpu._thrust import replace_thrust

# In the order of `enum counter` in device/device.h.
_DEVICE_COUNTERS = (
    "launches",
    "allocations",
    "host_to_device",
    "device_to_host",
    "synchronizations",
    "live_allocations",
)

_ARCHITECTURE = "90"


@dataclasses.dataclass
class CompileStats:
    """How many kernels were asked for, how many of them had to be compiled, and the seconds that it took."""

    kernels: int = 0
    compiled: int = 0
    seconds: float = 0.0


stats = CompileStats()

_cupy: ModuleType | None = None
_device: Any = None
_library_calls = 0


def install() -> ModuleType:
    """Return CuPy, set up to run on this machine's processor and memory.

    Must come before CuPy is imported; a second call returns the same module. Raises RuntimeError where it
    cannot run.
    """
    global _cupy, _device
    if _cupy is not None:
        return _cupy
    imported = [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupy_backends", "cupyx")]
    if imported:
        raise RuntimeError(f"install() must come before CuPy is imported, and {min(imported)} is imported already")
    reason = unavailable()
    if reason is not None:
        raise RuntimeError(reason)
    # The default chooses CUB, which is device code compiled beforehand.
    os.environ["CUPY_ACCELERATORS"] = ""
    # Kernels look the device's symbols up in the process.
    _device = ctypes.PyDLL(str(device_library()), mode=ctypes.RTLD_GLOBAL)
    _device.cpucupy_use_classes.argtypes = [ctypes.py_object, ctypes.py_object]
    _replace_backends()
    cupy = importlib.import_module("cupy")
    _replace_cupy_parts(cupy)
    _cupy = cupy
    return cupy


def counters() -> dict[str, int]:
    """Return how often things have happened since the process began.

    `launches` counts kernels; `library_calls` what a GPU would do in cuBLAS, Thrust and cuRAND; `allocations`
    those that CuPy's memory pool passed on; `live_allocations` those of them that are not freed.
    """
    if _device is None:
        raise RuntimeError("install() must come before counters()")
    values = (ctypes.c_long * len(_DEVICE_COUNTERS)).in_dll(_device, "cpucupy_counters")
    return {**dict(zip(_DEVICE_COUNTERS, values, strict=True)), "library_calls": _library_calls}


def _count_library_call() -> None:
    global _library_calls
    _library_calls += 1


def _replace_backends() -> None:
    """Replace what CuPy's own modules take hold of when they are imported."""
    runtime = importlib.import_module("cupy_backends.cuda.api.runtime")
    driver = importlib.import_module("cupy_backends.cuda.api.driver")
    _device.cpucupy_use_classes(runtime.PointerAttributes, runtime.CUDARuntimeError)
    replace_functions(runtime, _device, "rt_")
    replace_functions(driver, _device, "dr_")
    cublas = _cublas.make_module(_count_library_call)
    sys.modules[_cublas.MODULE] = cublas
    libraries: Any = importlib.import_module("cupy_backends.cuda.libs")
    libraries.cublas = cublas
    _refusals.refuse_libraries()


def _replace_cupy_parts(cupy: ModuleType) -> None:
    """Replace what CuPy looks up by name each time."""
    _refusals.attach_libraries()
    accelerator = importlib.import_module("cupy._core._accelerator")
    _refusals.refuse_cub(cupy.cuda.cub, accelerator, cupy._core)
    replace_thrust(cupy.cuda.thrust, _count_library_call)
    replace_random(cupy, _count_library_call)
    compiler = cupy.cuda.compiler
    compiler._get_arch = lambda: _ARCHITECTURE
    compiler._get_arch_for_options_for_nvrtc = lambda arch=None: (
        f"-arch=sm_{arch or _ARCHITECTURE}",
        "cubin",
    )
    compiler._compile_module_with_cache = _module_compiler(cupy)


def _module_compiler(cupy: ModuleType) -> Any:
    """Return a function to take the place of CuPy's, through which the source of every kernel goes."""
    builder = KernelBuilder(Path(cupy.__file__ or "").parent / "_core" / "include")

    def compile_module(
        source: str,
        options: Sequence[str] = (),
        *,
        backend: str = "nvrtc",
        enable_cooperative_groups: bool = False,
        name_expressions: Sequence[str] | None = None,
        to_ltoir: bool = False,
        **unused: Any,
    ) -> Any:
        for asked, what in (
            (backend != "nvrtc", "nvcc"),
            (enable_cooperative_groups, "cooperative groups"),
            (to_ltoir, "link-time optimization"),
        ):
            if asked:
                raise NotImplementedError(f"the CPU stand-in has no {what}")
        expressions = sorted(name_expressions or ())
        code = _kernels.host_code(source, options, expressions)
        started = time.perf_counter()
        try:
            path, compiled = builder.build(code)
        except BuildError as error:
            raise cupy.cuda.compiler.CompileException(str(error), source, "kernel.cu", options, "g++") from error
        stats.kernels += 1
        if compiled:
            stats.compiled += 1
            stats.seconds += time.perf_counter() - started
        module = cupy.cuda.function.Module()
        module.load(b"cpucupy:" + os.fsencode(path))
        module._set_mapping({expression: _kernels.expression_symbol(i) for i, expression in enumerate(expressions)})
        return module

    return unseen(compile_module)
