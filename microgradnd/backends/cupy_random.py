"""Random numbers on the device that NumPy would draw too, bit for bit. Importing this imports CuPy.

Philox (Salmon et al., 2011) computes its n-th block of numbers from a key and n alone, so that every thread draws its
own; the state is the key, which comes from a generator on the host.
"""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

THREADS = 256
BLOCKS = 1 << 16

# Philox4x64-10 as in NumPy: the counter is raised before the first block; each of its four numbers of 64 bits gives two
# of 32, the low half first; the upper 24 bits of each are a fraction.
KEPT = r"""
__device__ unsigned long long high_product(unsigned long long a, unsigned long long b) {
    const unsigned long long a0 = a & 0xffffffffull, a1 = a >> 32, b0 = b & 0xffffffffull, b1 = b >> 32;
    const unsigned long long middle = a1 * b0 + (a0 * b0 >> 32);
    return a1 * b1 + (middle >> 32) + (((middle & 0xffffffffull) + a0 * b1) >> 32);
}

__global__ void kept(unsigned long long seed, unsigned long long number, float p, bool* out,
                                long long size) {
    const long long all = (long long)gridDim.x * blockDim.x;
    for (long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x; block * 8 < size; block += all) {
        unsigned long long x0 = block + 1, x1 = 0, x2 = 0, x3 = 0, key0 = seed, key1 = number;
        for (int round = 0; round < 10; round++) {
            const unsigned long long low0 = 0xD2E7470EE14C6C93ull * x0, low2 = 0xCA5A826395121157ull * x2;
            const unsigned long long high0 = high_product(0xD2E7470EE14C6C93ull, x0);
            const unsigned long long high2 = high_product(0xCA5A826395121157ull, x2);
            x0 = high2 ^ x1 ^ key0;
            x1 = low2;
            x2 = high0 ^ x3 ^ key1;
            x3 = low0;
            key0 += 0x9E3779B97F4A7C15ull;
            key1 += 0xBB67AE8584CAA73Bull;
        }
        const unsigned long long drawn[4] = {x0, x1, x2, x3};
        for (int k = 0; k < 8; k++) {
            const long long i = block * 8 + k;
            const unsigned int bits = (unsigned int)(k % 2 ? drawn[k / 2] >> 32 : drawn[k / 2]);
            if (i < size) out[i] = (bits >> 8) * (1.0f / 16777216.0f) >= p;
        }
    }
}
"""

_kept = cupy.RawModule(code=KEPT, name_expressions=["kept"]).get_function("kept")


def kept(seed: int, number: int, shape: tuple[int, ...], p: float) -> Any:
    """Booleans, each False with probability p: what ``Generator(Philox(key=[seed, number]))`` draws on the host."""
    out = cupy.empty(shape, bool)
    size = math.prod(shape)
    if size:
        blocks = min(-(-size // (8 * THREADS)), BLOCKS)
        arguments = np.uint64(seed), np.uint64(number), np.float32(p), out, np.int64(size)
        _kept((blocks,), (THREADS,), arguments)
    return out
