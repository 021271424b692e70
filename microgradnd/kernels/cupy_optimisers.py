"""Steps of optimisers, and the norm of all gradients, on a GPU: many arrays in one launch.

A launch gets the addresses and sizes of its arrays as an argument, by value: gradients lie elsewhere in every step, and
nothing has to be copied to the device. Each block takes a chunk of one array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from ..noting import noted
from .cupy_compiler import BLOCK, Family, contiguous, like
from .cupy_team import SHARED, TEAM

CHUNK = 4096  # elements
ARGUMENT = 3900  # bytes, of the 4096 that all arguments of a launch may have together

CODE = (
    TEAM
    + r"""
enum { CHUNK = 4096 };

template <int K> struct Tensors {  // K arrays for each of N
    static const int N = 3900 / (8 * K + 12);
    void* at[K][N];
    Int size[N];
    int first[N + 1];  // chunk of each, and the number of all
};

// Goes through the block's chunk: f gets K numbers, one of each array. Bit k says whether f reads or writes array k.
template <class T, int K, int READS, int WRITES, class F>
__device__ __forceinline__ void each(const Tensors<K>& t, F& f) {
    typedef Acc<T> A;
    const int V = 16 / sizeof(T);
    int tensor = 0;
    for (int above = Tensors<K>::N; above - tensor > 1;) {  // the last one that begins here or before
        const int middle = (tensor + above) / 2;
        if (t.first[middle] <= (int)blockIdx.x) tensor = middle; else above = middle;
    }
    const Int start = Int((int)blockIdx.x - t.first[tensor]) * CHUNK;
    const int size = t.size[tensor] - start < CHUNK ? int(t.size[tensor] - start) : int(CHUNK);
    T* at[K];
    bool aligned = true;
    for (int k = 0; k < K; k++) {
        at[k] = static_cast<T*>(t.at[k][tensor]) + start;
        aligned = aligned && reinterpret_cast<size_t>(at[k]) % 16 == 0;
    }
    const int packs = aligned ? size / V : 0;
    for (int i = threadIdx.x; i < packs; i += blockDim.x) {
        Pack<T, V> p[K];
        for (int k = 0; k < K; k++) if (READS >> k & 1) p[k] = load<T, V>(at[k], i);
        for (int v = 0; v < V; v++) {
            A x[K];
            for (int k = 0; k < K; k++) x[k] = READS >> k & 1 ? A(p[k].at[v]) : A(0);
            f(x);
            for (int k = 0; k < K; k++) if (WRITES >> k & 1) p[k].at[v] = T(x[k]);
        }
        for (int k = 0; k < K; k++) if (WRITES >> k & 1) store(at[k], i, p[k]);
    }
    for (int i = packs * V + threadIdx.x; i < size; i += blockDim.x) {
        A x[K];
        for (int k = 0; k < K; k++) x[k] = READS >> k & 1 ? A(at[k][i]) : A(0);
        f(x);
        for (int k = 0; k < K; k++) if (WRITES >> k & 1) at[k][i] = T(x[k]);
    }
}

template <class A> struct Adam {
    A decay, shrink, beta1, rest1, beta2, rest2, rate, eps;
    __device__ void operator()(A (&x)[4]) const {
        const A p = x[0] * shrink, d = decay == A(0) ? x[1] : x[1] + decay * p;
        x[2] = beta1 * x[2] + rest1 * d;
        x[3] = beta2 * x[3] + rest2 * d * d;
        x[0] = p - rate * x[2] / (sqrt(x[3]) + eps);
    }
};
template <class A> struct Sgd {
    A decay, momentum, lr;
    __device__ void operator()(A (&x)[2]) const { x[0] -= lr * (decay == A(0) ? x[1] : x[1] + decay * x[0]); }
    __device__ void operator()(A (&x)[3]) const {
        x[2] = momentum * x[2] + (decay == A(0) ? x[1] : x[1] + decay * x[0]);
        x[0] -= lr * x[2];
    }
};
template <class A> struct Squares {
    Sums<A, 1> sum;
    __device__ void operator()(A (&x)[1]) { sum.at[0] += x[0] * x[0]; }
};
template <class A> struct Scale {
    A factor;
    __device__ void operator()(A (&x)[2]) const { x[1] = x[0] * factor; }
};

