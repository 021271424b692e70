"""Activation functions on a GPU, one launch each; with the bias of the layer before them added on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy

from ..noting import noted
from .cupy_columns import column_sums
from .cupy_compiler import Family, address, contiguous, like, vector_of

CODE = r"""
template <class A> __device__ __forceinline__ A sigmoid(A x) { return A(1) / (A(1) + exp(-x)); }

struct Gelu {  // x Phi(x)
    template <class A> static __device__ A phi(A x) { return A(0.5) * erfc(x * A(-0.70710678118654752)); }
    template <class A> static __device__ A of(A x) { return x * phi(x); }
    template <class A> static __device__ A gradient(A g, A x) {
        return g * (phi(x) + x * (A(0.39894228040143268) * exp(A(-0.5) * x * x)));
    }
};

struct GeluTanh {  // x (1 + tanh(u)) / 2 = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    template <class A> static __device__ A phi(A x) {
        return sigmoid(A(1.5957691216057308) * (x + A(0.044715) * x * x * x));
    }
    template <class A> static __device__ A of(A x) { return x * phi(x); }
    template <class A> static __device__ A gradient(A g, A x) {
        const A p = phi(x);
        return g * (p + x * (p * (A(1) - p) * A(1.5957691216057308) * (A(1) + A(3 * 0.044715) * x * x)));
    }
};

struct Silu {
    template <class A> static __device__ A of(A x) { return x * sigmoid(x); }
    template <class A> static __device__ A gradient(A g, A x) {
        const A s = sigmoid(x);
        return g * (s + x * s * (A(1) - s));
    }
};

struct Sigmoid {
    template <class A> static __device__ A of(A x) { return sigmoid(x); }
};

struct Relu {  // its gradient takes the result or x
    template <class A> static __device__ A of(A x) { return x <= A(0) ? A(0) : x; }
    template <class A> static __device__ A gradient(A g, A x) { return x > A(0) ? g : A(0); }
};

template <class T, int V, class F> __global__ void map(const T* x, T* out, Int packs) {
    for (Int i = first_item(); i < packs; i += all_items()) {
        Pack<T, V> p = load<T, V>(x, i);
        for (int k = 0; k < V; k++) p.at[k] = T(F::of(Acc<T>(p.at[k])));
        store(out, i, p);
    }
}

template <class T, int V, class F> __global__ void map_gradient(const T* g, const T* x, T* gx, Int packs) {
    for (Int i = first_item(); i < packs; i += all_items()) {
        Pack<T, V> d = load<T, V>(g, i);
        const Pack<T, V> p = load<T, V>(x, i);
        for (int k = 0; k < V; k++) d.at[k] = T(F::gradient(Acc<T>(d.at[k]), Acc<T>(p.at[k])));
        store(gx, i, d);
    }
}

// F(x + bias), and x + bias in place of x, unless both are written to the same memory.
template <class T, int V, class F> __global__ void biased(T* x, const T* bias, T* out, Int packs, Int columns) {
    const bool small = packs <= 0xffffffff;  // a remainder of 64 bits takes longer than what it is for
    for (Int i = first_item(); i < packs; i += all_items()) {
        Pack<T, V> p = load<T, V>(x, i);
        if (bias) {
            const Pack<T, V> b = load<T, V>(bias, small ? unsigned(i) % unsigned(columns) : i % columns);
            for (int k = 0; k < V; k++) p.at[k] = T(Acc<T>(p.at[k]) + Acc<T>(b.at[k]));
            if (x != out) store(x, i, p);
        }
        for (int k = 0; k < V; k++) p.at[k] = T(F::of(Acc<T>(p.at[k])));
        store(out, i, p);
    }
}

template <class T, int V> __global__ void swiglu(const T* gate, const T* x, T* out, Int packs) {
    for (Int i = first_item(); i < packs; i += all_items()) {
        Pack<T, V> s = load<T, V>(gate, i);
        const Pack<T, V> p = load<T, V>(x, i);
        for (int k = 0; k < V; k++) s.at[k] = T(Silu::of(Acc<T>(s.at[k])) * Acc<T>(p.at[k]));
        store(out, i, s);
    }
}

