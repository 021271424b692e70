"""The array namespace of CuPy's arrays in a step that is being recorded."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from ..backends import cupy_backend
from .active import is_recording, recorder
from .arrays import RecordedArray, RecordedNumber, call_function, create, device_ufunc
from .namespace import whole

# Functions of ours that are noted as a call of their own; ``relu`` is written in terms of CuPy's.
WHOLE = ("erf", "kept", "masked", "normal_cdf", "relu_gradient", "rotate_halves", "scatter_add", "sigmoid", "take_rows")


class DeviceNamespace:
    """What ``xp`` is meanwhile, for arrays that are recorded and for those of CuPy.

    CuPy's functions do not ask their arguments who they are, as NumPy's do: all of them are noted here.
    """

    def __getattr__(self, name: str) -> Any:
        plain = getattr(cupy_backend.namespace, name)
        if name == "relu" or isinstance(plain, type) or not callable(plain):
            return plain
        return whole(name, plain) if name in WHOLE else _noting(name, plain)

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """As cupy.asarray: recorded ones stay what they are, those of the host are copied in each replay."""
        if not is_recording():
            return cupy.asarray(x, dtype)
        if type(x) is RecordedNumber or isinstance(x, bool | int | float):
            # By value, in a launch: cupy.asarray would copy it from the host.
            real = x.value if type(x) is RecordedNumber else x
            return create("cp.full", cupy.full, ((), x, np.asarray(real, dtype).dtype), {})
        if type(x) is RecordedArray or (
            isinstance(x, list | tuple) and any(type(part) in (RecordedArray, RecordedNumber) for part in x)
        ):
            return recorder().call("function", "cp.asarray", cupy.asarray, (x, dtype))
        return recorder().given(cupy.asarray(x, dtype), "constant", "constant")

    def array(self, x: Any, dtype: Any = None, order: str = "K") -> Any:
        """As cupy.array: a copy."""
        if type(x) is RecordedNumber:
            return self.asarray(x, dtype)
        return _noting("array", cupy.array)(x, dtype, order=order)


def _noting(name: str, function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not is_recording():
            return function(*args, **kwargs)
        if isinstance(function, cupy.ufunc):
            return device_ufunc(f"cp.{name}", function, args, kwargs)
        return call_function(f"cp.{name}", function, args, kwargs)

    return call


namespace = DeviceNamespace()
