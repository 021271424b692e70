"""Softmax and normalisation of rows on a GPU: a few lanes, a warp or a block for each row.

Every row is read twice, forward and backward: for its sums, and, mostly out of the cache, for the result.
"""

from __future__ import annotations

from typing import Any

import cupy

from ..noting import noted
from .cupy_columns import column_sums
from .cupy_compiler import BLOCKS, Family, accumulator, address, contiguous, like, vector_of
from .cupy_team import TEAM, team_of

CODE = (
    TEAM
    + r"""
// exp(x - largest), and what the row adds up to, in one pass (Milakov and Gimelshein, 2018).
template <class T, int V>
__global__ void __launch_bounds__(512, 1) softmax(const T* x, T* out, Int rows, Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        Exponentials<A> e = team(exponentials<T, V>(x + row * n, width));
        const A share = A(1) / e.total;
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> p = load<T, V>(x + row * n, i);
            for (int k = 0; k < V; k++) p.at[k] = T(exp(A(p.at[k]) - e.largest) * share);
            store(out + row * n, i, p);
        }
    }
}

template <class T, int V>
__global__ void __launch_bounds__(512, 1) log_softmax(const T* x, T* out, Int rows, Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        Exponentials<A> e = team(exponentials<T, V>(x + row * n, width));
        const A log_total = log(e.total);
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> p = load<T, V>(x + row * n, i);
            for (int k = 0; k < V; k++) p.at[k] = T(A(p.at[k]) - e.largest - log_total);
            store(out + row * n, i, p);
        }
    }
}

template <class T, int V>
__global__ void __launch_bounds__(512, 1) softmax_gradient(const T* g, const T* out, T* gx, Int rows, Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        Sums<A, 1> along;
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            const Pack<T, V> d = load<T, V>(g + row * n, i), p = load<T, V>(out + row * n, i);
            for (int k = 0; k < V; k++) along.at[0] += A(d.at[k]) * A(p.at[k]);
        }
        along = team(along);
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> d = load<T, V>(g + row * n, i), p = load<T, V>(out + row * n, i);
            for (int k = 0; k < V; k++) d.at[k] = T(A(p.at[k]) * (A(d.at[k]) - along.at[0]));
            store(gx + row * n, i, d);
        }
    }
}

template <class T, int V>
__global__ void __launch_bounds__(512, 1) log_softmax_gradient(const T* g, const T* out, T* gx, Int rows, Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        Sums<A, 1> total;
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            const Pack<T, V> d = load<T, V>(g + row * n, i);
            for (int k = 0; k < V; k++) total.at[0] += A(d.at[k]);
        }
        total = team(total);
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> d = load<T, V>(g + row * n, i), p = load<T, V>(out + row * n, i);
            for (int k = 0; k < V; k++) d.at[k] = T(A(d.at[k]) - exp(A(p.at[k])) * total.at[0]);
            store(gx + row * n, i, d);
        }
    }
}

// The mean is that of the differences from the row's first element: rows of nearly equal numbers lose nothing.
template <class T, int V>
__global__ void __launch_bounds__(512, 1)
layer_norm(const T* x, const T* weight, const T* bias, double eps, T* out, Acc<T>* mean, Acc<T>* scale, Int rows,
           Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        const A origin = row < rows ? A(x[row * n]) : A(0);
        Moments<A> m;
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            const Pack<T, V> p = load<T, V>(x + row * n, i);
            A part = 0, squares = 0;
            for (int k = 0; k < V; k++) part += A(p.at[k]) - origin;
            part /= A(V);
            for (int k = 0; k < V; k++) squares += (A(p.at[k]) - origin - part) * (A(p.at[k]) - origin - part);
            m.add(Moments<A>(A(V), part, squares));
        }
        m = team(m).of_first();
        const A s = A(1) / sqrt(m.squares / A(n) + A(eps));
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> p = load<T, V>(x + row * n, i), w, b;
            if (weight) w = load<T, V>(weight, i);
            if (bias) b = load<T, V>(bias, i);
            for (int k = 0; k < V; k++) {
                A z = (A(p.at[k]) - origin - m.mean) * s;
                z = weight ? z * A(w.at[k]) : z;
                p.at[k] = T(bias ? z + A(b.at[k]) : z);
            }
            store(out + row * n, i, p);
        }
        if (row < rows && threadIdx.x == 0) mean[row] = m.mean, scale[row] = s;
    }
}

template <class T, int V>
__global__ void __launch_bounds__(512, 1)
layer_norm_gradient(const T* g, const T* x, const T* weight, const Acc<T>* mean, const Acc<T>* scale, T* gx, Int rows,
                    Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        const A origin = width ? A(x[row * n]) : A(0), m = width ? mean[row] : A(0), s = width ? scale[row] : A(0);
        Sums<A, 2> sums;
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            const Pack<T, V> d = load<T, V>(g + row * n, i), p = load<T, V>(x + row * n, i);
            Pack<T, V> w;
            if (weight) w = load<T, V>(weight, i);
            for (int k = 0; k < V; k++) {
                const A z = weight ? A(d.at[k]) * A(w.at[k]) : A(d.at[k]);
                sums.at[0] += z;
                sums.at[1] += z * ((A(p.at[k]) - origin - m) * s);
            }
        }
        sums = team(sums);
        const A of_mean = sums.at[0] / A(n), along = sums.at[1] / A(n);
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> d = load<T, V>(g + row * n, i), p = load<T, V>(x + row * n, i), w;
            if (weight) w = load<T, V>(weight, i);
            for (int k = 0; k < V; k++) {
                const A z = weight ? A(d.at[k]) * A(w.at[k]) : A(d.at[k]);
                d.at[k] = T(s * (z - of_mean - (A(p.at[k]) - origin - m) * s * along));
            }
            store(gx + row * n, i, d);
        }
    }
}

template <class T, int V>
__global__ void __launch_bounds__(512, 1)
rms_norm(const T* x, const T* weight, double eps, T* out, Acc<T>* scale, Int rows, Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        Sums<A, 1> squares;
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            const Pack<T, V> p = load<T, V>(x + row * n, i);
            for (int k = 0; k < V; k++) squares.at[0] += A(p.at[k]) * A(p.at[k]);
        }
        const A s = A(1) / sqrt(team(squares).at[0] / A(n) + A(eps));
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> p = load<T, V>(x + row * n, i), w;
            if (weight) w = load<T, V>(weight, i);
            for (int k = 0; k < V; k++) p.at[k] = T(weight ? A(p.at[k]) * s * A(w.at[k]) : A(p.at[k]) * s);
            store(out + row * n, i, p);
        }
        if (row < rows && threadIdx.x == 0) scale[row] = s;
    }
}

template <class T, int V>
__global__ void __launch_bounds__(512, 1)
rms_norm_gradient(const T* g, const T* x, const T* weight, const Acc<T>* scale, T* gx, Int rows, Int n) {
    typedef Acc<T> A;
    FOR_ROWS(row, rows) {
        const Int width = row < rows ? n / V : 0;
        const A s = width ? scale[row] : A(0);
        Sums<A, 1> sums;
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            const Pack<T, V> d = load<T, V>(g + row * n, i), p = load<T, V>(x + row * n, i);
            Pack<T, V> w;
            if (weight) w = load<T, V>(weight, i);
            for (int k = 0; k < V; k++)
                sums.at[0] += (weight ? A(d.at[k]) * A(w.at[k]) : A(d.at[k])) * (A(p.at[k]) * s);
        }
        const A along = team(sums).at[0] / A(n);
        for (Int i = threadIdx.x; i < width; i += blockDim.x) {
            Pack<T, V> d = load<T, V>(g + row * n, i), p = load<T, V>(x + row * n, i), w;
            if (weight) w = load<T, V>(weight, i);
            for (int k = 0; k < V; k++) {
                const A z = weight ? A(d.at[k]) * A(w.at[k]) : A(d.at[k]);
                d.at[k] = T(s * (z - A(p.at[k]) * s * along));
            }
            store(gx + row * n, i, d);
        }
    }
}
"""
)
NAMES = ("softmax", "log_softmax", "layer_norm", "rms_norm")
rows_family = Family("rows", CODE, *(f"{name}{part}<T, V>" for name in NAMES for part in ("", "_gradient")))


