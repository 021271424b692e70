"""CuPy's namespace, and the few names that operations need and CuPy lacks. Importing this imports CuPy."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
from cupyx.scipy.special import erf, ndtr

from ..dtypes import BFLOAT16
from . import tf32
from .narrow import in_float32, promoting
from .numpy_backend import scatter_add

array_type = cupy.ndarray
if tf32.allow_tf32.current is not None:
    tf32.apply()


def relu(x: Any, out: Any = None) -> Any:
    """max(x, 0)."""
    return cupy.maximum(x, 0, out=out)


def relu_gradient(g: Any, out: Any) -> Any:
    """g where ``out``, the rectifier's result, is positive, and 0 elsewhere."""
    return masked(g, out > 0)


def masked(x: Any, mask: Any) -> Any:
    """x where ``mask`` holds and 0 elsewhere."""
    return where(mask, x, cupy.zeros((), x.dtype)) if hasattr(mask, "shape") else x * mask


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)); of integers in float64."""
    x = x.astype(np.float64) if x.dtype.kind in "biu" else x
    return 1 / (1 + cupy.exp(-x))


def matmul(x: Any, y: Any) -> Any:
    """cupy.matmul."""
    return (_batched_matmul if x.ndim > 2 or y.ndim > 2 else cupy.matmul)(x, y)


# What CuPy 14.2 refuses bfloat16 for, or gives another dtype.
_batched_matmul, var, erf = (in_float32(f, (BFLOAT16,)) for f in (cupy.matmul, cupy.var, erf))
einsum = in_float32(cupy.einsum, (BFLOAT16,), first=1)
where = promoting(cupy.where)
_ours: dict[str, Any] = {f.__name__: f for f in (masked, matmul, relu, relu_gradient, sigmoid)}
_ours |= {"einsum": einsum, "erf": erf, "var": var, "where": where}
_ours |= {"normal_cdf": ndtr, "scatter_add": partial(scatter_add, cupy)}
_ours["SMALL"] = 0  # kernels for all arrays that have elements: one launch instead of several
namespace = SimpleNamespace(**{**vars(cupy), **_ours})
