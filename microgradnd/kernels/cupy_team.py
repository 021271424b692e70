"""Sums over the threads of a team, which share a row: up to 32 lanes of a warp, or a whole block."""

from __future__ import annotations

THREADS = 128  # of a block of several teams
ITEMS = 8  # that a lane goes through before a row gets a whole block
SHARED = 32 * 24  # bytes: of each warp three numbers

TEAM = r"""
#define INFINITE __int_as_float(0x7f800000)
// Teams go through the rows together, also those that have none left: every lane takes part in a shuffle.
#define FOR_ROWS(row, rows)                                                                        \
    for (Int row = (Int)blockIdx.x * blockDim.y + threadIdx.y; row - (Int)threadIdx.y < rows;      \
         row += (Int)gridDim.x * blockDim.y)

template <class A> __device__ __forceinline__ A other(A x, int apart) { return __shfl_xor_sync(0xffffffffu, x, apart); }

template <class A, int K> struct Sums {
    A at[K];
    __device__ Sums() { for (int k = 0; k < K; k++) at[k] = 0; }
    __device__ void add_from(int apart) { for (int k = 0; k < K; k++) at[k] += other(at[k], apart); }
};

// The sum of exp(x - largest). While nothing but -infinity was seen, the shift is 0, not -infinity.
template <class A> struct Exponentials {
    A largest, total;
    __device__ Exponentials() : largest(-INFINITE), total(0) {}
    __device__ Exponentials(A largest, A total) : largest(largest), total(total) {}
    __device__ void add(Exponentials e) {
        const A m = e.largest > largest ? e.largest : largest;
        const A shift = m == -INFINITE ? A(0) : m;
        total = total * exp(largest - shift) + e.total * exp(e.largest - shift);
        largest = m;
    }
    __device__ void add_from(int apart) { add(Exponentials(other(largest, apart), other(total, apart))); }
};

// Number, mean and sum of squared deviations (Chan et al., 1983).
template <class A> struct Moments {
    A count, mean, squares;
    __device__ Moments() : count(0), mean(0), squares(0) {}
    __device__ Moments(A count, A mean, A squares) : count(count), mean(mean), squares(squares) {}
    __device__ void add(Moments m) {
        const A all = count + m.count;
        if (all == A(0)) return;
        const A apart = m.mean - mean, share = m.count / all;
        mean += apart * share;
        squares += m.squares + apart * apart * count * share;
        count = all;
    }
    __device__ void add_from(int apart) {
        add(Moments(other(count, apart), other(mean, apart), other(squares, apart)));
    }
    // Lanes differ by rounding: all take what the first one has.
    __device__ Moments of_first() const {
        const int width = blockDim.x < 32 ? blockDim.x : 32;
        return Moments(__shfl_sync(0xffffffffu, count, 0, width), __shfl_sync(0xffffffffu, mean, 0, width),
                       __shfl_sync(0xffffffffu, squares, 0, width));
    }
};

// Of all threads of a team, for each of them. blockDim.x is a power of 2.
template <class S> __device__ S team(S mine) {
    extern __shared__ double exchange[];
    for (int apart = blockDim.x < 32 ? blockDim.x / 2 : 16; apart > 0; apart /= 2) mine.add_from(apart);
    if (blockDim.x > 32) {
        S* warps = reinterpret_cast<S*>(exchange);
        const int lane = threadIdx.x % 32;
        __syncthreads();  // what was exchanged before has been read
        if (lane == 0) warps[threadIdx.x / 32] = mine;
        __syncthreads();
        mine = lane < blockDim.x / 32 ? warps[lane] : S();
        for (int apart = 16; apart > 0; apart /= 2) mine.add_from(apart);
    }
    return mine;
}

template <class T, int V> __device__ Exponentials<Acc<T>> exponentials(const T* x, Int width) {
    typedef Acc<T> A;
    Exponentials<A> e;
    for (Int i = threadIdx.x; i < width; i += blockDim.x) {
        const Pack<T, V> p = load<T, V>(x, i);
        A m = e.largest;
        for (int k = 0; k < V; k++) m = A(p.at[k]) > m ? A(p.at[k]) : m;
        const A shift = m == -INFINITE ? A(0) : m;
        A part = 0;
        for (int k = 0; k < V; k++) part += exp(A(p.at[k]) - shift);
        e.total = e.total * exp(e.largest - shift) + part;
        e.largest = m;
    }
    return e;
}
"""


def team_of(items: int) -> tuple[tuple[int, int], int]:
    """The block (threads of a team, teams) for rows of so many items, and its bytes of shared memory."""
    if items <= 32 * ITEMS:
        threads = min(32, 1 << max(0, items - 1).bit_length())
        return (threads, THREADS // threads), SHARED
    threads = max(128, min(512, 1 << (-(-items // 4) - 1).bit_length()))
    return (threads, 1), SHARED
