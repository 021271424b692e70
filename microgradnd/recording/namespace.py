"""The array namespace of a step that is being recorded: NumPy's functions, and ours, that note what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backends import numpy_backend
from ..dtypes import is_numeric
from .active import is_recording, recorder
from .arrays import CREATING, RecordedArray, RecordedNumber, create

# Functions of ours that are noted as a call of their own; the others call NumPy's, which are noted.
WHOLE = ("erf", "normal_cdf", "sigmoid")


class RecordedNamespace:
    """What ``xp`` is meanwhile, for arrays that are recorded and for those of NumPy."""

    def __getattr__(self, name: str) -> Any:
        plain = getattr(numpy_backend.namespace, name)
        return whole(name, plain) if name in WHOLE else _creating(name, plain) if name in CREATING else plain

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """As np.asarray: recorded ones stay what they are, others become constants of the recording."""
        if type(x) in (RecordedArray, RecordedNumber):
            return recorder().call("function", "np.asarray", np.asarray, (x, dtype))
        if isinstance(x, list | tuple) and any(type(part) is RecordedArray for part in x):
            return recorder().call("function", "np.array", np.array, (x, dtype))
        if isinstance(x, bool | int | float) and is_recording():
            return create("np.asarray", np.asarray, (x, dtype), {})
        array = np.asarray(x, dtype)
        return recorder().given(array, "constant", "constant") if is_recording() and is_numeric(array.dtype) else array

    def scatter_add(self, x: Any, index: Any, shape: tuple[int, ...]) -> Any:
        """As that of NumPy's namespace."""
        if numpy_backend.is_basic(index):
            return numpy_backend.scatter_add(self, x, index, shape)
        return whole("scatter_add", numpy_backend.scatter_add)(np, x, index, shape)

    def ascontiguousarray(self, x: Any) -> Any:
        """As np.ascontiguousarray."""
        if type(x) is RecordedArray:
            return recorder().call("function", "np.ascontiguousarray", np.ascontiguousarray, (x,))
        return np.ascontiguousarray(x)

    def array(self, x: Any, dtype: Any = None, order: str = "K") -> Any:
        """As np.array: a copy."""
        if type(x) in (RecordedArray, RecordedNumber):
            return recorder().call("function", "np.array", np.array, (x, dtype), {"order": order})
        return self.asarray(np.array(x, dtype, order=order))  # type: ignore[call-overload]


def whole(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, noted as one call where it is handed arrays that are being recorded."""

    def call(*args: Any) -> Any:
        if any(type(x) is RecordedArray for part in args for x in (part if type(part) is tuple else (part,))):
            return recorder().call("whole", name, function, args)
        return function(*args)

    return call


def _creating(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    name = f"np.{name}"

    def call(*args: Any, **kwargs: Any) -> Any:
        return create(name, function, args, kwargs) if is_recording() else function(*args, **kwargs)

    return call


namespace = RecordedNamespace()
