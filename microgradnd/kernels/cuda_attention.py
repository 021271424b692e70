"""CUDA source of attention in tiles: scores live in shared memory and registers only (Dao et al., 2022; Dao, 2023).

A block owns the rows of one tile and walks over the tiles of the other kind, with the sums of its rows in registers:
rows are queries here, and queries or keys in :mod:`.cuda_attention_gradient`. No sum is shared between blocks,
so results do not depend on the order in which they run.

A block has TY x TX threads; thread (ty, tx) owns rows ty, ty + TY, ... of a tile and its columns tx, tx + TX, ...
What one row's TX threads exchange (scores, largest and sums) stays within a warp. Rows of tiles are padded by 16
bytes, so that threads that read 16 bytes of neighbouring rows use different banks. Tiles take less than 48 KiB.
"""

from __future__ import annotations

FORWARD = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#define FULL_WARP 0xffffffffu

template <class T> struct Accumulator { typedef float type; };
template <> struct Accumulator<double> { typedef double type; };

struct NoMask {};
struct Strides { long long a, b, g, t; };  // of an array (A, B, G, T, width), in elements; 0 where it broadcasts
struct Problem {
    Strides q, k, v, out, g, dq, dk, dv, mask;
    long long mask_of_key;  // the stride of the mask's last axis
    int B, G, shared, queries, keys, width, value_width;  // shared: query heads of a head of keys and values
};

template <class A, int N> struct alignas(N * sizeof(A)) Vector { A x[N]; };  // read by one instruction

// Rows and columns of a tile and its threads, for width W; sizes for which the tiles fit into shared memory.
template <class T, int W> struct Tiles {
    typedef typename Accumulator<T>::type A;
    static constexpr int bytes = W * sizeof(A), vector = 16 / sizeof(A), stride = W + vector;
    static constexpr int rows = bytes <= 256 ? 64 : bytes <= 512 ? 32 : 16;  // in forward
    static constexpr int columns = bytes <= 512 ? 32 : 16;
    static constexpr int tx = 8, ty = 16, threads = tx * ty;
    static constexpr int side = bytes <= 256 ? 32 : bytes <= 512 ? 16 : 8;  // in backward: rows and columns
    static constexpr int side_tx = bytes <= 512 ? 16 : 8, side_ty = 8, side_threads = side_tx * side_ty;
};

__device__ __forceinline__ float power_of_e(float x) { return exp2f(x * 1.44269504f); }
__device__ __forceinline__ double power_of_e(double x) { return exp(x); }

template <class A> __device__ __forceinline__ A infinity() { return (A)__int_as_float(0x7f800000); }

// Elements before row 0 of head (a, b, g).
__device__ __forceinline__ long long start(const Strides &s, int a, int b, int g)
{
    return a * s.a + b * s.b + g * s.g;
}

__device__ __forceinline__ float added(float score, const NoMask *) { return score; }
__device__ __forceinline__ double added(double score, const NoMask *) { return score; }
template <class A> __device__ __forceinline__ A added(A score, const bool *mask)
{
    return *mask ? score : -infinity<A>();
}
template <class A, class M> __device__ __forceinline__ A added(A score, const M *mask) { return score + (A)*mask; }

// 1 / the sum of a query's weights where it is 0: with a mask the query may see no key, and then its weights are zeros.
// Without one it sees a key, so that its scores are beyond the range: NaN.
template <class A> __device__ __forceinline__ A share_of_nothing(const NoMask *)
{
    return (A)__int_as_float(0x7fc00000);
}
template <class A, class M> __device__ __forceinline__ A share_of_nothing(const M *) { return 1; }

// The score of query i and key j with the mask; minus infinity where the key is hidden or there is none.
template <bool CAUSAL, class A, class M>
__device__ __forceinline__ A masked(A score, const M *mask, const Problem &p, int i, int j)
{
    if (i >= p.queries || j >= p.keys || (CAUSAL && j > i)) return -infinity<A>();
    return added(score, mask + (i * p.mask.t + j * p.mask_of_key));
}

