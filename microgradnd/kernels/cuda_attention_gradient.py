"""CUDA source of attention's gradients in tiles; the weights are computed anew (Dao et al., 2022; Dao, 2023).

With S = scale Q K^T + mask, P = exp(S - largest) / total of each row, and the gradient G of O = P V:

    dP = G V^T,  delta = sum over the width of G O,  dS = P (dP - delta)
    dV = P^T G,  dK = scale dS^T Q,  dQ = scale dS K

Two kernels: rows are queries in ``query_gradient`` and keys in ``key_gradient``. Both compute S and dP: seven products
of matrices, where one kernel would have five, but no two blocks add to the same gradient. Largest and total are kept
apart, not as largest + log(total): where -1e9 is added to all scores of a row, float32 would lose the logarithm.
"""

from __future__ import annotations

GRADIENTS = r"""
// dq (queries, width), and delta (heads, queries) for ``key_gradient``.
template <class T, int W, class M, bool CAUSAL>
__global__ void __launch_bounds__(Tiles<T, W>::side_threads, 3)
query_gradient(const T *g_out, const T *q, const T *k, const T *v, const M *mask, const T *out,
               const typename Accumulator<T>::type *largest_scores, const typename Accumulator<T>::type *shares,
               typename Accumulator<T>::type *deltas, T *dq, Problem p, typename Accumulator<T>::type scale)
{
    typedef typename Accumulator<T>::type A;
    typedef Tiles<T, W> L;
    constexpr int SIDE = L::side, TX = L::side_tx, TY = L::side_ty, THREADS = L::side_threads;
    constexpr int R = SIDE / TY, C = SIDE / TX, E = W / TX, S_STRIDE = SIDE + L::vector;
    __align__(16) __shared__ A q_tile[SIDE * L::stride];
    __align__(16) __shared__ A g_tile[SIDE * L::stride];
    __align__(16) __shared__ A k_tile[SIDE * L::stride];
    __align__(16) __shared__ A v_tile[SIDE * L::stride];
    __align__(16) __shared__ A s_tile[SIDE * S_STRIDE];
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const int tiles = (p.queries + SIDE - 1) / SIDE, head = blockIdx.x / tiles;
    const int g = head % p.G, b = head / p.G % p.B, a = head / p.G / p.B;
    const int first = (tiles - 1 - blockIdx.x % tiles) * SIDE;
    k += start(p.k, a, b, g);
    v += start(p.v, a, b, g);
    mask += start(p.mask, a, b, g);
    g_out += start(p.g, a, b, g);
    out += start(p.out, a, b, g);
    load<SIDE, W, THREADS>(q_tile, q + start(p.q, a, b, g), p.q.t, first, p.queries, p.width, scale);
    load<SIDE, W, THREADS>(g_tile, g_out, p.g.t, first, p.queries, p.value_width, (A)1);

    A largest[R], share[R], delta[R], sum[R][E];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int i = first + ty + TY * r;
        A products = 0;
        if (i < p.queries)
            for (int d = tx; d < p.value_width; d += TX)
                products += (A)g_out[i * p.g.t + d] * (A)out[i * p.out.t + d];
        delta[r] = sum_of_row<TX>(products);
        largest[r] = i < p.queries ? largest_scores[(long long)head * p.queries + i] : (A)0;
        share[r] = i < p.queries ? shares[(long long)head * p.queries + i] : (A)0;
        if (tx == 0 && i < p.queries) deltas[(long long)head * p.queries + i] = delta[r];
#pragma unroll
        for (int e = 0; e < E; e++) sum[r][e] = 0;
    }
    const int seen = CAUSAL && first + SIDE < p.keys ? first + SIDE : p.keys;
    for (int j = 0; j < seen; j += SIDE) {
        __syncthreads();  // all have read the last keys
        load<SIDE, W, THREADS>(k_tile, k, p.k.t, j, p.keys, p.width, (A)1);
        load<SIDE, W, THREADS>(v_tile, v, p.v.t, j, p.keys, p.value_width, (A)1);
        __syncthreads();  // keys and values
        A s[R][C], dp[R][C];
        multiply<W, TX, TY>(s, q_tile, k_tile);
        multiply<W, TX, TY>(dp, g_tile, v_tile);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int c = 0; c < C; c++) {
                const A score = masked<CAUSAL>(s[r][c], mask, p, first + ty + TY * r, j + tx + TX * c);
                s_tile[(ty + TY * r) * S_STRIDE + tx + TX * c] =
                    power_of_e(score - largest[r]) * share[r] * (dp[r][c] - delta[r]);
            }
        __syncwarp();  // a row's threads are in one warp
        accumulate<SIDE, W, TX, TY>(sum, s_tile, k_tile);
    }
#pragma unroll
    for (int r = 0; r < R; r++) delta[r] = scale;
    store<W, TX, TY>(dq + start(p.dq, a, b, g), sum, delta, p.dq.t, first, p.queries, p.width);
}

// dk (keys, width) and dv (keys, value width) of a head of keys and values, over all the query heads that share it.
template <class T, int W, class M, bool CAUSAL>
__global__ void __launch_bounds__(Tiles<T, W>::side_threads, 3)
key_gradient(const T *g_out, const T *q, const T *k, const T *v, const M *mask,
             const typename Accumulator<T>::type *largest_scores, const typename Accumulator<T>::type *shares,
             const typename Accumulator<T>::type *deltas, T *dk, T *dv, Problem p,
             typename Accumulator<T>::type scale)
{
    typedef typename Accumulator<T>::type A;
    typedef Tiles<T, W> L;
    constexpr int SIDE = L::side, TX = L::side_tx, TY = L::side_ty, THREADS = L::side_threads;
    constexpr int R = SIDE / TY, C = SIDE / TX, E = W / TX, S_STRIDE = SIDE + L::vector;
    __align__(16) __shared__ A k_tile[SIDE * L::stride];
    __align__(16) __shared__ A v_tile[SIDE * L::stride];
    __align__(16) __shared__ A q_tile[SIDE * L::stride];
    __align__(16) __shared__ A g_tile[SIDE * L::stride];
    __align__(16) __shared__ A s_tile[SIDE * S_STRIDE];
    __shared__ A largest[SIDE], share[SIDE], delta[SIDE];
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    const int tiles = (p.keys + SIDE - 1) / SIDE, groups = p.G / p.shared, head = blockIdx.x / tiles;
    const int group = head % groups, b = head / groups % p.B, a = head / groups / p.B;
    const int first = blockIdx.x % tiles * SIDE;
    load<SIDE, W, THREADS>(k_tile, k + start(p.k, a, b, group), p.k.t, first, p.keys, p.width, (A)1);
    load<SIDE, W, THREADS>(v_tile, v + start(p.v, a, b, group), p.v.t, first, p.keys, p.value_width, (A)1);

    A ones[R], dk_sum[R][E], dv_sum[R][E];
#pragma unroll
    for (int r = 0; r < R; r++) {
        ones[r] = 1;
#pragma unroll
        for (int e = 0; e < E; e++) dk_sum[r][e] = dv_sum[r][e] = 0;
    }
    for (int g = group * p.shared; g < (group + 1) * p.shared; g++) {
        const T *queries = q + start(p.q, a, b, g), *gradients = g_out + start(p.g, a, b, g);
        const M *own_mask = mask + start(p.mask, a, b, g);
        const long long row = (((long long)a * p.B + b) * p.G + g) * p.queries;
        for (int i = CAUSAL ? first : 0; i < p.queries; i += SIDE) {
            __syncthreads();  // all have read the last queries
            load<SIDE, W, THREADS>(q_tile, queries, p.q.t, i, p.queries, p.width, scale);
            load<SIDE, W, THREADS>(g_tile, gradients, p.g.t, i, p.queries, p.value_width, (A)1);
            if (threadIdx.x < SIDE) {
                const bool inside = i + threadIdx.x < p.queries;
                largest[threadIdx.x] = inside ? largest_scores[row + i + threadIdx.x] : (A)0;
                share[threadIdx.x] = inside ? shares[row + i + threadIdx.x] : (A)0;
                delta[threadIdx.x] = inside ? deltas[row + i + threadIdx.x] : (A)0;
            }
            __syncthreads();  // queries, gradients and numbers
            A s[R][C], ds[R][C];
            multiply<W, TX, TY>(s, k_tile, q_tile);
            multiply<W, TX, TY>(ds, v_tile, g_tile);
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int c = 0; c < C; c++) {
                    const int n = tx + TX * c;
                    const A score = masked<CAUSAL>(s[r][c], own_mask, p, i + n, first + ty + TY * r);
                    const A weight = power_of_e(score - largest[n]) * share[n];
                    ds[r][c] = weight * (ds[r][c] - delta[n]);
                    s_tile[(ty + TY * r) * S_STRIDE + n] = weight;
                }
            __syncwarp();  // a row's threads are in one warp
            accumulate<SIDE, W, TX, TY>(dv_sum, s_tile, g_tile);
            __syncwarp();
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int c = 0; c < C; c++) s_tile[(ty + TY * r) * S_STRIDE + tx + TX * c] = ds[r][c];
            __syncwarp();
            accumulate<SIDE, W, TX, TY>(dk_sum, s_tile, q_tile);
        }
    }
    store<W, TX, TY>(dk + start(p.dk, a, b, group), dk_sum, ones, p.dk.t, first, p.keys, p.width);
    store<W, TX, TY>(dv + start(p.dv, a, b, group), dv_sum, ones, p.dv.t, first, p.keys, p.value_width);
}
"""
