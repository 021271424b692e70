"""CuPy's three Thrust functions, which are compiled into it for a GPU, computed by NumPy."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from tests.cupy_on_cpu._host_memory import view
from tests.cupy_on_cpu._profiling import unseen


def replace_thrust(thrust: ModuleType, count_call: Callable[[], None]) -> None:
    """Put NumPy in the place of `cupy.cuda.thrust`; `count_call` is called for each operation."""

    def sort(dtype: Any, data: int, keys: int, shape: Sequence[int]) -> None:
        count_call()
        array = view(data, shape, dtype)
        array[...] = np.sort(array, axis=-1)

    def argsort(dtype: Any, indices: int, data: int, keys: int, shape: Sequence[int]) -> None:
        count_call()
        view(indices, shape, np.intp)[...] = np.argsort(view(data, shape, dtype), axis=-1, kind="stable")

    def lexsort(dtype: Any, indices: int, keys: int, count: int, length: int) -> None:
        count_call()
        view(indices, (length,), np.intp)[...] = np.lexsort(view(keys, (count, length), dtype))

    for function in (sort, argsort, lexsort):
        setattr(thrust, function.__name__, unseen(function))
