// Host stand-ins for the CUDA C++ that a kernel uses. Included before every kernel, from a precompiled header: keep
// the standard headers few, because each kernel pays for loading them.
#pragma once
// C++17's special functions (std::beta, ...) are two thirds of what loading <cmath> costs, and no kernel uses them.
#include <bits/c++config.h>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS
// Not <cmath> and <cstdlib> alone: CUDA has the overloads for float, such as abs(float), without std::.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <limits>
#include <type_traits>
#include <utility>

#include "kernel_abi.h"

#define __CUDACC_VER_MAJOR__ 13  // CuPy's headers then use cuda_fp16.h, which here is the one beside this file
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// ---- keywords

#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline
#define __noinline__
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __grid_constant__
// In a section of their own, so that the device can poison them before each block.
#define __shared__ alignas(16) static __attribute__((section("cpucupy_shared")))

#define threadIdx cpucupy_thread
#define blockIdx cpucupy_block
#define blockDim cpucupy_block_size
#define gridDim cpucupy_grid_size
typedef cpucupy_dim3 dim3;
static const int warpSize = 32;

#include "device_atomics.h"
#include "device_math.h"
#include "device_warp.h"

// ---- launching: a kernel's arguments arrive as an array of pointers to them

template <class... Args, std::size_t... I>
static inline void cpucupy_unpack(void (*kernel)(Args...), void **args, std::integer_sequence<std::size_t, I...>)
{
    kernel(*static_cast<typename std::remove_const<Args>::type *>(args[I])...);
}

template <class... Args>
static inline void cpucupy_call(void (*kernel)(Args...), void **args)
{
    cpucupy_unpack(kernel, args, std::integer_sequence<std::size_t, __integer_pack(sizeof...(Args))...>{});
}

extern "C" {
extern char __start_cpucupy_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_cpucupy_shared[] __attribute__((weak, visibility("hidden")));
}

// The symbol that the device looks up for the kernel `name`. The last argument is the kernel, perhaps an instance of
// a template.
#define CPUCUPY_KERNEL(name, has_barriers, is_grid_stride, ...)                             \
    static void cpucupy_run_##name(void **args) { cpucupy_call(&__VA_ARGS__, args); }       \
    extern "C" struct cpucupy_kernel cpucupy_kernel_##name;                                 \
    struct cpucupy_kernel cpucupy_kernel_##name = {cpucupy_run_##name, has_barriers,        \
        is_grid_stride, CPUCUPY_DEFAULT_SHARED_BYTES, __start_cpucupy_shared,               \
        __stop_cpucupy_shared};
