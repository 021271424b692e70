/* The CUDA runtime: one device whose memory is host memory and whose streams run everything at once. */
#include <stdlib.h>
#include <string.h>

#include "device.h"

enum { HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2, DEVICE_TO_DEVICE = 3 };
enum { ERROR_MEMORY_ALLOCATION = 2, MEMORY_TYPE_DEVICE = 2, ALIGNMENT = 512 };

static const size_t TOTAL_BYTES = (size_t)16 << 30;

long cpucupy_counters[COUNTERS];

static PyObject *pointer_attributes_class, *runtime_error_class;

/* CuPy's own classes, for the results and errors that its callers look into. */
void cpucupy_use_classes(PyObject *pointer_attributes, PyObject *runtime_error)
{
    Py_INCREF(pointer_attributes);
    Py_INCREF(runtime_error);
    pointer_attributes_class = pointer_attributes;
    runtime_error_class = runtime_error;
}

/* ---- device */

int rt_getDevice(int skip) { return 0; }
int rt_getDeviceCount(int skip) { return 1; }
int rt_driverGetVersion(int skip) { return 13000; }
int rt_deviceCanAccessPeer(int device, int peer, int skip) { return 0; }
PyObject *rt__ensure_context(void) { Py_RETURN_NONE; }
PyObject *rt__deviceEnsurePeerAccess(int peer, int skip) { Py_RETURN_NONE; }

PyObject *rt_setDevice(int device, int skip)
{
    if (device == 0) Py_RETURN_NONE;
    PyErr_SetString(PyExc_RuntimeError, "cudaErrorInvalidDevice: the CPU stand-in has one device");
    return NULL;
}

int rt_deviceGetAttribute(int attribute, int device, int skip)
{
    switch (attribute) {
    case 1: return MAX_THREADS;           /* MaxThreadsPerBlock */
    case 8: return CPUCUPY_DEFAULT_SHARED_BYTES;  /* MaxSharedMemoryPerBlock */
    case 10: return WARP;                 /* WarpSize */
    case 16: return 132;                  /* MultiProcessorCount */
    case 75: return 9;                    /* ComputeCapabilityMajor */
    case 81: return 233472;               /* MaxSharedMemoryPerMultiprocessor */
    case 97: return MAX_SHARED_BYTES;     /* MaxSharedMemoryPerBlockOptin */
    default: return 0;                    /* among them 115, MemoryPoolsSupported: the default pool is CuPy's own */
    }
}

PyObject *rt_getDeviceProperties(int device, int skip)
{
    return Py_BuildValue("{s:y,s:i,s:i,s:i,s:i,s:n,s:i}", "name", "host memory (no CUDA device)", "warpSize", WARP,
                         "multiProcessorCount", 132, "major", 9, "minor", 0, "totalGlobalMem", (Py_ssize_t)TOTAL_BYTES,
                         "maxThreadsPerBlock", MAX_THREADS);
}

PyObject *rt_memGetInfo(int skip)
{
    return Py_BuildValue("(nn)", (Py_ssize_t)TOTAL_BYTES / 2, (Py_ssize_t)TOTAL_BYTES);
}

PyObject *rt_deviceSynchronize(int skip)
{
    cpucupy_counters[COUNT_SYNCHRONIZATIONS]++;
    Py_RETURN_NONE;
}

PyObject *rt_profilerStart(int skip) { Py_RETURN_NONE; }
PyObject *rt_profilerStop(int skip) { Py_RETURN_NONE; }

/* ---- memory */

static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (bytes <= TOTAL_BYTES) memory = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    if (memory) {
        memset(memory, POISON, bytes);
        return memory;
    }
    PyObject *error = PyObject_CallFunction(runtime_error_class, "i", ERROR_MEMORY_ALLOCATION);
    if (error) {
        PyErr_SetObject(runtime_error_class, error);
        Py_DECREF(error);
    }
    return NULL;
}

Handle rt_malloc(size_t bytes, int skip)
{
    void *memory = allocate(bytes);
    if (memory) {
        cpucupy_counters[COUNT_ALLOCATIONS]++;
        cpucupy_counters[COUNT_LIVE_ALLOCATIONS]++;
    }
    return (Handle)memory;
}

