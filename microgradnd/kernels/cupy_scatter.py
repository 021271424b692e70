"""Adding rows at indices that repeat, on a GPU and always in the same order: the gradient of an embedding.

Positions are sorted by the row that they name; equal ones then lie side by side. A block adds up the equal ones of
a few positions. Rows that go on in the next block's positions are left in parts, which a second launch adds up.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from .cupy_compiler import BLOCK, Family, accumulator, contiguous, integer_kind, vector_of

POSITIONS = 32  # of a block
GRID = 1 << 15  # blocks along the positions, at most

CODE = r"""
enum { POSITIONS = 32 };

__device__ __forceinline__ Int row_of(const Int* keys, const Int* order, Int i) { return keys[order[i]]; }

__global__ void wrap(const void* index, int bytes, Int* keys, Int count, Int rows) {
    for (Int i = first_item(); i < count; i += all_items()) {
        const Int row = integer_at(index, bytes, i) % rows;
        keys[i] = row < 0 ? row + rows : row;
    }
}

// Parts: of the row that a chunk begins with, if it began before, and of the row that it ends with, if that goes on.
template <class T, int V>
__global__ void __launch_bounds__(256, 1)
add_rows(const Int* keys, const Int* order, const T* x, T* out, Acc<T>* parts, Int count, Int n) {
    typedef Acc<T> A;
    const Int packs = n / V, column = (Int)blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= packs) return;
    for (Int chunk = blockIdx.x; chunk * POSITIONS < count; chunk += gridDim.x) {
        const Int first = chunk * POSITIONS, last = first + POSITIONS < count ? first + POSITIONS : count;
        const Int before = first ? row_of(keys, order, first - 1) : -1;
        const Int after = last < count ? row_of(keys, order, last) : -1;
        A sum[V] = {};
        for (Int i = first; i < last; i++) {
            const Int row = row_of(keys, order, i);
            const Pack<T, V> p = load<T, V>(x + order[i] * n, column);
            for (int k = 0; k < V; k++) sum[k] += A(p.at[k]);
            if (i + 1 < last && row_of(keys, order, i + 1) == row) continue;
            const bool goes_on = i + 1 == last && row == after;
            if (row == before || goes_on) {
                for (int k = 0; k < V; k++) parts[(2 * chunk + (row != before)) * n + column * V + k] = sum[k];
            } else {
                Pack<T, V> o = load<T, V>(out + row * n, column);
                for (int k = 0; k < V; k++) o.at[k] = T(A(o.at[k]) + sum[k]);
                store(out + row * n, column, o);
            }
            for (int k = 0; k < V; k++) sum[k] = 0;
        }
    }
}

template <class T> __global__ void __launch_bounds__(256, 1)
add_parts(const Int* keys, const Int* order, const Acc<T>* parts, T* out, Int count, Int n) {
    const Int column = (Int)blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n) return;
    for (Int chunk = blockIdx.x; (chunk + 1) * POSITIONS < count; chunk += gridDim.x) {
        const Int first = chunk * POSITIONS, next = first + POSITIONS;
        const Int row = row_of(keys, order, next - 1);
        if (row_of(keys, order, next) != row) continue;                 // it does not go on
        if (first && row_of(keys, order, first - 1) == row) continue;   // it began before
        Acc<T> sum = parts[(2 * chunk + 1) * n + column];
        for (Int i = chunk + 1; i * POSITIONS < count && row_of(keys, order, i * POSITIONS) == row; i++)
            sum += parts[2 * i * n + column];
        out[row * n + column] = T(Acc<T>(out[row * n + column]) + sum);
    }
}
"""
scatter_family = Family("scatter", CODE, "wrap", "add_rows<T, V>", "add_parts<T>")


def add_rows(out: Any, index: Any, x: Any) -> None:
    """Add each row of x to the row of ``out`` (contiguous) that ``index`` names; as in CuPy's indexing, it wraps."""
    n, count = out.size // len(out), index.size
    x = contiguous(x)
    index, keys = contiguous(index), cupy.empty(count, np.int64)
    scatter_family.flat("wrap", x, count, 1, index, integer_kind(index.dtype), keys, count, len(out))
    order = cupy.argsort(keys)
    vector = vector_of(n, x, out)
    chunks = -(-count // POSITIONS)
    parts = cupy.empty((chunks, 2, n), accumulator(x.dtype))
    char = x.dtype.char

    def run(instance: str, vector: int, *args: Any) -> None:
        threads = min(BLOCK, -(-n // vector // 32) * 32)
        grid = min(chunks, GRID), -(-n // vector // threads)
        scatter_family.kernel(instance, char, vector)(grid, (threads,), (*args, count, n))

    run("add_rows<T, V>", vector, keys, order, x, out, parts)
    if chunks > 1:
        run("add_parts<T>", 1, keys, order, parts, out)
