"""What CuPy reaches by device code that it has already compiled: each says that it is not there.

Left alone, such code launches nothing and reports nothing, and the result is whatever the memory held.
"""

import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

# Modules that only wrap a library; they are to be imported from here, never from CuPy.
_LIBRARIES = {
    "cupy_backends.cuda.libs.curand": "cuRAND",
    "cupy_backends.cuda.libs.cusolver": "cuSOLVER",
    "cupy_backends.cuda.libs.cusparse": "cuSPARSE",
    "cupyx._cusolver": "cuSOLVER",
    "cupy.cuda.cufft": "cuFFT",
}

_CUB_FUNCTIONS = (
    "cub_histogram",
    "cub_reduction",
    "cub_scan",
    "device_histogram",
    "device_reduce",
    "device_scan",
    "device_segmented_reduce",
)


def refuse_libraries() -> None:
    """Put refusing modules in the place of the libraries'; before CuPy is imported."""
    for path, library in _LIBRARIES.items():
        sys.modules[path] = _refusing_module(path, library)


def attach_libraries() -> None:
    """Make the refusing modules attributes of their packages; after CuPy has been imported."""
    for path in _LIBRARIES:
        package, _, name = path.rpartition(".")
        setattr(sys.modules[package], name, sys.modules[path])


def refuse_cub(cub: ModuleType, accelerator: ModuleType, core: ModuleType) -> None:
    """Refuse CUB's device-wide functions, and to choose an accelerator that would call them."""
    for name in _CUB_FUNCTIONS:
        setattr(cub, name, _refusal("CUB"))
    for name in ("set_routine_accelerators", "set_reduction_accelerators", "set_elementwise_accelerators"):
        for module in (accelerator, core):
            if hasattr(module, name):
                setattr(module, name, _none_only(getattr(module, name)))


def _refusing_module(path: str, library: str) -> ModuleType:
    module = ModuleType(path)

    def missing(name: str) -> Any:
        # The import system asks for dunder names.
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(f"the CPU stand-in has no {library}")

    module.__getattr__ = missing
    return module


def _refusal(what: str) -> Callable[..., Any]:
    def refuse(*args: Any, **keywords: Any) -> Any:
        raise NotImplementedError(f"the CPU stand-in has no {what}")

    return refuse


def _none_only(real: Callable[[Iterable[Any]], None]) -> Callable[[Iterable[Any]], None]:
    def set_accelerators(accelerators: Iterable[Any]) -> None:
        chosen = list(accelerators)
        if chosen:
            raise NotImplementedError(f"the CPU stand-in has no accelerators, such as {chosen[0]} (CUB or cuTENSOR)")
        real(chosen)

    return set_accelerators
