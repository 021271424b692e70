// Barriers and warp functions: a thread shows its value, waits for its warp, and reads the other lanes' values.
#pragma once

static inline void __syncthreads() { cpucupy_wait(CPUCUPY_BLOCK); }
static inline void __syncwarp(unsigned = 0xffffffff) { cpucupy_wait(CPUCUPY_WARP); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T>
static inline T cpucupy_exchange(T value, int source_lane)
{
    static_assert(sizeof(T) <= CPUCUPY_LANE_BYTES, "a shuffled value has at most 16 bytes");
    T result;
    memcpy(cpucupy_lane_slot(cpucupy_lane()), &value, sizeof value);
    cpucupy_wait(CPUCUPY_WARP);
    memcpy(&result, cpucupy_lane_slot(source_lane), sizeof result);
    cpucupy_wait(CPUCUPY_WARP);  // the slot must not be written again before every lane has read it
    return result;
}

// `width` cuts the warp into groups; a lane outside the caller's group leaves the caller with its own value.
static inline int cpucupy_in_group(int source, int width)
{
    int lane = cpucupy_lane();
    return source >= 0 && source < 32 && source / width == lane / width ? source : lane;
}

template <class T>
static inline T __shfl_sync(unsigned, T value, int source, int width = 32)
{
    return cpucupy_exchange(value, cpucupy_lane() / width * width + (source % width + width) % width);
}

template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int mask, int width = 32)
{
    return cpucupy_exchange(value, cpucupy_in_group(cpucupy_lane() ^ mask, width));
}

template <class T>
static inline T __shfl_down_sync(unsigned, T value, unsigned distance, int width = 32)
{
    return cpucupy_exchange(value, cpucupy_in_group(cpucupy_lane() + (int)distance, width));
}

template <class T>
static inline T __shfl_up_sync(unsigned, T value, unsigned distance, int width = 32)
{
    return cpucupy_exchange(value, cpucupy_in_group(cpucupy_lane() - (int)distance, width));
}

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    int vote = predicate != 0;
    unsigned votes = 0;
    memcpy(cpucupy_lane_slot(cpucupy_lane()), &vote, sizeof vote);
    cpucupy_wait(CPUCUPY_WARP);
    for (int lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1) || !cpucupy_lane_is_alive(lane)) continue;
        memcpy(&vote, cpucupy_lane_slot(lane), sizeof vote);
        votes |= (unsigned)vote << lane;
    }
    cpucupy_wait(CPUCUPY_WARP);
    return votes;
}

static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