Handle rt_mallocManaged(size_t bytes, int skip, void *optional) { return rt_malloc(bytes, skip); }

PyObject *rt_free(Handle pointer, int skip)
{
    if (pointer) cpucupy_counters[COUNT_LIVE_ALLOCATIONS]--;
    free((void *)pointer);
    Py_RETURN_NONE;
}

Handle rt_hostAlloc(size_t bytes, unsigned int flags, int skip) { return (Handle)allocate(bytes); }

PyObject *rt_freeHost(Handle pointer, int skip)
{
    free((void *)pointer);
    Py_RETURN_NONE;
}

static PyObject *copy(Handle to, Handle from, size_t bytes, int kind)
{
    if (kind == HOST_TO_DEVICE) cpucupy_counters[COUNT_HOST_TO_DEVICE]++;
    if (kind == DEVICE_TO_HOST) cpucupy_counters[COUNT_DEVICE_TO_HOST]++;
    memmove((void *)to, (void *)from, bytes);
    Py_RETURN_NONE;
}

PyObject *rt_memcpy(Handle to, Handle from, size_t bytes, int kind, int skip) { return copy(to, from, bytes, kind); }

PyObject *rt_memcpyAsync(Handle to, Handle from, size_t bytes, int kind, Handle stream, int skip)
{
    return copy(to, from, bytes, kind);
}

PyObject *rt_memcpyPeer(Handle to, int to_device, Handle from, int from_device, size_t bytes, int skip)
{
    return copy(to, from, bytes, DEVICE_TO_DEVICE);
}

PyObject *rt_memcpyPeerAsync(Handle to, int to_device, Handle from, int from_device, size_t bytes, Handle stream,
                             int skip)
{
    return copy(to, from, bytes, DEVICE_TO_DEVICE);
}

PyObject *rt_memset(Handle pointer, int value, size_t bytes, int skip)
{
    memset((void *)pointer, value, bytes);
    Py_RETURN_NONE;
}

PyObject *rt_memsetAsync(Handle pointer, int value, size_t bytes, Handle stream, int skip)
{
    return rt_memset(pointer, value, bytes, skip);
}

PyObject *rt_pointerGetAttributes(Handle pointer, int skip)
{
    return PyObject_CallFunction(pointer_attributes_class, "inni", 0, (Py_ssize_t)pointer, (Py_ssize_t)pointer,
                                 MEMORY_TYPE_DEVICE);
}

int rt_pointerGetMemoryType(Handle pointer, int skip) { return MEMORY_TYPE_DEVICE; }

/* ---- streams and events: whatever was asked for has already been done */

static Handle new_token(void)
{
    static Handle last = 0x1000;
    last += 16;
    return last;
}

static PyObject *synchronize(void)
{
    cpucupy_counters[COUNT_SYNCHRONIZATIONS]++;
    Py_RETURN_NONE;
}

Handle rt_streamCreate(int skip) { return new_token(); }
Handle rt_streamCreateWithFlags(unsigned int flags, int skip) { return new_token(); }
Handle rt_streamCreateWithPriority(unsigned int flags, int priority, int skip) { return new_token(); }
PyObject *rt_streamDestroy(Handle stream, int skip) { Py_RETURN_NONE; }
PyObject *rt_streamSynchronize(Handle stream, int skip) { return synchronize(); }
PyObject *rt_streamQuery(Handle stream, int skip) { Py_RETURN_TRUE; }
PyObject *rt_streamWaitEvent(Handle stream, Handle event, int skip, void *optional) { Py_RETURN_NONE; }
int rt_streamIsCapturing(Handle stream, int skip) { return 0; }
int rt_streamGetPriority(Handle stream, int skip) { return 0; }
unsigned int rt_streamGetFlags(Handle stream, int skip) { return 0; }

