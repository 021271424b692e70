"""CuPy's namespace, and the one name that operations need and CuPy lacks. Importing this imports CuPy."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import cupy

from .numpy_backend import scatter_add

array_type = cupy.ndarray
namespace = SimpleNamespace(**{**vars(cupy), "scatter_add": partial(scatter_add, cupy)})
