"""`cupy.random.Generator`, whose kernels are compiled into CuPy for a GPU, drawn by NumPy.

The names, dtypes and shapes are CuPy's; the numbers are neither CuPy's nor, dtype by dtype, NumPy's.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tests.cupy_on_cpu._host_memory import view
from tests.cupy_on_cpu._profiling import unseen


class BitGenerator:
    """Holds the seed that a Generator is made from."""

    __module__ = "cupy.random"

    def __init__(self, seed: Any = None) -> None:
        self.seed = seed

    def random_raw(self, size: Any = None, output: Any = True) -> Any:
        """Refuse: the raw stream is the device's own."""
        raise NotImplementedError("the CPU stand-in has no cuRAND bit streams")


class Generator:
    """The methods that CuPy's Generator has, drawn from NumPy's."""

    __module__ = "cupy.random"

    def __init__(self, bit_generator: Any) -> None:
        self.bit_generator = bit_generator
        self._numpy = np.random.default_rng(bit_generator.seed)


def replace_random(cupy: ModuleType, count_call: Callable[[], None]) -> None:
    """Put NumPy in the place of the generators of `cupy.random`; `count_call` is called for each draw."""
    real = cupy.random.Generator
    for name in dir(real):
        if not name.startswith("_") and callable(getattr(real, name)):
            setattr(Generator, name, _drawing(cupy, name, count_call))

    def default_rng(seed: Any = None) -> Generator:
        if isinstance(seed, Generator):
            return seed
        return Generator(seed if isinstance(seed, BitGenerator) else BitGenerator(seed))

    replacements: dict[str, Any] = {
        "Generator": Generator,
        "BitGenerator": BitGenerator,
        "default_rng": default_rng,
    }
    for name in ("XORWOW", "MRG32k3a", "Philox4x3210"):
        replacements[name] = type(name, (BitGenerator,), {})
    vars(cupy.random).update(replacements)


def _drawing(cupy: ModuleType, name: str, count_call: Callable[[], None]) -> Callable[..., Any]:
    def draw(self: Generator, *args: Any, dtype: Any = None, out: Any = None, **keywords: Any) -> Any:
        count_call()
        args = tuple(arg.get() if isinstance(arg, cupy.ndarray) else arg for arg in args)
        keywords = {key: arg.get() if isinstance(arg, cupy.ndarray) else arg for key, arg in keywords.items()}
        if out is not None and keywords.get("size") is None:
            keywords["size"] = out.shape
        drawn = np.asarray(getattr(self._numpy, name)(*args, **keywords))
        if out is None:
            out = cupy.empty(drawn.shape, drawn.dtype if dtype is None else dtype)
        # Into the memory itself, since a device draws without a copy from the host.
        view(out.data.ptr, out.shape, out.dtype)[...] = drawn
        return out

    draw.__name__ = name
    return unseen(draw)