template <class T> __global__ void __launch_bounds__(256, 1)
adam(const __grid_constant__ Tensors<4> t, double decay, double shrink, double beta1, double rest1, double beta2,
     double rest2, double rate, double eps) {
    typedef Acc<T> A;
    Adam<A> f = {A(decay), A(shrink), A(beta1), A(rest1), A(beta2), A(rest2), A(rate), A(eps)};
    each<T, 4, 15, 13>(t, f);
}
template <class T> __global__ void __launch_bounds__(256, 1)
sgd(const __grid_constant__ Tensors<2> t, double decay, double lr) {
    Sgd<Acc<T>> f = {Acc<T>(decay), 0, Acc<T>(lr)};
    each<T, 2, 3, 1>(t, f);
}
template <class T> __global__ void __launch_bounds__(256, 1)
sgd_momentum(const __grid_constant__ Tensors<3> t, double decay, double momentum, double lr) {
    Sgd<Acc<T>> f = {Acc<T>(decay), Acc<T>(momentum), Acc<T>(lr)};
    each<T, 3, 7, 5>(t, f);
}
template <class T> __global__ void __launch_bounds__(256, 1)
squares(const __grid_constant__ Tensors<1> t, double* parts, int before) {
    Squares<Acc<T>> f;
    each<T, 1, 1, 0>(t, f);
    const Sums<Acc<T>, 1> sum = team(f.sum);
    if (threadIdx.x == 0) parts[before + blockIdx.x] = sum.at[0];
}
template <class T> __global__ void __launch_bounds__(256, 1)
norm(const double* parts, Int count, double largest, T* norm, double* factor) {
    Sums<double, 1> sum;
    for (Int i = threadIdx.x; i < count; i += blockDim.x) sum.at[0] += parts[i];
    sum = team(sum);
    if (threadIdx.x != 0) return;
    const T found = T(sqrt(sum.at[0]));
    const double f = largest / (double(Acc<T>(found)) + 1e-6);
    *norm = found;
    *factor = f > 1 ? 1 : f;
}
template <class T> __global__ void __launch_bounds__(256, 1)
scale(const __grid_constant__ Tensors<2> t, const double* factor) {
    Scale<Acc<T>> f = {Acc<T>(*factor)};
    each<T, 2, 1, 2>(t, f);
}
"""
)
NAMES = ("adam", "sgd", "sgd_momentum", "squares", "norm", "scale")
optimisers_family = Family("optimisers", CODE, *(f"{name}<T>" for name in NAMES))


def capacity(kinds: int) -> int:
    """How many arrays of each kind fit into the argument of a launch."""
    return ARGUMENT // (8 * kinds + 12)


def _layout(kinds: int) -> Any:
    n = capacity(kinds)
    fields = [("at", np.uintp, (kinds, n)), ("size", np.int64, (n,)), ("first", np.int32, (n + 1,))]
    return np.dtype(fields, align=True)


LAYOUTS = {kinds: _layout(kinds) for kinds in (1, 2, 3, 4)}


def _launches(arrays: Sequence[Sequence[Any]]) -> Iterator[tuple[str, Any, int]]:
    """For rows of K arrays of one shape and dtype: the dtype, the argument and the number of blocks of each launch."""
    by_dtype: dict[str, list[Any]] = {}
    for row in arrays:
        if row[0].size:
            by_dtype.setdefault(row[0].dtype.char, []).append(row)
    for char, rows in by_dtype.items():
        kinds = len(rows[0])
        most = capacity(kinds)
        for begin in range(0, len(rows), most):
            part = rows[begin : begin + most]
            tensors = np.zeros((), LAYOUTS[kinds])
            sizes = [row[0].size for row in part]
            tensors["at"][:, : len(part)] = np.array([[x.data.ptr for x in row] for row in part], np.uintp).T
            tensors["size"][: len(part)] = sizes
            ends = np.cumsum([-(-size // CHUNK) for size in sizes])
            tensors["first"][1 : len(part) + 1] = ends
            tensors["first"][len(part) + 1 :] = ends[-1]
            yield char, tensors, int(ends[-1])


def _run(name: str, char: str, blocks: int, *args: Any) -> None:
    optimisers_family.kernel(f"{name}<T>", char)((blocks,), (BLOCK,), args, shared_mem=SHARED)


def _changed(x: Any, p: Any) -> Any:
    if not x.flags.c_contiguous or x.dtype != p.dtype:
        raise ValueError("expected an array in contiguous memory of the parameter's dtype, to be changed in place")
    return x


@noted(writes=lambda work, *settings: [x for p, _, *averages in work for x in (p, *averages)])
def adam_all(work: Sequence[tuple[Any, Any, Any, Any]], *settings: float) -> None:
    """A step of all (p, g, m, v) in place. The settings are those of numba_optimisers.adam_all, in its order."""
    rows = [(_changed(p, p), like(g, p), *[_changed(x, p) for x in averages]) for p, g, *averages in work]
    for char, tensors, blocks in _launches(rows):
        _run("adam", char, blocks, tensors, *settings)


@noted(writes=lambda work, *settings: [x for p, _, *v in work for x in (p, *v)])
def sgd_all(work: Sequence[tuple[Any, ...]], decay: float, momentum: float, lr: float) -> None:
    """A step of all (p, g) in place; of all (p, g, v) with momentum."""
    rows = [(_changed(p, p), like(g, p), *[_changed(x, p) for x in v]) for p, g, *v in work]
    for char, tensors, blocks in _launches(rows):
        if len(rows[0]) == 2:
            _run("sgd", char, blocks, tensors, decay, lr)
        else:
            _run("sgd_momentum", char, blocks, tensors, decay, momentum, lr)


@noted
def gradient_norm(gradients: Sequence[Any], largest: float) -> tuple[Any, Any]:
    """The norm of all elements together, in float64 if an array is and else in float32; min(largest / norm, 1)."""
    arrays = [(contiguous(g),) for g in gradients]  # held until all is launched: launches hold addresses alone
    launches = list(_launches(arrays))
    count = sum(blocks for _, _, blocks in launches)
    parts = cupy.empty(max(1, count))
    before = 0
    for char, tensors, blocks in launches:
        _run("squares", char, blocks, tensors, parts, np.int32(before))
        before += blocks
    wide = any(g.dtype.char == "d" for g in gradients)
    norm, factor = cupy.empty((), np.float64 if wide else np.float32), cupy.empty(())
    _run("norm", norm.dtype.char, 1, parts, count, float(largest), norm, factor)
    return norm, factor


@noted
def scaled(gradients: Sequence[Any], factor: Any) -> tuple[Any, ...]:
    """Each array times the number that ``factor``, an array of shape (), holds."""
    rows = [(contiguous(g), cupy.empty(g.shape, g.dtype)) for g in gradients]
    for char, tensors, blocks in _launches(rows):
        _run("scale", char, blocks, tensors, factor)
    return tuple([out for _, out in rows])
