"""Fast implementations of fused operations, as functions of arrays; they know nothing of tensors.

Every one is written in the array namespace, for every backend. For large float32 arrays on the host there are
compiled ones too, where Numba is installed: :class:`kernels` chooses.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import numpy as np

CHOICES = ("numpy", "numba", "auto")
# Up to so many elements NumPy computes. Compiled kernels win from a thousand on (tests/benchmarks/kernels.py), but a
# program that has only small arrays shall not wait for Numba, which takes half a second to load.
SMALL = 1 << 13


class kernels:
    """Choose how fused operations and optimisers compute on the host: for the process, or within a ``with`` block.

    >>> mg.kernels("numpy")  # from now on
    >>> with mg.kernels("numba"):
    ...     loss = step()

    Args:
        choice: ``"numpy"``; ``"numba"``, kernels compiled by Numba for large float32 arrays (small ones and other
            dtypes stay with NumPy); ``"auto"``, at first, is ``"numba"`` where it is installed.

    Results of the two differ by rounding. A kernel is compiled when it is first used, which takes some tenths of a
    second, and kept on disk. Raises ValueError for other choices, ImportError for ``"numba"`` without Numba.
    """

    current = "auto"
    _compiled: Any = None  # the module, once it is needed; False where there is none

    def __init__(self, choice: str) -> None:
        if choice not in CHOICES:
            raise ValueError(f"kernels: expected any of {', '.join(CHOICES)}, got {choice!r}")
        if choice == "numba" and not installed():
            raise ImportError("kernels: Numba is not installed: pip install 'numba>=0.61'", name="numba")
        self._before = kernels.current
        kernels.current = choice

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        kernels.current = self._before


def installed() -> bool:
    """Whether Numba is there; it is not imported."""
    return importlib.util.find_spec("numba") is not None


def compiled(*arrays: Any) -> Any:
    """The module of compiled functions, if they are chosen and made for these arrays (None among them is skipped)."""
    if kernels.current == "numpy":
        return None
    for x in arrays:
        if x is not None and not (x.__class__ is np.ndarray and x.dtype.char == "f" and x.dtype.isnative):
            return None
    if kernels._compiled is None:
        kernels._compiled = _loaded()
    return kernels._compiled or None


def _loaded() -> Any:
    """The compiled functions; False without Numba."""
    if not installed():
        return False
    try:
        importlib.import_module(".numba_compiler", __name__)  # first: it sees whether the program has imported Numba
        return importlib.import_module(".numba_fused", __name__)
    except Exception as error:  # ImportError, or whatever a library raises that does not fit to the others
        if kernels.current == "numba":
            raise
        warnings.warn(f"Numba is installed but can't be imported, NumPy is used: {error}", RuntimeWarning, stacklevel=2)
        return False
