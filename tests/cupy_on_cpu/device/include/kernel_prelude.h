// All that a kernel needs before its own text; precompiled once.
#pragma once
#include "cuda_on_cpu.h"

// CuPy's headers define many functions that are not inline, and every kernel would compile them again.
#pragma push_macro("__device__")
#pragma push_macro("__forceinline__")
#undef __device__
#undef __forceinline__
#define inline
#define __forceinline__
#define __device__ __inline__
#include <cupy/complex.cuh>

#include <cupy/carray.cuh>

#include <cupy/atomics.cuh>
#include <cupy/math_constants.h>
#undef inline
#pragma pop_macro("__forceinline__")
#pragma pop_macro("__device__")