Handle rt_eventCreate(int skip) { return new_token(); }
Handle rt_eventCreateWithFlags(unsigned int flags, int skip) { return new_token(); }
PyObject *rt_eventDestroy(Handle event, int skip) { Py_RETURN_NONE; }
PyObject *rt_eventQuery(Handle event, int skip) { Py_RETURN_TRUE; }
PyObject *rt_eventRecord(Handle event, Handle stream, int skip) { Py_RETURN_NONE; }
PyObject *rt_eventSynchronize(Handle event, int skip) { return synchronize(); }
float rt_eventElapsedTime(Handle start, Handle stop, int skip) { return 0.0f; }

/* ---- not there */

REFUSE(PyObject *, NULL, rt_streamBeginCapture, "graph capture")
REFUSE(Handle, 0, rt_streamEndCapture, "graph capture")
REFUSE(Handle, 0, rt_graphInstantiate, "graph capture")
REFUSE(PyObject *, NULL, rt_graphLaunch, "graph capture")
REFUSE(PyObject *, NULL, rt_graphUpload, "graph capture")
REFUSE(PyObject *, NULL, rt_graphDestroy, "graph capture")
REFUSE(PyObject *, NULL, rt_graphExecDestroy, "graph capture")
REFUSE(PyObject *, NULL, rt_graphDebugDotPrint, "graph capture")

REFUSE(PyObject *, NULL, rt_streamAddCallback, "stream callback")
REFUSE(PyObject *, NULL, rt_launchHostFunc, "stream callback")
REFUSE(PyObject *, NULL, rt__launchHostFuncUnmanaged, "stream callback")

REFUSE(Handle, 0, rt_mallocAsync, "stream-ordered allocator")
REFUSE(PyObject *, NULL, rt_freeAsync, "stream-ordered allocator")
REFUSE(Handle, 0, rt_mallocFromPoolAsync, "stream-ordered allocator")
REFUSE(Handle, 0, rt_deviceGetDefaultMemPool, "stream-ordered allocator")
REFUSE(Handle, 0, rt_deviceGetMemPool, "stream-ordered allocator")
REFUSE(PyObject *, NULL, rt_deviceSetMemPool, "stream-ordered allocator")
REFUSE(Handle, 0, rt_memPoolCreate, "stream-ordered allocator")
REFUSE(PyObject *, NULL, rt_memPoolDestroy, "stream-ordered allocator")
REFUSE(PyObject *, NULL, rt_memPoolTrimTo, "stream-ordered allocator")
REFUSE(PyObject *, NULL, rt_memPoolGetAttribute, "stream-ordered allocator")
REFUSE(PyObject *, NULL, rt_memPoolSetAttribute, "stream-ordered allocator")

REFUSE(uintmax_t, 0, rt_createTextureObject, "textures")
REFUSE(uintmax_t, 0, rt_createSurfaceObject, "textures")
REFUSE(Handle, 0, rt_mallocArray, "textures")
REFUSE(Handle, 0, rt_malloc3DArray, "textures")
REFUSE(PyObject *, NULL, rt_memcpy2D, "two-dimensional copy")
REFUSE(PyObject *, NULL, rt_memcpy2DAsync, "two-dimensional copy")
REFUSE(PyObject *, NULL, rt_memcpy3D, "three-dimensional copy")
REFUSE(PyObject *, NULL, rt_memcpy3DAsync, "three-dimensional copy")

REFUSE(PyObject *, NULL, rt_hostRegister, "registration of host memory")
REFUSE(PyObject *, NULL, rt_hostUnregister, "registration of host memory")
REFUSE(PyObject *, NULL, rt_memAdvise, "managed-memory hints")
REFUSE(PyObject *, NULL, rt_memPrefetchAsync, "managed-memory hints")
REFUSE(PyObject *, NULL, rt_deviceEnablePeerAccess, "second device")
REFUSE(PyObject *, NULL, rt_deviceGetPCIBusId, "PCI bus")
REFUSE(int, -1, rt_deviceGetByPCIBusId, "PCI bus")
REFUSE(size_t, (size_t)-1, rt_deviceGetLimit, "device limits")
REFUSE(PyObject *, NULL, rt_deviceSetLimit, "device limits")
