// The mathematical functions and bit casts that CUDA has and the host's C++ library lacks, or has under another name.
#pragma once

// ---- bits

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned long long)x * y >> 32; }
static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y)
{
    return (unsigned __int128)x * y >> 64;
}
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }

template <class To, class From>
static inline To cpucupy_bit_cast(From from)
{
    static_assert(sizeof(To) == sizeof(From), "bit casts keep the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline float __int_as_float(int x) { return cpucupy_bit_cast<float>(x); }
static inline float __uint_as_float(unsigned x) { return cpucupy_bit_cast<float>(x); }
static inline int __float_as_int(float x) { return cpucupy_bit_cast<int>(x); }
static inline unsigned __float_as_uint(float x) { return cpucupy_bit_cast<unsigned>(x); }
static inline double __longlong_as_double(long long x) { return cpucupy_bit_cast<double>(x); }
static inline long long __double_as_longlong(double x) { return cpucupy_bit_cast<long long>(x); }

template <class T>
static inline T __ldg(const T *address) { return *address; }

// ---- functions; renamed where a newer C library declares the name itself

#define rsqrt cpucupy_rsqrt
#define rsqrtf cpucupy_rsqrtf
#define sinpi cpucupy_sinpi
#define cospi cpucupy_cospi
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double sinpi(double x) { return sin(M_PI * x); }
static inline double cospi(double x) { return cos(M_PI * x); }
static inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
static inline float normcdff(float x) { return 0.5f * erfcf(-x * (float)M_SQRT1_2); }
static inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// The fast intrinsics are as exact as the host's functions here; on a device they are not. The GNU C library declares
// functions of the same names for its own use.
#define __expf cpucupy_fast_expf
#define __logf cpucupy_fast_logf
#define __sinf cpucupy_fast_sinf
#define __cosf cpucupy_fast_cosf
#define __powf cpucupy_fast_powf
static inline float __expf(float x) { return expf(x); }
static inline float __logf(float x) { return logf(x); }
static inline float __sinf(float x) { return sinf(x); }
static inline float __cosf(float x) { return cosf(x); }
static inline float __powf(float x, float y) { return powf(x, y); }
static inline float __fdividef(float x, float y) { return x / y; }

// ---- max and min: a NaN loses, as in fmax and fmin

#define CPUCUPY_MAX_MIN(T)                                             \
    static inline T max(T a, T b) { return a > b ? a : b; }            \
    static inline T min(T a, T b) { return a < b ? a : b; }
CPUCUPY_MAX_MIN(int)
CPUCUPY_MAX_MIN(unsigned)
CPUCUPY_MAX_MIN(long)
CPUCUPY_MAX_MIN(unsigned long)
CPUCUPY_MAX_MIN(long long)
CPUCUPY_MAX_MIN(unsigned long long)
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