// ROWS rows of x, beginning with ``first``, times a factor; zeros beyond the last row and the width.
template <int ROWS, int W, int THREADS, class A, class T>
__device__ __forceinline__ void load(A *tile, const T *x, long long stride, int first, int count, int width,
                                     A factor)
{
    constexpr int STRIDE = W + 16 / sizeof(A);
    static_assert(ROWS * W % THREADS == 0, "every thread loads as many elements");
#pragma unroll 4
    for (int m = 0; m < ROWS * W / THREADS; m++) {
        int n = m * THREADS + threadIdx.x, r = n / W, d = n % W;
        bool inside = first + r < count && d < width;
        tile[r * STRIDE + d] = inside ? (A)x[(first + r) * stride + d] * factor : (A)0;
    }
}

// c = x y^T for this thread's rows of x and of y, tiles of width W.
template <int W, int TX, int TY, int R, int C, class A>
__device__ __forceinline__ void multiply(A (&c)[R][C], const A *x, const A *y)
{
    constexpr int N = 16 / sizeof(A), STRIDE = W + N;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int s = 0; s < C; s++) c[r][s] = 0;
#pragma unroll 2
    for (int d = 0; d < W; d += N) {
        Vector<A, N> a[R], b[C];
#pragma unroll
        for (int r = 0; r < R; r++) a[r] = *(const Vector<A, N> *)(x + (ty + TY * r) * STRIDE + d);
#pragma unroll
        for (int s = 0; s < C; s++) b[s] = *(const Vector<A, N> *)(y + (tx + TX * s) * STRIDE + d);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int s = 0; s < C; s++) c[r][s] += a[r].x[n] * b[s].x[n];
    }
}

// The element of the width that is number e of a thread's W / TX: groups of VECTOR lie side by side.
template <int W, int TX, class A> struct Columns {
    static constexpr int vector = 16 / sizeof(A) < W / TX ? 16 / sizeof(A) : W / TX;
    static __device__ __forceinline__ int of(int tx, int e) { return (e / vector * TX + tx) * vector + e % vector; }
};

// c += p x for this thread's rows of p, (rows, K), and its columns of x, (K, W).
template <int K, int W, int TX, int TY, int R, int E, class A>
__device__ __forceinline__ void accumulate(A (&c)[R][E], const A *p, const A *x)
{
    constexpr int N = 16 / sizeof(A), V = Columns<W, TX, A>::vector;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
#pragma unroll 2
    for (int j = 0; j < K; j += N) {
        Vector<A, N> a[R];
#pragma unroll
        for (int r = 0; r < R; r++) a[r] = *(const Vector<A, N> *)(p + (ty + TY * r) * (K + N) + j);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < E; e += V) {
                const Vector<A, V> b = *(const Vector<A, V> *)(x + (j + n) * (W + N) + Columns<W, TX, A>::of(tx, e));
#pragma unroll
                for (int r = 0; r < R; r++)
#pragma unroll
                    for (int m = 0; m < V; m++) c[r][e + m] += a[r].x[n] * b.x[m];
            }
    }
}

// This thread's rows and columns of a tile, each row times a factor, to rows of x from ``first`` on.
template <int W, int TX, int TY, int R, int E, class A, class T>
__device__ __forceinline__ void store(T *x, const A (&c)[R][E], const A (&factor)[R], long long stride, int first,
                                      int count, int width)
{
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int e = 0; e < E; e++) {
            const int i = first + ty + TY * r;
            const int d = Columns<W, TX, A>::of(tx, e);
            if (i < count && d < width) x[i * stride + d] = (T)(c[r][e] * factor[r]);
        }
}

