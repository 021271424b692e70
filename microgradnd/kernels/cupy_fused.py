"""Fused operations on a GPU: what array_*.py compute, for CuPy arrays of floating dtypes.

No function here copies between host and device, or waits for the device.
"""

from __future__ import annotations

from .cupy_compiler import sources
from .cupy_elementwise import bias_gelu, bias_relu, gelu, relu_gradient, sigmoid, silu, swiglu
from .cupy_losses import cross_entropy
from .cupy_optimisers import adam_all, gradient_norm, scaled, sgd_all
from .cupy_random import dropout
from .cupy_rows import layer_norm, log_softmax, rms_norm, softmax
from .cupy_scatter import add_rows

BIAS_GELU = ("none", "tanh")  # what bias_gelu knows
TAKES_FLAT_INDEX = False  # but labels: of those out of range cross_entropy is NaN

__all__ = [
    "BIAS_GELU",
    "TAKES_FLAT_INDEX",
    "adam_all",
    "add_rows",
    "bias_gelu",
    "bias_relu",
    "cross_entropy",
    "dropout",
    "gelu",
    "gradient_norm",
    "layer_norm",
    "log_softmax",
    "relu_gradient",
    "rms_norm",
    "scaled",
    "sgd_all",
    "sigmoid",
    "silu",
    "softmax",
    "sources",
    "swiglu",
]
