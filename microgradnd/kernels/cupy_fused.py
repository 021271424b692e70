"""Fused operations on a GPU: what array_kernels computes, for CuPy arrays of floating dtypes.

No function here copies between host and device, or waits for the device.
"""

from __future__ import annotations

from .cupy_compiler import sources
from .cupy_rows import layer_norm, log_softmax, rms_norm, softmax

__all__ = [
    "layer_norm",
    "log_softmax",
    "rms_norm",
    "softmax",
    "sources",
]