template <class T, int V>
__global__ void swiglu_gradient(const T* g, const T* gate, const T* x, T* gate_out, T* x_out, Int packs) {
    for (Int i = first_item(); i < packs; i += all_items()) {
        const Pack<T, V> d = load<T, V>(g, i);
        Pack<T, V> s = load<T, V>(gate, i), p = load<T, V>(x, i);
        for (int k = 0; k < V; k++) {
            const Acc<T> u = d.at[k], v = s.at[k], w = p.at[k];
            p.at[k] = T(u * Silu::of(v));
            s.at[k] = T(Silu::gradient(u * w, v));
        }
        store(gate_out, i, s);
        store(x_out, i, p);
    }
}
"""
MAPS = ("Gelu", "GeluTanh", "Silu", "Sigmoid")
GRADIENTS = ("Gelu", "GeluTanh", "Silu", "Relu")
BIASED = ("Gelu", "GeluTanh", "Relu")
elementwise_family = Family(
    "elementwise",
    CODE,
    *(f"map<T, V, {f}>" for f in MAPS),
    *(f"map_gradient<T, V, {f}>" for f in GRADIENTS),
    *(f"biased<T, V, {f}>" for f in BIASED),
    "swiglu<T, V>",
    "swiglu_gradient<T, V>",
)


def _run(instance: str, *arrays: Any) -> None:
    """A kernel over arrays of one size."""
    x = arrays[0]
    vector = vector_of(x.size, *arrays)
    elementwise_family.flat(instance, x, x.size // vector, vector, *arrays, x.size // vector)


@noted
def mapped(f: str, x: Any) -> Any:
    """f of each element."""
    x = contiguous(x)
    out = cupy.empty_like(x)
    _run(f"map<T, V, {f}>", x, out)
    return out


@noted
def mapped_gradient(f: str, g: Any, x: Any) -> Any:
    """g times the derivative of f at each element."""
    x = contiguous(x)
    g, gx = like(g, x), cupy.empty_like(x)
    _run(f"map_gradient<T, V, {f}>", g, x, gx)
    return gx


def _elementwise(f: str) -> Callable[[Any], tuple[Any, Any]]:
    return lambda x: (mapped(f, x), lambda g: (mapped_gradient(f, g, x),))


silu = _elementwise("Silu")
_gelu = {"none": _elementwise("Gelu"), "tanh": _elementwise("GeluTanh")}


def gelu(x: Any, approximate: str) -> tuple[Any, Any]:
    return _gelu[approximate](x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), without its gradient."""
    return mapped("Sigmoid", x)


def relu_gradient(g: Any, out: Any) -> Any:
    """g where ``out`` is positive, and 0 elsewhere."""
    return mapped_gradient("Relu", g, out)


@noted
def gated(gate: Any, x: Any) -> Any:
    """silu(gate) x."""
    gate, x = contiguous(gate), contiguous(x)
    out = cupy.empty_like(x)
    _run("swiglu<T, V>", gate, x, out)
    return out


@noted
def gated_gradients(g: Any, gate: Any, x: Any) -> tuple[Any, Any]:
    """Those of gate and x."""
    gate, x = contiguous(gate), contiguous(x)
    gradients = cupy.empty_like(gate), cupy.empty_like(x)
    _run("swiglu_gradient<T, V>", like(g, x), gate, x, *gradients)
    return gradients


def swiglu(gate: Any, x: Any) -> tuple[Any, Any]:
    return gated(gate, x), lambda g: gated_gradients(g, gate, x)


def _biased(f: str, inner: Any, bias: Any, out: Any) -> None:
    n = inner.shape[1]
    bias = bias if bias is None else contiguous(bias)
    vector = vector_of(n, inner, bias, out)
    packs = inner.size // vector
    elementwise_family.flat(f"biased<T, V, {f}>", inner, packs, vector, inner, address(bias), out, packs, n // vector)


@noted(writes=lambda f, inner, bias: [inner])
def add_bias_and_map(f: str, inner: Any, bias: Any) -> Any:
    """f of inner + bias, which takes the place of ``inner``."""
    out = cupy.empty_like(inner)
    _biased(f, inner, bias, out)
    return out


@noted(writes=lambda inner, bias: [inner])
def add_bias_and_rectify(inner: Any, bias: Any) -> None:
    """max(inner + bias, 0) takes the place of ``inner``."""
    _biased("Relu", inner, bias, inner)


def _with_bias_gradient(f: str, g: Any, x: Any) -> tuple[Any, Any]:
    gx = mapped_gradient(f, g, x)
    return gx, lambda: column_sums("plain", gx, gx.shape[1])[0]


def bias_gelu(inner: Any, bias: Any, approximate: str) -> tuple[Any, Any]:
    """gelu(inner + bias), and a function of g that gives the gradient of inner and a function for that of the bias.

    The bias is added to ``inner`` (rows, n) in place.
    """
    f = "GeluTanh" if approximate == "tanh" else "Gelu"
    return add_bias_and_map(f, inner, bias), lambda g: _with_bias_gradient(f, g, inner)


def bias_relu(inner: Any, bias: Any) -> tuple[Any, Any]:
    """max(inner + bias, 0) in place, and the same as :func:`bias_gelu` gives."""
    add_bias_and_rectify(inner, bias)
    return inner, lambda g: _with_bias_gradient("Relu", g, inner)
