/* The CUDA driver: a module is a shared object that holds compiled kernels. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "device.h"

enum { MAX_BLOCK_Z = 64, MAX_GRID_YZ = 65535 };
enum { ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0, ATTRIBUTE_SHARED_BYTES = 1, ATTRIBUTE_MAX_DYNAMIC_SHARED_BYTES = 8 };

#define MODULE_PREFIX "cpucupy:"

static size_t static_shared_bytes(const struct cpucupy_kernel *kernel)
{
    return kernel->shared_end - kernel->shared_begin;
}

/* The image is MODULE_PREFIX and the path of the shared object: what _kernels.py hands to CuPy in place of a cubin. */
Handle dr_moduleLoadData(PyObject *image, int skip)
{
    char *text;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(image, &text, &size) < 0) return 0;
    if (strncmp(text, MODULE_PREFIX, strlen(MODULE_PREFIX)) != 0) {
        PyErr_SetString(PyExc_NotImplementedError, "the CPU stand-in has no loader for compiled device code");
        return 0;
    }
    void *module = dlopen(text + strlen(MODULE_PREFIX), RTLD_NOW | RTLD_LOCAL);
    if (!module) PyErr_SetString(PyExc_RuntimeError, dlerror());
    return (Handle)module;
}

/* Kernels of an unloaded module may still be named by CuPy's caches: keep every module for the life of the process. */
PyObject *dr_moduleUnload(Handle module, int skip) { Py_RETURN_NONE; }

static void *find_symbol(Handle module, const char *prefix, PyObject *name)
{
    char symbol[512];
    const char *text = PyUnicode_AsUTF8(name);
    if (!text) return NULL;
    snprintf(symbol, sizeof symbol, "%s%s", prefix, text);
    void *address = dlsym((void *)module, symbol);
    if (!address) PyErr_Format(PyExc_RuntimeError, "CUDA_ERROR_NOT_FOUND: named symbol not found: %s", text);
    return address;
}

Handle dr_moduleGetFunction(Handle module, PyObject *name, int skip)
{
    return (Handle)find_symbol(module, "cpucupy_kernel_", name);
}

Handle dr_moduleGetGlobal(Handle module, PyObject *name, int skip) { return (Handle)find_symbol(module, "", name); }

static int check_launch(const struct cpucupy_kernel *kernel, struct extent grid, struct extent block,
                        unsigned int dynamic_shared_bytes)
{
    unsigned long threads = (unsigned long)block.x * block.y * block.z;
    unsigned long blocks = (unsigned long)grid.x * grid.y * grid.z;
    size_t shared = static_shared_bytes(kernel) + dynamic_shared_bytes;
    if (threads == 0 || threads > MAX_THREADS || block.z > MAX_BLOCK_Z)
        PyErr_Format(PyExc_RuntimeError, "CUDA_ERROR_INVALID_VALUE: a block of %u x %u x %u threads", block.x, block.y,
                     block.z);
    else if (blocks == 0 || grid.x > INT32_MAX || grid.y > MAX_GRID_YZ || grid.z > MAX_GRID_YZ)
        PyErr_Format(PyExc_RuntimeError, "CUDA_ERROR_INVALID_VALUE: a grid of %u x %u x %u blocks", grid.x, grid.y,
                     grid.z);
    else if (dynamic_shared_bytes > kernel->max_dynamic_shared_bytes || shared > MAX_SHARED_BYTES
             || static_shared_bytes(kernel) > CPUCUPY_DEFAULT_SHARED_BYTES
             || (shared > CPUCUPY_DEFAULT_SHARED_BYTES && kernel->max_dynamic_shared_bytes <= CPUCUPY_DEFAULT_SHARED_BYTES))
        PyErr_Format(PyExc_RuntimeError, "CUDA_ERROR_INVALID_VALUE: %zu bytes of shared memory", shared);
    else
        return 0;
    return -1;
}

PyObject *dr_launchKernel(Handle function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                          unsigned int block_x, unsigned int block_y, unsigned int block_z,
                          unsigned int dynamic_shared_bytes, Handle stream, Handle args, Handle extra, int skip)
{
    const struct cpucupy_kernel *kernel = (const struct cpucupy_kernel *)function;
    struct extent grid = {grid_x, grid_y, grid_z};
    struct extent block = {block_x, block_y, block_z};
    if (check_launch(kernel, grid, block, dynamic_shared_bytes) < 0) return NULL;
    cpucupy_counters[COUNT_LAUNCHES]++;
    if (run_grid(kernel, (void **)args, grid, block, dynamic_shared_bytes) < 0) return NULL;
    Py_RETURN_NONE;
}

/* Blocks of a cooperative launch wait for each other, and here the first block ends before the second one starts. */
REFUSE(PyObject *, NULL, dr_launchCooperativeKernel, "cooperative launch")

int dr_funcGetAttribute(int attribute, Handle function, int skip)
{
    const struct cpucupy_kernel *kernel = (const struct cpucupy_kernel *)function;
    switch (attribute) {
    case ATTRIBUTE_MAX_THREADS_PER_BLOCK: return MAX_THREADS;
    case ATTRIBUTE_SHARED_BYTES: return (int)static_shared_bytes(kernel);
    case ATTRIBUTE_MAX_DYNAMIC_SHARED_BYTES: return (int)kernel->max_dynamic_shared_bytes;
    default: return 0;
    }
}

PyObject *dr_funcSetAttribute(Handle function, int attribute, int value, int skip)
{
    struct cpucupy_kernel *kernel = (struct cpucupy_kernel *)function;
    if (attribute == ATTRIBUTE_MAX_DYNAMIC_SHARED_BYTES) {
        if (value < 0 || value > MAX_SHARED_BYTES) {
            PyErr_Format(PyExc_RuntimeError, "CUDA_ERROR_INVALID_VALUE: %d bytes of shared memory", value);
            return NULL;
        }
        kernel->max_dynamic_shared_bytes = (unsigned int)value;
    }
    Py_RETURN_NONE;
}

int dr_occupancyMaxActiveBlocksPerMultiprocessor(Handle function, int block_size, size_t shared, int skip) { return 1; }

PyObject *dr_occupancyMaxPotentialBlockSize(Handle function, size_t shared, int limit, int skip)
{
    return Py_BuildValue("(ii)", 132, MAX_THREADS);
}

Handle dr_ctxGetCurrent(int skip) { return 1; }
int dr_ctxGetDevice(int skip) { return 0; }
Handle dr_streamGetCtx(Handle stream, int skip) { return 1; }

REFUSE(Handle, 0, dr_ctxCreate, "second context")
REFUSE(PyObject *, NULL, dr_ctxDestroy, "second context")
REFUSE(PyObject *, NULL, dr_ctxSetCurrent, "second context")
REFUSE(PyObject *, NULL, dr_devicePrimaryCtxRelease, "second context")
REFUSE(Handle, 0, dr_linkCreate, "device linker")
REFUSE(PyObject *, NULL, dr_linkAddData, "device linker")
REFUSE(PyObject *, NULL, dr_linkAddFile, "device linker")
REFUSE(PyObject *, NULL, dr_linkComplete, "device linker")
REFUSE(PyObject *, NULL, dr_linkDestroy, "device linker")
REFUSE(Handle, 0, dr_moduleLoad, "loader for compiled device code")
