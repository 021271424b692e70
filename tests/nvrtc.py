"""NVRTC without a GPU: compiles every CUDA kernel for several architectures and reads what ptxas says of it.

``python -m tests.nvrtc`` prints a table of all kernels: registers, spilled bytes, shared memory.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ARCHITECTURES = (75, 80, 90, 100)


class Usage(NamedTuple):
    """What one kernel needs on one architecture; bytes of spilled registers, of local and of shared memory."""

    kernel: str
    architecture: int
    registers: int
    spills: int
    stack: int
    shared: int


def _wheel(name: str) -> Path | None:
    """The folder of one of NVIDIA's wheels."""
    try:
        spec = importlib.util.find_spec(f"nvidia.{name}")
    except ModuleNotFoundError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def unavailable() -> str | None:
    """What is missing, in a sentence; None if nothing is."""
    missing = [name for name in ("cuda_nvrtc", "cuda_runtime") if _wheel(name) is None]
    return f"NVIDIA's wheels of {' and '.join(missing)} are not installed" if missing else None


class CompileError(RuntimeError):
    """NVRTC refused; the message holds what it said."""


class Compiler:
    """NVRTC's library and the headers that kernels include."""

    def __init__(self) -> None:
        library, runtime = _wheel("cuda_nvrtc"), _wheel("cuda_runtime")
        assert library is not None
        assert runtime is not None
        self._nvrtc = ctypes.CDLL(str(next(iter(sorted((library / "lib").glob("libnvrtc.so.*"))))))
        self._options = ["--std=c++17", "--ptxas-options=-v", f"-I{runtime / 'include'}"]
        cupy = importlib.util.find_spec("cupy")
        if cupy is not None and cupy.origin is not None:
            self._options.append(f"-I{Path(cupy.origin).parent / '_core' / 'include'}")

    def __call__(self, name: str, code: str, expressions: tuple[str, ...], architecture: int) -> list[Usage]:
        """Compile the text for sm_``architecture``. Raises CompileError, also for a kernel that is not there."""
        program = ctypes.c_void_p()
        self._check(self._nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None))
        try:
            for expression in expressions:
                self._check(self._nvrtc.nvrtcAddNameExpression(program, expression.encode()))
            options = [f"--gpu-architecture=sm_{architecture}", *self._options]
            values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            result = self._nvrtc.nvrtcCompileProgram(program, len(options), values)
            log = self._log(program)
            if result:
                raise CompileError(f"{name} for sm_{architecture}:\n{log}")
            names = {self._lowered(program, expression): expression for expression in expressions}
            return list(_usages(log, names, architecture))
        finally:
            self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _check(self, result: int) -> None:
        if result:
            self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise CompileError(self._nvrtc.nvrtcGetErrorString(result).decode())

    def _log(self, program: Any) -> str:
        size = ctypes.c_size_t()
        self._check(self._nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        self._check(self._nvrtc.nvrtcGetProgramLog(program, log))
        return log.value.decode()

    def _lowered(self, program: Any, expression: str) -> str:
        found = ctypes.c_char_p()
        self._check(self._nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(found)))
        assert found.value is not None
        return found.value.decode()


def _usages(log: str, names: dict[str, str], architecture: int) -> Iterator[Usage]:
    """From ptxas's words on each kernel."""
    for part in re.split(r"Compiling entry function '", log)[1:]:
        symbol = part[: part.index("'")]
        counts = [r"Used (\d+) registers", r"(\d+) bytes spill", r"(\d+) bytes stack frame", r"(\d+) bytes smem"]
        numbers = [sum(map(int, re.findall(count, part))) for count in counts]
        assert numbers[0] > 0
        yield Usage(names[symbol], architecture, *numbers)


def all_sources() -> list[Any]:
    """The sources of every kernel of the package, of each dtype: name, code, expressions.

    Of attention, whose variants take minutes: causal, without a mask, heads of 64 and of the greatest width.
    """
    from microgradnd.kernels import cupy_attention, cupy_fused

    found = [tuple(source) for source in cupy_fused.sources()]
    for dtype in cupy_attention.TYPES:
        for width in (64, cupy_attention.widest(dtype)):
            names = (cupy_attention.expression(kernel, dtype, width, None, True) for kernel in cupy_attention.KERNELS)
            found.append((f"attention, {dtype}, {width}", cupy_attention.SOURCE, tuple(names)))
    return found


def usages(architecture: int) -> list[Usage]:
    """What every kernel needs on sm_``architecture``. NVRTC runs in several threads at once."""
    compiler = Compiler()
    with ThreadPoolExecutor() as pool:
        return [usage for part in pool.map(lambda x: compiler(*x, architecture), all_sources()) for usage in part]


def main() -> None:
    from tests import cupy_on_cpu

    if missing := unavailable() or cupy_on_cpu.unavailable():
        raise SystemExit(f"{missing}: pip install -e '.[gpu-test]' cupy-cuda12x==14.2.0")
    cupy_on_cpu.install()
    titles = ("kernel", "sm", "registers", "spills", "stack", "shared")
    print("{:<44} {:>4} {:>9} {:>6} {:>6} {:>6}".format(*titles))
    for usage in sorted(usage for architecture in ARCHITECTURES for usage in usages(architecture)):
        print("{:<44} {:>4} {:>9} {:>6} {:>6} {:>6}".format(*usage))


if __name__ == "__main__":
    main()