def _run(name: str, x: Any, vector: int, *args: Any) -> None:
    """A kernel over the rows of x, whose last arguments are their number and length."""
    n = x.shape[-1]
    count = x.size // n
    block, shared = team_of(n // vector)
    grid = min(-(-count // block[1]), BLOCKS)
    rows_family.kernel(f"{name}<T, V>", x.dtype.char, vector)((grid,), block, (*args, count, n), shared_mem=shared)


@noted
def rowwise(name: str, x: Any) -> Any:
    """Softmax or log-softmax."""
    x = contiguous(x)
    out = cupy.empty_like(x)
    _run(name, x, vector_of(x.shape[-1], x), x, out)
    return out


@noted
def rowwise_gradient(name: str, g: Any, out: Any) -> Any:
    """From the result alone."""
    out = contiguous(out)
    g, gx = like(g, out), cupy.empty_like(out)
    _run(f"{name}_gradient", out, vector_of(out.shape[-1], g, out), g, out, gx)
    return gx


def softmax(x: Any) -> tuple[Any, Any]:
    out = rowwise("softmax", x)
    return out, lambda g: (rowwise_gradient("softmax", g, out),)


def log_softmax(x: Any) -> tuple[Any, Any]:
    out = rowwise("log_softmax", x)
    return out, lambda g: (rowwise_gradient("log_softmax", g, out),)


@noted
def layer_norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """The result, and the mean (without the row's first element) and 1 / deviation of each row."""
    x, n = contiguous(x), x.shape[-1]
    weight, bias = (p if p is None else contiguous(p) for p in (weight, bias))
    out, count = cupy.empty_like(x), x.size // n
    mean, scale = cupy.empty(count, accumulator(x.dtype)), cupy.empty(count, accumulator(x.dtype))
    vector = vector_of(n, x, weight, bias)
    _run("layer_norm", x, vector, x, address(weight), address(bias), float(eps), out, mean, scale)
    return out, mean, scale


@noted
def layer_norm_gradient(g: Any, x: Any, weight: Any, mean: Any, scale: Any) -> Any:
    """That of x."""
    x = contiguous(x)
    g, gx = like(g, x), cupy.empty_like(x)
    weight = weight if weight is None else contiguous(weight)
    _run("layer_norm_gradient", x, vector_of(x.shape[-1], g, x, weight), g, x, address(weight), mean, scale, gx)
    return gx


@noted
def layer_norm_sums(g: Any, x: Any, mean: Any, scale: Any) -> tuple[Any, ...]:
    """The gradients of weight and bias."""
    x = contiguous(x)
    return column_sums("layer", like(g, x), x.shape[-1], x, mean, scale)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any]:
    out, mean, scale = layer_norm_forward(x, weight, bias, eps)

    def pullback(g: Any) -> tuple[Any, ...]:
        sums: dict[int, Any] = {}

        def of_parameter(i: int) -> Any:  # the sums for both are computed together, and kept no longer than needed
            if i not in sums:
                sums.update(enumerate(layer_norm_sums(g, x, mean, scale)))
            return sums.pop(i)

        return (
            lambda: layer_norm_gradient(g, x, weight, mean, scale),
            lambda: of_parameter(0),
            lambda: of_parameter(1),
        )

    return out, pullback


@noted
def rms_norm_forward(x: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """The result, and 1 / root of the mean square of each row."""
    x, n = contiguous(x), x.shape[-1]
    weight = weight if weight is None else contiguous(weight)
    out, scale = cupy.empty_like(x), cupy.empty(x.size // n, accumulator(x.dtype))
    _run("rms_norm", x, vector_of(n, x, weight), x, address(weight), float(eps), out, scale)
    return out, scale


@noted
def rms_norm_gradient(g: Any, x: Any, weight: Any, scale: Any) -> Any:
    """That of x."""
    x = contiguous(x)
    g, gx = like(g, x), cupy.empty_like(x)
    weight = weight if weight is None else contiguous(weight)
    _run("rms_norm_gradient", x, vector_of(x.shape[-1], g, x, weight), g, x, address(weight), scale, gx)
    return gx


@noted
def rms_norm_sums(g: Any, x: Any, scale: Any) -> Any:
    """The gradient of the weight."""
    x = contiguous(x)
    return column_sums("rms", like(g, x), x.shape[-1], x, None, scale)[0]


def rms_norm(x: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    out, scale = rms_norm_forward(x, weight, eps)
    return out, lambda g: (
        lambda: rms_norm_gradient(g, x, weight, scale),
        lambda: rms_norm_sums(g, x, scale),
    )
