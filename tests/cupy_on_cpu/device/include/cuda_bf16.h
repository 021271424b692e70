// Host stand-in for CUDA's bfloat16: the upper half of a float, rounded to nearest even.
#pragma once
#include <cmath>
#include <cstring>

struct __nv_bfloat16 {
    unsigned short bits;

    __nv_bfloat16() {}
    __nv_bfloat16(float f)
    {
        unsigned u;
        std::memcpy(&u, &f, sizeof u);
        unsigned round_to_even = 0x7fff + (u >> 16 & 1);
        bits = std::isnan(f) ? 0x7fff : (unsigned short)((u + round_to_even) >> 16);
    }

    operator float() const
    {
        unsigned u = (unsigned)bits << 16;
        float f;
        std::memcpy(&f, &u, sizeof f);
        return f;
    }
};

static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits)
{
    __nv_bfloat16 h;
    h.bits = bits;
    return h;
}
static inline bool __hisnan(__nv_bfloat16 h) { return std::isnan((float)h); }
static inline int __hisinf(__nv_bfloat16 h) { return std::isinf((float)h) ? ((float)h > 0 ? 1 : -1) : 0; }
static inline float __bfloat162float(__nv_bfloat16 h) { return (float)h; }
static inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