template <int TX, class A> __device__ __forceinline__ A sum_of_row(A x)
{
#pragma unroll
    for (int lane = TX / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(FULL_WARP, x, lane);
    return x;
}

// out (queries, value width); the largest score and 1 / sum of exp(score - largest), (heads, queries): 0 and 1 for a
// query that sees no key. The largest score so far is subtracted, and what was summed before is scaled when it
// grows (Milakov and Gimelshein, 2018).
template <class T, int W, class M, bool CAUSAL>
__global__ void __launch_bounds__(Tiles<T, W>::threads, 3)
forward(const T *q, const T *k, const T *v, const M *mask, T *out, typename Accumulator<T>::type *largest_scores,
        typename Accumulator<T>::type *shares, Problem p, typename Accumulator<T>::type scale)
{
    typedef typename Accumulator<T>::type A;
    typedef Tiles<T, W> L;
    constexpr int ROWS = L::rows, COLUMNS = L::columns, TX = L::tx, TY = L::ty, THREADS = L::threads;
    constexpr int R = ROWS / TY, C = COLUMNS / TX, E = W / TX, P_STRIDE = COLUMNS + L::vector;
    __align__(16) __shared__ A q_tile[ROWS * L::stride];
    __align__(16) __shared__ A kv_tile[COLUMNS * L::stride];
    __align__(16) __shared__ A p_tile[ROWS * P_STRIDE];
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const int tiles = (p.queries + ROWS - 1) / ROWS, head = blockIdx.x / tiles;
    const int g = head % p.G, b = head / p.G % p.B, a = head / p.G / p.B;
    const int first = (tiles - 1 - blockIdx.x % tiles) * ROWS;  // of causal tiles those with most keys come first
    k += start(p.k, a, b, g);
    v += start(p.v, a, b, g);
    mask += start(p.mask, a, b, g);
    load<ROWS, W, THREADS>(q_tile, q + start(p.q, a, b, g), p.q.t, first, p.queries, p.width, scale);

    A largest[R], total[R], o[R][E];
#pragma unroll
    for (int r = 0; r < R; r++) {
        largest[r] = -infinity<A>();
        total[r] = 0;
#pragma unroll
        for (int e = 0; e < E; e++) o[r][e] = 0;
    }
    const int seen = CAUSAL && first + ROWS < p.keys ? first + ROWS : p.keys;
    for (int j = 0; j < seen; j += COLUMNS) {
        __syncthreads();  // all have read the last values
        load<COLUMNS, W, THREADS>(kv_tile, k, p.k.t, j, p.keys, p.width, (A)1);
        __syncthreads();  // keys
        A s[R][C];
        multiply<W, TX, TY>(s, q_tile, kv_tile);
#pragma unroll
        for (int r = 0; r < R; r++) {
            A most = largest[r];
#pragma unroll
            for (int c = 0; c < C; c++) {
                s[r][c] = masked<CAUSAL>(s[r][c], mask, p, first + ty + TY * r, j + tx + TX * c);
                most = max(most, s[r][c]);
            }
#pragma unroll
            for (int lane = TX / 2; lane > 0; lane /= 2) most = max(most, __shfl_xor_sync(FULL_WARP, most, lane));
            const A shift = most == -infinity<A>() ? (A)0 : most;
            const A factor = power_of_e(largest[r] - shift);
            largest[r] = most;
            total[r] *= factor;
#pragma unroll
            for (int c = 0; c < C; c++) {
                const A weight = power_of_e(s[r][c] - shift);
                total[r] += weight;  // of this thread's columns
                p_tile[(ty + TY * r) * P_STRIDE + tx + TX * c] = weight;
            }
#pragma unroll
            for (int e = 0; e < E; e++) o[r][e] *= factor;
        }
        __syncthreads();  // all have read the keys
        load<COLUMNS, W, THREADS>(kv_tile, v, p.v.t, j, p.keys, p.value_width, (A)1);
        __syncthreads();  // values and weights
        accumulate<COLUMNS, W, TX, TY>(o, p_tile, kv_tile);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int i = first + ty + TY * r;
        const A sum = sum_of_row<TX>(total[r]);
        total[r] = sum == 0 ? share_of_nothing<A>(mask) : 1 / sum;
        if (tx == 0 && i < p.queries) {
            largest_scores[(long long)head * p.queries + i] = sum == 0 ? (A)0 : largest[r];
            shares[(long long)head * p.queries + i] = total[r];
        }
    }
    store<W, TX, TY>(out + start(p.out, a, b, g), o, total, p.out.t, first, p.queries, p.value_width);
}
"""
