"""Compiling, into a cache that several processes may share.

What is built is named by a digest of everything that it was built from, so that nothing in the cache is ever
stale, and is renamed into place when it is whole, so that no process meets half a file.
"""

import hashlib
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.cupy_on_cpu._requirements import CUPY_VERSION, compiler_version

DEVICE = Path(__file__).parent / "device"
INCLUDE = DEVICE / "include"

# -ffp-contract=off: no fused multiply-add, as NumPy has none. -O1: compiles in about the time of -O0.
KERNEL_FLAGS = ("-std=c++17", "-O1", "-w", "-fPIC", "-fpermissive", "-ffp-contract=off")
# -nostdlib: the linker need not read the libraries that the process has already loaded. -Bsymbolic: a kernel
# may bear the name of a function that some library exports. -lgcc: half floats and bit counts call it.
LINK_FLAGS = ("-shared", "-nostdlib", "-Wl,-Bsymbolic")
LINKED = ("-lgcc",)
LIBRARY_FLAGS = ("-std=gnu11", "-O2", "-w", "-fPIC", "-shared")


class BuildError(RuntimeError):
    """The compiler refused; the message holds what it said."""


def cache_folder() -> Path:
    """Return the folder for what is built: CPUCUPY_CACHE, else a folder in the user's cache."""
    chosen = os.environ.get("CPUCUPY_CACHE")
    if chosen:
        return Path(chosen)
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user_cache).expanduser() / "microgradnd-cupy-on-cpu"


def device_library() -> Path:
    """Return the shared library that stands in for the CUDA runtime and driver, built where need be."""
    include = sysconfig.get_path("include")
    sources = sorted(DEVICE.glob("*.c"))
    digest = _digest(
        [compiler_version(), include, str(sysconfig.get_config_var("SOABI")), *LIBRARY_FLAGS],
        [*sources, DEVICE / "device.h", INCLUDE / "kernel_abi.h"],
    )
    library = cache_folder() / f"device-{digest}.so"
    if not library.exists():
        includes = [f"-I{INCLUDE}", f"-I{DEVICE}", f"-I{include}"]
        _compile(["gcc", *LIBRARY_FLAGS, *includes, *map(str, sources), "-lm", "-ldl"], library)
    return library


class KernelBuilder:
    """Builds kernels against the headers of one CuPy installation."""

    def __init__(self, cupy_include: Path) -> None:
        cccl = cupy_include / "cupy" / "_cccl"
        folders = [INCLUDE, cupy_include, cccl / "cub", cccl / "thrust", cccl / "libcudacxx"]
        self._includes = [f"-I{folder}" for folder in folders]
        # CuPy's own headers are known by its version, and by their place, which the precompiled header holds.
        self._basis = _digest(
            [compiler_version(), CUPY_VERSION, str(cupy_include), *KERNEL_FLAGS, *LINK_FLAGS],
            sorted(INCLUDE.rglob("*.h")),
        )
        self._prelude: Path | None = None

    def build(self, code: str) -> tuple[Path, bool]:
        """Return the shared object of a kernel's C++ code, and whether it had to be compiled."""
        kernel = cache_folder() / f"kernel-{_digest([self._basis, code], [])}.so"
        if kernel.exists():
            return kernel, False
        source = kernel.with_suffix(".cpp")
        _write(source, code)
        command = [
            "g++",
            *KERNEL_FLAGS,
            *LINK_FLAGS,
            *self._includes,
            "-include",
            str(self._precompiled_prelude()),
        ]
        _compile([*command, str(source), *LINKED], kernel)
        return kernel, True

    def _precompiled_prelude(self) -> Path:
        """Return a header that g++ replaces with the precompiled one beside it."""
        if self._prelude is None:
            prelude = cache_folder() / f"prelude-{self._basis}.h"
            precompiled = prelude.with_name(prelude.name + ".gch")
            if not precompiled.exists():
                _write(prelude, '#include "kernel_prelude.h"\n')
                _compile(["g++", *KERNEL_FLAGS, *self._includes, "-x", "c++-header", str(prelude)], precompiled)
            self._prelude = prelude
        return self._prelude


def _digest(words: Sequence[str], files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _write(path: Path, text: str) -> None:
    temporary = _temporary(path)
    temporary.write_text(text)
    os.replace(temporary, path)


def _compile(command: list[str], result: Path) -> None:
    temporary = _temporary(result)
    run = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
    if run.returncode != 0:
        temporary.unlink(missing_ok=True)
        raise BuildError(f"{' '.join(command)}\n{run.stderr}")
    os.replace(temporary, result)


def _temporary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem + "-", suffix=path.suffix)
    os.close(handle)
    return Path(name)
