"""Mixed precision: products in float16 or bfloat16, what needs range or precision in float32.

An operation declares its side by the function that converts its arguments, :func:`in_low_precision` or
:func:`in_float32`; the others take what they get. The parameters of a model stay float32: a product computes with a
converted copy, and its gradient is converted back where it arrives (Micikevicius et al., 2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .dtypes import NARROW, as_dtype, cast, is_narrow
from .modes import Mode, Setting

if TYPE_CHECKING:
    import numpy.typing as npt


autocast_mode = Setting(None)  # a dtype, or None


class _Ever:
    entered = False  # by any thread: asked first, since an attribute of a thread takes 50 ns to look up


ever = _Ever()


class autocast(Mode):
    """Compute products in a 16-bit dtype, within a ``with`` block or a decorated function.

    >>> with mg.autocast("bfloat16"):
    ...     loss = nn.cross_entropy(model(x), y)
    >>> loss.backward()  # outside: gradients are computed in the dtypes of forward, those of parameters are float32

    Within, as in PyTorch (its lists of operations: https://docs.pytorch.org/docs/stable/amp.html):

    - ``matmul``, ``linear``, ``linear_relu``, ``linear_gelu``, ``einsum``, ``scaled_dot_product_attention`` and
      ``self_attention`` convert their float32 arguments (float64 ones stay) and give results in ``dtype``. Sums in
      them are float32's.
    - ``exp``, ``log``, ``log1p``, ``power``, ``sum``, ``mean``, ``std``, ``var``, ``softmax``, ``log_softmax``,
      ``logsumexp``, ``cross_entropy``, ``layer_norm``, ``rms_norm`` and ``nn.mse_loss`` convert float16 and bfloat16
      arguments to float32, and give that.
    - All others follow NumPy's promotion.

    Holds for the current thread alone and may be nested; ``mg.autocast(None)`` turns it off inside. The point of it is
    a device's speed: processors without such arithmetic, NumPy among them, compute in float32 and round, which takes
    longer than float32 alone.

    Args:
        dtype: ``"float16"``, whose gradients need an ``nn.GradScaler``; ``"bfloat16"``, with float32's range and three
            decimal digits; None, to compute as without.
        enabled: False is the same as None for ``dtype``.

    Raises ValueError for other dtypes, ImportError for bfloat16 where ``ml_dtypes`` is not installed, and TypeError
    as a decorator of generator and coroutine functions.
    """

    setting = autocast_mode

    def __init__(self, dtype: npt.DTypeLike | None, enabled: bool = True) -> None:
        low = None if dtype is None else _low(dtype)
        self.value = low if enabled else None

    def __enter__(self) -> None:
        ever.entered = True
        super().__enter__()


def _low(dtype: Any) -> Any:
    try:
        low = as_dtype(dtype)
    except TypeError as error:
        raise ValueError(f"autocast: expected float16 or bfloat16, got {dtype!r}") from error
    if not is_narrow(low):
        raise ValueError(f"autocast: expected float16 or bfloat16, got {low}; None turns it off")
    return low


def in_low_precision(*arguments: Any) -> tuple[Any, ...]:
    """Floating-point arrays in the dtype of the surrounding :class:`autocast`, but for float64; others as they are."""
    dtype = autocast_mode.current
    return tuple([cast(x, dtype) if _char(x) in ("f", *NARROW) and x.dtype != dtype else x for x in arguments])


def in_float32(*arguments: Any) -> tuple[Any, ...]:
    """Arrays of float16 and bfloat16 in float32; others as they are."""
    return tuple([x.astype(np.float32) if _char(x) in NARROW else x for x in arguments])


def _char(x: Any) -> Any:
    return x.dtype.char if hasattr(x, "dtype") else None
