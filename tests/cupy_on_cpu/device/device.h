/* What the sources of the host-memory device share.
 *
 * Functions named rt_X and dr_X take the place of the Cython functions X that cupy_backends.cuda.api.runtime and
 * .driver export to CuPy's other Cython modules; their C signatures are the ones those modules declare. By Cython's
 * convention a failing function sets a Python error and returns NULL, a zero handle, or -1 for an int; `skip` is
 * Cython's own argument.
 */
#ifndef CUPY_ON_CPU_DEVICE_H
#define CUPY_ON_CPU_DEVICE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel_abi.h"

typedef intptr_t Handle;

enum counter {
    COUNT_LAUNCHES,
    COUNT_ALLOCATIONS,
    COUNT_HOST_TO_DEVICE,
    COUNT_DEVICE_TO_HOST,
    COUNT_SYNCHRONIZATIONS,
    COUNT_LIVE_ALLOCATIONS,
    COUNTERS
};

extern long cpucupy_counters[COUNTERS];

/* Device limits, as of compute capability 9.0. */
enum { MAX_THREADS = 1024, WARP = 32, MAX_SHARED_BYTES = 232448 };

/* Fresh memory holds this byte, so that a read of memory that nothing has written is seen. */
enum { POISON = 0xA5 };

struct extent {
    unsigned int x, y, z;
};

/* Run every thread of every block of one launch; -1 with a Python error where that fails. */
int run_grid(const struct cpucupy_kernel *kernel, void **args, struct extent grid, struct extent block,
             size_t dynamic_shared_bytes);

/* A function that CuPy exports and that has no stand-in: say so, whatever its arguments. */
#define REFUSE(returns, failed, name, what)                                                  \
    returns name()                                                                           \
    {                                                                                        \
        PyErr_SetString(PyExc_NotImplementedError, "the CPU stand-in has no " what);         \
        return failed;                                                                       \
    }

#endif
