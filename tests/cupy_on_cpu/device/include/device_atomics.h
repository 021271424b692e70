// CUDA's atomic functions. Threads run one after the other here, so that a plain read and write is atomic.
#pragma once

#define CPUCUPY_ATOMIC(name, allowed, result)                                                \
    template <class T>                                                                       \
    static inline typename std::enable_if<std::allowed<T>::value, T>::type name(T *address, T value) \
    {                                                                                        \
        T old = *address;                                                                    \
        *address = (T)(result);                                                              \
        return old;                                                                          \
    }

CPUCUPY_ATOMIC(atomicAdd, is_arithmetic, old + value)
CPUCUPY_ATOMIC(atomicSub, is_arithmetic, old - value)
CPUCUPY_ATOMIC(atomicMax, is_arithmetic, old > value ? old : value)
CPUCUPY_ATOMIC(atomicMin, is_arithmetic, old < value ? old : value)
CPUCUPY_ATOMIC(atomicExch, is_arithmetic, value)
CPUCUPY_ATOMIC(atomicAnd, is_integral, old &value)
CPUCUPY_ATOMIC(atomicOr, is_integral, old | value)
CPUCUPY_ATOMIC(atomicXor, is_integral, old ^ value)

template <class T>
static inline T atomicCAS(T *address, T expected, T value)
{
    T old = *address;
    if (old == expected) *address = value;
    return old;
}
