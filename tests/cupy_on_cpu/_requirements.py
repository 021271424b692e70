"""What must be on the machine for the CPU stand-in to run."""

import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig

# The stand-in replaces functions by their C signatures and private names, which differ between versions.
CUPY_VERSION = "14.2.0"
CUPY_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x")
OLDEST_GCC = 12  # the first with _Float16 in C++ for x86-64


@functools.cache
def unavailable() -> str | None:
    """Return None where the stand-in can run, else one sentence that says why it cannot.

    CuPy is not imported to find out.
    """
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return f"CuPy on the CPU runs on Linux x86-64 only, not on {sys.platform} {platform.machine()}."
    versions = _installed_cupy()
    if not versions or importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install cupy-cuda12x==" + CUPY_VERSION + ")."
    if len(versions) > 1:
        return "More than one CuPy package is installed: " + ", ".join(sorted(versions)) + "."
    [(package, version)] = versions.items()
    if version != CUPY_VERSION:
        return f"CuPy on the CPU is made for CuPy {CUPY_VERSION}, and {package} {version} is installed."
    for compiler in ("gcc", "g++"):
        if shutil.which(compiler) is None:
            return f"CuPy on the CPU compiles with {compiler}, which is not installed."
    if compiler_major_version() < OLDEST_GCC:
        return f"CuPy on the CPU needs GCC {OLDEST_GCC} or newer, and g++ is version {compiler_major_version()}."
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        return "CuPy on the CPU needs Python.h (on Debian: the package python3-dev)."
    return None


def _installed_cupy() -> dict[str, str]:
    versions = {}
    for package in CUPY_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def compiler_version() -> str:
    """Return g++'s full version, such as 12.2.0."""
    answer = subprocess.run(["g++", "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def compiler_major_version() -> int:
    """Return g++'s major version."""
    return int(compiler_version().split(".")[0])
