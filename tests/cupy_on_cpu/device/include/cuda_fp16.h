// Host stand-in for CUDA's half type: IEEE binary16 through the compiler's _Float16 (GCC 12 or newer, x86-64).
#pragma once
#include <cstring>

struct __half_raw {
    unsigned short x;
};

struct __half {
    _Float16 value;

    __half() {}
    __half(float f) : value((_Float16)f) {}
    __half(double f) : value((_Float16)f) {}
    __half(int i) : value((_Float16)i) {}
    __half(unsigned i) : value((_Float16)(float)i) {}
    __half(long long i) : value((_Float16)(float)i) {}
    __half(unsigned long long i) : value((_Float16)(float)i) {}
    __half(const __half_raw &raw) { std::memcpy(&value, &raw.x, sizeof value); }

    operator float() const { return (float)value; }
    operator __half_raw() const
    {
        __half_raw raw;
        std::memcpy(&raw.x, &value, sizeof value);
        return raw;
    }
};
typedef __half half;

static inline unsigned short __half_as_ushort(half h) { return __half_raw(h).x; }
static inline half __ushort_as_half(unsigned short bits) { return half(__half_raw{bits}); }
static inline float __half2float(half h) { return (float)h; }
static inline half __float2half(float f) { return half(f); }
static inline half __float2half_rn(float f) { return half(f); }
