"""microgradnd: define-by-run automatic differentiation of N-dimensional arrays, on NumPy or CuPy."""

from .autocast import autocast
from .backends.tf32 import allow_tf32
from .config import memory_report, show_config
from .devices import cuda_is_available, device, from_dlpack
from .functional import grad, value_and_grad
from .grad_mode import no_grad
from .gradcheck import check_grads
from .kernels import kernels
from .ops import *  # noqa: F403
from .ops import __all__ as _operations
from .primitive import primitive
from .recompute import checkpoint
from .recording import CaptureError, capture
from .tensor import Tensor, tensor

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "Tensor",
    "allow_tf32",
    "autocast",
    "capture",
    "check_grads",
    "checkpoint",
    "cuda_is_available",
    "device",
    "from_dlpack",
    "grad",
    "kernels",
    "memory_report",
    "no_grad",
    "primitive",
    "show_config",
    "tensor",
    "value_and_grad",
    *_operations,
]
