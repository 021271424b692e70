"""Cross-entropy with class indices on a GPU."""

from __future__ import annotations

from typing import Any

import cupy

from ..noting import noted
from .cupy_compiler import BLOCKS, Family, accumulator, contiguous, integer_kind, like, vector_of
from .cupy_team import SHARED, TEAM, team_of

CODE = (
    TEAM
    + r"""
// The loss of each row; NaN, and a gradient of NaN, for labels that are none.
template <class T, int V>
__global__ void __launch_bounds__(512, 1)
cross_entropy(const T* x, const void* labels, int bytes, Acc<T>* loss, Acc<T>* largest, Acc<T>* total, Int rows,
              Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Exponentials<A> e = team(exponentials<T, V>(x + row * n, row < rows ? n / V : 0));
        if (row < rows && threadIdx.x == 0) {
            const Int label = integer_at(labels, bytes, row);
            const bool known = 0 <= label && label < n;
            loss[row] = known ? log(e.total) - (A(x[row * n + label]) - e.largest) : A(INFINITE - INFINITE);
            largest[row] = e.largest;
            total[row] = known ? e.total : A(INFINITE - INFINITE);
        }
    }
}

template <class T> __global__ void __launch_bounds__(512, 1) mean(const Acc<T>* loss, T* out, Int rows) {
    Sums<Acc<T>, 1> sum;
    for (Int row = threadIdx.x; row < rows; row += blockDim.x) sum.at[0] += loss[row];
    sum = team(sum);
    if (threadIdx.x == 0) *out = T(sum.at[0] / Acc<T>(rows));
}

// (softmax(x) - 1 at the label) g / rows
template <class T, int V>
__global__ void __launch_bounds__(512, 1)
cross_entropy_gradient(const T* g, const T* x, const void* labels, int bytes, const Acc<T>* largest,
                       const Acc<T>* total, T* gx, Int rows, Int n) {
    typedef Acc<T> A;
    const A each = A(*g) / A(rows);
    FOR_ROWS(row, rows) {
        if (row >= rows) continue;
        const A shift = largest[row], share = each / total[row];
        const Int label = integer_at(labels, bytes, row);
        for (Int i = threadIdx.x; i < n / V; i += blockDim.x) {
            Pack<T, V> p = load<T, V>(x + row * n, i);
            for (int k = 0; k < V; k++) {
                const A z = exp(A(p.at[k]) - shift) * share;
                p.at[k] = T(i * V + k == label ? z - each : z);
            }
            store(gx + row * n, i, p);
        }
    }
}
"""
)
losses_family = Family("losses", CODE, "cross_entropy<T, V>", "cross_entropy_gradient<T, V>", "mean<T>")


def _run(name: str, vector: int, count: int, n: int, char: str, *args: Any) -> None:
    block, shared = team_of(n // vector)
    grid = min(-(-count // block[1]), BLOCKS)
    losses_family.kernel(f"{name}<T, V>", char, vector)((grid,), block, (*args, count, n), shared_mem=shared)


@noted
def cross_entropy_forward(logits: Any, labels: Any) -> tuple[Any, Any, Any]:
    """The mean over all rows, and of each row the largest logit and the sum of exp(logit - largest)."""
    x, labels = contiguous(logits), contiguous(labels)
    char, n = x.dtype.char, x.shape[-1]
    count = x.size // n
    loss, largest, total = (cupy.empty(count, accumulator(x.dtype)) for _ in range(3))
    out = cupy.empty((), x.dtype)
    kind = integer_kind(labels.dtype)
    _run("cross_entropy", vector_of(n, x), count, n, char, x, labels, kind, loss, largest, total)
    losses_family.kernel("mean<T>", char)((1,), (512,), (loss, out, count), shared_mem=SHARED)
    return out, largest, total


@noted
def cross_entropy_gradient(g: Any, logits: Any, labels: Any, largest: Any, total: Any) -> Any:
    """(softmax(logits) - 1 at the label) g / rows."""
    x, labels = contiguous(logits), contiguous(labels)
    n, gx = x.shape[-1], cupy.empty_like(x)
    arguments = like(g, x), x, labels, integer_kind(labels.dtype), largest, total, gx
    _run("cross_entropy_gradient", vector_of(n, x, gx), x.size // n, n, x.dtype.char, *arguments)
    return gx


def cross_entropy(logits: Any, labels: Any) -> tuple[Any, Any]:
    """The mean over all rows for class indices, which nobody has checked: NaN where one is out of range."""
    out, largest, total = cross_entropy_forward(logits, labels)
    return out, lambda g: (cross_entropy_gradient(g, logits, labels, largest, total),)
