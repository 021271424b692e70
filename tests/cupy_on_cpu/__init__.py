"""The real CuPy on a machine without a GPU; see README.md beside this file.

`install()` comes before any `import cupy`, also an indirect one, and returns the module:

    from tests.cupy_on_cpu import install, unavailable

    if unavailable() is None:
        cupy = install()
"""

from tests.cupy_on_cpu._install import CompileStats, counters, install, stats
from tests.cupy_on_cpu._requirements import CUPY_VERSION, unavailable

__all__ = ["CUPY_VERSION", "CompileStats", "counters", "install", "stats", "unavailable"]
