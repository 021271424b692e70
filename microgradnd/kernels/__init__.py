"""Fast implementations of fused operations, as functions of arrays; they know nothing of tensors.

Every one is written in the array namespace, for every backend. For large float32 arrays on the host there are
compiled ones too, where Numba is installed, and for CuPy arrays ones in CUDA C++: :class:`kernels` chooses.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from typing import Any

import numpy as np

from ..modes import Choice

CHOICES = ("numpy", "numba", "auto")
# Arrays of up to so many elements stay with NumPy. Kernels win from 256 on (tests/benchmarks/kernels.py), but Numba
# takes half a second to load: only who asks for it gets them for small arrays. With "numpy" there are none.
SMALL = {"numba": 1 << 8, "auto": 1 << 13, "numpy": 1 << 13}


class kernels(Choice):
    """Choose how fused operations and optimisers compute: for the process, or within a ``with`` block.

    >>> mg.kernels("numpy")  # from now on
    >>> with mg.kernels("numba"):
    ...     loss = step()

    Args:
        choice: ``"numpy"``; ``"numba"``, kernels compiled by Numba for float32 arrays of more than 256 elements
            (smaller ones and other dtypes stay with NumPy); ``"auto"``, at first, where Numba is installed the same
            for arrays of more than 8,192, so that small models need not wait half a second for it.

    For CuPy arrays ``"numpy"`` means the array library's own functions, and both of the others kernels in CUDA C++,
    which exist for float16, bfloat16, float32 and float64, whatever the size.

    Results of the two differ by rounding. A kernel is compiled when it is first used, which takes some tenths of a
    second, those of attention and of products some seconds, and kept on disk. Where Numba's NUMBA_DISABLE_JIT is set,
    NumPy computes. Raises ValueError for other choices, ImportError for ``"numba"`` without Numba.
    """

    current = "auto"
    _compiled: Any = None  # the module, once it is needed; False where there is none
    _on_device: Any = None  # the same for CuPy arrays

    def __init__(self, choice: str) -> None:
        if choice not in CHOICES:
            raise ValueError(f"kernels: expected any of {', '.join(CHOICES)}, got {choice!r}")
        if choice == "numba" and not installed():
            raise ImportError("kernels: Numba is not installed: pip install 'numba>=0.61'", name="numba")
        super().__init__(choice)


def small() -> int:
    """Up to so many elements arrays on the host stay with NumPy."""
    return SMALL[kernels.current]


def installed() -> bool:
    """Whether Numba is there; it is not imported."""
    return importlib.util.find_spec("numba") is not None


def kernels_for(*arrays: Any) -> Any:
    """The module of compiled functions, if they are chosen and made for these arrays (None among them is skipped)."""
    if kernels.current == "numpy":
        return None
    for x in arrays:
        if x is not None and not (x.__class__ is np.ndarray and x.dtype.char == "f" and x.dtype.isnative):
            return None if x.__class__ is np.ndarray else _for_device(arrays, same_dtype=True)
    if kernels._compiled is None:
        kernels._compiled = _loaded()
    return kernels._compiled or None


def kernels_for_all(*arrays: Any) -> Any:
    """The module of kernels that take many arrays at once: of float32 on the host, of any floats on a device."""
    if arrays[0].__class__ is np.ndarray:
        return kernels_for(*arrays)
    return None if kernels.current == "numpy" else _for_device(arrays, same_dtype=False)


def _for_device(arrays: tuple[Any, ...], same_dtype: bool) -> Any:
    """The kernels for CuPy arrays of floating dtypes; None if there are others among them."""
    found = [x for x in arrays if x is not None]
    kind = found[0].__class__
    if kind.__module__.partition(".")[0] != "cupy" or any(x.__class__ is not kind for x in found):
        return None
    dtypes = {x.dtype for x in found}
    if (same_dtype and len(dtypes) > 1) or not all(dtype.char in "efdE" and dtype.isnative for dtype in dtypes):
        return None
    if kernels._on_device is None:
        kernels._on_device = importlib.import_module(".cupy_fused", __name__)
    return kernels._on_device


def _loaded() -> Any:
    """The compiled functions; False without Numba."""
    if not installed():
        return False
    before = set(sys.modules)
    try:
        # First: it sees whether the program has imported Numba.
        compiler = importlib.import_module(".numba_compiler", __name__)
        if compiler.numba.config.DISABLE_JIT:  # some kernels are made of what only a compiler understands
            return False
        return importlib.import_module(".numba_fused", __name__)
    except Exception as error:  # ImportError, or whatever a library raises that does not fit to the others
        if kernels.current == "numba":
            raise
        warnings.warn(f"Numba is installed but can't be imported, NumPy is used: {error}", RuntimeWarning, stacklevel=2)
        return False
    except BaseException:  # Ctrl-C: a package that is there in part would stay so
        for name in set(sys.modules) - before:
            if name.startswith(("numba", "llvmlite", f"{__name__}.numba_")):
                del sys.modules[name]
        raise
