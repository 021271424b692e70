"""How CUDA kernels for CuPy arrays are compiled and launched. Importing this imports CuPy.

A family is a text of templates over T, the element type, and often V, how many elements a thread loads at once. NVRTC
compiles it once for each dtype that is used, which CuPy keeps on disk. Sums of float16 and bfloat16 are kept in
float32 (A, the accumulator), and what is stored is rounded once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np

TYPES = {"e": "__half", "E": "__nv_bfloat16", "f": "float", "d": "double"}  # by the dtype's character
BYTES = {"e": 2, "E": 2, "f": 4, "d": 8}
LOAD = 16  # bytes that a thread loads at once
BLOCK = 256  # threads of a block where nothing else is said
BLOCKS = 1 << 16  # at most; what is left is done by the same threads in their next rounds
OPTIONS = ("--std=c++17",)

PRELUDE = r"""
typedef long long Int;

template <class T> struct Accumulator { typedef float type; };
template <> struct Accumulator<double> { typedef double type; };
template <class T> using Acc = typename Accumulator<T>::type;

template <class T, int V> struct alignas(sizeof(T) * V) Pack { T at[V]; };

template <class T, int V> __device__ __forceinline__ Pack<T, V> load(const T* x, Int i) {
    return reinterpret_cast<const Pack<T, V>*>(x)[i];
}
template <class T, int V> __device__ __forceinline__ void store(T* x, Int i, const Pack<T, V>& p) {
    reinterpret_cast<Pack<T, V>*>(x)[i] = p;
}

// Integers of so many bytes, negative for unsigned ones.
__device__ __forceinline__ Int integer_at(const void* x, int bytes, Int i) {
    switch (bytes) {
        case 1: return static_cast<const signed char*>(x)[i];
        case 2: return static_cast<const short*>(x)[i];
        case 4: return static_cast<const int*>(x)[i];
        case -1: return static_cast<const unsigned char*>(x)[i];
        case -2: return static_cast<const unsigned short*>(x)[i];
        case -4: return static_cast<const unsigned*>(x)[i];
        default: return static_cast<const Int*>(x)[i];  // unsigned ones beyond its range become negative
    }
}

__device__ __forceinline__ Int first_item() { return (Int)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ Int all_items() { return (Int)gridDim.x * blockDim.x; }
"""


class Source(NamedTuple):
    """What is compiled at once."""

    name: str
    code: str
    expressions: tuple[str, ...]


class Family:
    """Kernels of one text.

    Args:
        name: for tables and messages.
        code: CUDA C++ after ``PRELUDE``.
        instances: the templates' instances, such as ``"softmax<T, V>"``: T becomes the element type, V is 1 and as many
            as 16 bytes hold.
    """

    every: list[Family] = []  # noqa: RUF012 (one registry)

    def __init__(self, name: str, code: str, *instances: str) -> None:
        self.name, self.code, self.instances = name, code, instances
        self._kernels: dict[tuple[str, str, int, int], Any] = {}  # the last is the device: each has its own
        self._module = functools.cache(self._compile)
        Family.every.append(self)

    def source(self, char: str) -> Source:
        header = {"e": "#include <cuda_fp16.h>\n", "E": "#include <cuda_bf16.h>\n"}.get(char, "")
        found = [_instance(x, char, v) for x in self.instances for v in (1, LOAD // BYTES[char])]
        return Source(f"{self.name}, {TYPES[char]}", header + PRELUDE + self.code, tuple(dict.fromkeys(found)))

    def _compile(self, char: str) -> Any:
        _, code, expressions = self.source(char)
        return cupy.RawModule(code=code, options=OPTIONS, name_expressions=expressions)

    def kernel(self, instance: str, char: str, vector: int = 1) -> Any:
        """The kernel, to be called with grid, block, arguments."""
        key = instance, char, vector, cupy.cuda.runtime.getDevice()
        if key not in self._kernels:
            self._kernels[key] = self._module(char).get_function(_instance(instance, char, vector))
        return self._kernels[key]

    def flat(self, instance: str, like: Any, items: int, vector: int, *args: Any) -> None:
        """Run it with a thread for each of ``items`` things, or for every few of them."""
        if items:
            blocks = min(-(-items // BLOCK), BLOCKS)
            self.kernel(instance, like.dtype.char, vector)((blocks,), (BLOCK,), args)


def _instance(text: str, char: str, vector: int) -> str:
    return re.sub(r"\bT\b", TYPES[char], re.sub(r"\bV\b", str(vector), text))


def sources() -> Iterator[Source]:
    """Everything that there is to compile."""
    for family in Family.every:
        for char in "efdE":
            yield family.source(char)


def vector_of(length: int, *arrays: Any) -> int:
    """How many elements to load at once: what 16 bytes hold, if ``length`` and all addresses are multiples of that."""
    vector = LOAD // arrays[0].dtype.itemsize
    if length % vector or any(x is not None and x.data.ptr % LOAD for x in arrays):
        return 1
    return int(vector)


def contiguous(x: Any) -> Any:
    """x, or a copy of it, with its elements in memory in the order of their indices."""
    return x if x.flags.c_contiguous else cupy.ascontiguousarray(x)


def like(g: Any, x: Any) -> Any:
    """A gradient in contiguous memory and in the dtype of x."""
    return contiguous(g if g.dtype == x.dtype else g.astype(x.dtype))


def integer_kind(dtype: Any) -> Any:
    """What the kernels' ``integer_at`` has to know of a dtype: its bytes, negative for unsigned integers."""
    return np.int32(-dtype.itemsize if dtype.kind == "u" else dtype.itemsize)


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums are kept."""
    return np.dtype(np.float64 if dtype.char == "d" else np.float32)


def address(x: Any) -> Any:
    """An argument that may be missing: None becomes the null pointer."""
    return np.uintp(0) if x is None else x
