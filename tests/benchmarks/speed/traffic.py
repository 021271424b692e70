"""What elementwise kernels read and write, alone: on the same threads, with next to no arithmetic. Needs Numba."""

from __future__ import annotations

import numpy as np

from microgradnd.kernels import numba_compiler  # noqa: F401 (first, as when kernels are loaded)
from microgradnd.kernels.numba_parts import Kernel

from .workloads import SIDE, Steps, normal


@Kernel
def copied(begin, end, x, out):
    x, out = x[begin:end], out[begin:end]
    for i in range(x.size):
        out[i] = x[i]


@Kernel
def updated(begin, end, p, g, m, v):
    p, g, m, v = p[begin:end], g[begin:end], m[begin:end], v[begin:end]
    for i in range(p.size):
        x, d, m_i, v_i = p[i], g[i], m[i], v[i]  # all are read before any is written
        m[i], v[i], p[i] = m_i + d, v_i + d, x + d


def traffic(workload: str) -> Steps:
    """For "elementwise": the result of one array, made anew as by operations, and the update of one by three."""
    x = normal(SIDE, SIDE).reshape(-1)
    p, g, m, v = (np.zeros_like(x) for _ in range(4))

    def copy() -> None:
        copied(x.size, 1, x, np.empty_like(x))

    return {**dict.fromkeys(("gelu", "softmax", "layer norm"), copy), "adam": lambda: updated(x.size, 1, p, g, m, v)}
