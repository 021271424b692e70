"""Dropout on a GPU, by random numbers that NumPy would draw too, bit for bit.

Philox (Salmon et al., 2011) computes its n-th block of numbers from a key and n alone, so that every thread draws its
own; the state is the key, which comes from a generator on the host.
"""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from ..noting import noted
from .cupy_compiler import BLOCK, BLOCKS, Family, accumulator, address, contiguous, vector_of

DRAWN = 8  # numbers of a block

# Philox4x64-10 as in NumPy: the counter is raised before the first block; each of its four numbers of 64 bits gives two
# of 32, the low half first; the upper 24 bits of each are a fraction.
CODE = r"""
typedef unsigned long long Word;

__device__ __forceinline__ void philox(Word seed, Word number, Int block, Word* drawn) {
    Word x0 = block + 1, x1 = 0, x2 = 0, x3 = 0, key0 = seed, key1 = number;
    for (int round = 0; round < 10; round++) {
        const Word low0 = 0xD2E7470EE14C6C93ull * x0, low2 = 0xCA5A826395121157ull * x2;
        const Word high0 = __umul64hi(0xD2E7470EE14C6C93ull, x0), high2 = __umul64hi(0xCA5A826395121157ull, x2);
        x0 = high2 ^ x1 ^ key0;
        x1 = low2;
        x2 = high0 ^ x3 ^ key1;
        x3 = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    drawn[0] = x0;
    drawn[1] = x1;
    drawn[2] = x2;
    drawn[3] = x3;
}
__device__ __forceinline__ bool is_kept(Word word, bool upper, float p) {
    const unsigned int bits = (unsigned int)(upper ? word >> 32 : word);
    return (bits >> 8) * (1.0f / 16777216.0f) >= p;
}

__global__ void kept(Word seed, Word number, float p, bool* out, Int size) {
    for (Int block = first_item(); block * 8 < size; block += all_items()) {
        Word drawn[4];
        philox(seed, number, block, drawn);
        #pragma unroll
        for (int k = 0; k < 8; k++)
            if (block * 8 + k < size) out[block * 8 + k] = is_kept(drawn[k / 2], k % 2, p);
    }
}

template <class T, int V>
__global__ void dropout(Word seed, float p, Acc<T> scale, const T* x, const T* residual, T* out, bool* mask, Int size) {
    typedef Acc<T> A;
    for (Int block = first_item(); block * 8 < size; block += all_items()) {
        Word drawn[4];
        philox(seed, 0, block, drawn);
        #pragma unroll
        for (int j = 0; j < 8; j += V) {
            const Int i = block * 8 + j;
            if (i >= size) break;
            Pack<T, V> y = load<T, V>(x, i / V), before;
            if (residual) before = load<T, V>(residual, i / V);
            #pragma unroll
            for (int k = 0; k < V; k++) {
                const bool keep = is_kept(drawn[(j + k) / 2], (j + k) % 2, p);
                const A value = keep ? A(y.at[k]) * scale : A(0);
                mask[i + k] = keep;
                y.at[k] = T(residual ? A(before.at[k]) + value : value);
            }
            store(out, i / V, y);
        }
    }
}
"""
random_family = Family("random", CODE, "kept", "dropout<T, V>")


def _blocks(size: int) -> tuple[int]:
    return (min(-(-size // (DRAWN * BLOCK)), BLOCKS),)


def kept(seed: int, number: int, shape: tuple[int, ...], p: float) -> Any:
    """Booleans, each False with probability p: what ``Generator(Philox(key=[seed, number]))`` draws on the host."""
    out, size = cupy.empty(shape, bool), math.prod(shape)
    if size:
        arguments = np.uint64(seed), np.uint64(number), np.float32(p), out, size
        random_family.kernel("kept", "f")(_blocks(size), (BLOCK,), arguments)
    return out


@noted
def dropout(x: Any, residual: Any, p: float, scale: float, seed: int) -> tuple[Any, Any]:
    """x, times ``scale``, where ``kept(seed, 0, x.shape, p)`` holds, added to ``residual``; and what is kept."""
    x = contiguous(x)
    residual = None if residual is None else contiguous(residual)
    out, mask = cupy.empty_like(x), cupy.empty(x.shape, bool)
    vector = vector_of(x.size, x, residual, out)
    arguments = (
        np.uint64(seed),
        np.float32(p),
        accumulator(x.dtype).type(scale),
        x,
        address(residual),
        out,
        mask,
        x.size,
    )
    random_family.kernel("dropout<T, V>", x.dtype.char, vector)(_blocks(x.size), (BLOCK,), arguments)
    return out, mask
