"""Sums of columns on a GPU, always added in the same order: gradients of biases and of the scales of norms."""

from __future__ import annotations

from typing import Any

import cupy

from ..noting import noted
from .cupy_compiler import Family, accumulator, address

COLUMNS, LANES = 32, 16  # of a block: columns, and threads that share the rows of one
BLOCKS = 1024  # enough for any GPU
ROWS = 8 * LANES  # of a part at least

CODE = r"""
enum { PLAIN, LAYER, RMS };  // sum g; sum g normal and sum g; sum g normal

// Rows are cut into gridDim.y parts. One part alone is the result, more of them are added up by `finished`.
template <class T, int KIND>
__global__ void __launch_bounds__(512, 1)
columns(const T* g, const T* x, const Acc<T>* mean, const Acc<T>* scale, T* out, T* second, Acc<T>* parts, Int rows,
        Int n) {
    typedef Acc<T> A;
    const int K = KIND == LAYER ? 2 : 1;
    extern __shared__ double exchange[];
    A* shared = reinterpret_cast<A*>(exchange);
    const Int column = (Int)blockIdx.x * 32 + threadIdx.x;
    const Int first = rows * blockIdx.y / gridDim.y, last = rows * (blockIdx.y + 1) / gridDim.y;
    A sums[2] = {0, 0};
    for (Int row = first + threadIdx.y; column < n && row < last; row += blockDim.y) {
        const A d = A(g[row * n + column]);
        if (KIND == PLAIN) {
            sums[0] += d;
        } else {
            A z = A(x[row * n + column]);
            if (KIND == LAYER) z = z - A(x[row * n]) - mean[row];
            sums[0] += d * (z * scale[row]);
            sums[1] += d;
        }
    }
    for (int k = 0; k < K; k++) shared[(k * blockDim.y + threadIdx.y) * 32 + threadIdx.x] = sums[k];
    __syncthreads();
    if (threadIdx.y >= K || column >= n) return;
    A sum = 0;
    for (int y = 0; y < blockDim.y; y++) sum += shared[(threadIdx.y * blockDim.y + y) * 32 + threadIdx.x];
    if (gridDim.y == 1)
        (threadIdx.y ? second : out)[column] = T(sum);
    else
        parts[(blockIdx.y * K + threadIdx.y) * n + column] = sum;
}

// Of parts (count, n, or 2 n where there are two sums)
template <class T> __global__ void finished(const Acc<T>* parts, T* out, T* second, int count, Int n) {
    const Int all = second ? 2 * n : n;
    for (Int i = first_item(); i < all; i += all_items()) {
        Acc<T> sum = 0;
        for (int part = 0; part < count; part++) sum += parts[part * all + i];
        (i < n ? out[i] : second[i - n]) = T(sum);
    }
}
"""
KINDS = {"plain": ("columns<T, PLAIN>", 1), "layer": ("columns<T, LAYER>", 2), "rms": ("columns<T, RMS>", 1)}
columns_family = Family("columns", CODE, *(name for name, _ in KINDS.values()), "finished<T>")


@noted
def column_sums(kind: str, g: Any, n: int, x: Any = None, mean: Any = None, scale: Any = None) -> tuple[Any, ...]:
    """The sums of g (..., n) over all rows; for ``"layer"`` and ``"rms"`` first that of g times the normalised x."""
    name, sums = KINDS[kind]
    rows = g.size // max(1, n)
    across = -(-n // COLUMNS)
    outs = tuple([cupy.empty(n, g.dtype) for _ in range(sums)])  # arrays of their own: no views that are copied
    if n == 0:
        return outs
    count = max(1, min(BLOCKS // across, rows // ROWS))
    parts = cupy.empty((count, sums, n), accumulator(g.dtype)) if count > 1 else None
    shared = sums * LANES * COLUMNS * accumulator(g.dtype).itemsize
    into = outs[0], address(outs[1] if sums == 2 else None)
    arguments = g, address(x), address(mean), address(scale), *into, address(parts), rows, n
    columns_family.kernel(name, g.dtype.char)((across, count), (COLUMNS, LANES), arguments, shared_mem=shared)
    if parts is not None:
        columns_family.flat("finished<T>", g, sums * n, 1, parts, *into, cupy.int32(count), n)
    return outs
