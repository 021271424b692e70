"""How kernels are compiled, by Numba, and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_imported_by_others = "numba" in sys.modules

import numba  # noqa: E402
from numba.core import codegen  # noqa: E402

# LLVM uses half of the width of AVX-512 on Intel's processors, which lost clock speed by it in 2017. Beside somebody
# else's use of Numba its setting stays as it is.
FEATURES = numba.config.CPU_FEATURES
if FEATURES is None:
    FEATURES = codegen.get_host_cpu_features()
    if "+avx512f" in FEATURES.split(",") and not _imported_by_others:
        FEATURES = numba.config.CPU_FEATURES = f"{FEATURES},-prefer-256-bit"
_features = set(FEATURES.split(","))
_turned_off = {feature[1:] for feature in _features if feature.startswith("-")}
# What is turned off takes with it what LLVM builds on it: AVX2 on these, with fused products and sums, AVX-512 on more.
_below_avx2 = {"sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "avx", "avx2", "fma"}
AVX512 = "+avx512f" in _features and _turned_off.isdisjoint(_below_avx2 | {"f16c", "avx512f"})
AVX2 = AVX512 or ({"+avx2", "+fma"} <= _features and _turned_off.isdisjoint(_below_avx2))

# Sums may be added up in any order, as NumPy does, so that they are vectorised; products and sums may be fused.
# Nothing is assumed of NaN and infinity.
SUMS = {"reassoc", "contract"}
EXACT = {"contract"}

# Numba looks whether the file of a compiled function has changed since, not those of what it calls.
_sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("numba_*.py"))]
SOURCES = hashlib.sha256(b"".join(_sources)).hexdigest()[:8]

# A decorator for functions that compiled ones call. What Python would need to call them is left out: a fifth of the
# time that compiling takes.
inner = functools.partial(numba.njit, no_cpython_wrapper=True, no_cfunc_wrapper=True)

DAMAGED = (EOFError, OSError, pickle.PickleError)  # the cache on disk is, or the disk is full


def compiled(function: Callable[..., Any], signature: Any, cache: bool = True) -> Callable[..., Any]:
    """The function, compiled for this signature, or for None when it is first called; other threads go on beside it."""
    signatures = () if signature is None else (signature,)
    try:
        return numba.njit(*signatures, cache=cache, nogil=True)(function)
    except (RuntimeError, *DAMAGED):  # RuntimeError: there is no directory that could be written to
        return numba.njit(*signatures, nogil=True)(function)


def contiguous(x: Any) -> Any:
    """x, or a copy of it, with its elements in memory in the order of their indices."""
    return x if x.flags.c_contiguous else x.copy()
