"""Kernels of our own on the CPU: they run as on a device, and the faults of a wrong one show."""

import numpy as np
import pytest

from tests.cupy_on_cpu import counters
from tests.cupy_on_cpu.comparing import assert_same, sample

SOFTMAX = r"""
extern "C" __global__ void softmax(const float *x, float *y, int columns)
{
    extern __shared__ float partial[];
    x += blockIdx.x * columns;
    y += blockIdx.x * columns;
    float largest = -INFINITY;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) largest = max(largest, x[i]);
    partial[threadIdx.x] = largest;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] = max(partial[threadIdx.x], partial[threadIdx.x + half]);
        __syncthreads();
    }
    largest = partial[0];
    __syncthreads();
    float sum = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += expf(x[i] - largest);
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    for (int i = threadIdx.x; i < columns; i += blockDim.x) y[i] = expf(x[i] - largest) / partial[0];
}
"""


def run_softmax(cp, source, x):
    kernel = cp.RawKernel(source, "softmax")
    y = cp.empty_like(x)
    kernel((x.shape[0],), (64,), (x, y, np.int32(x.shape[1])), shared_mem=64 * 4)
    return y.get()


def test_a_missing_barrier_is_seen(cp, rng):
    x = rng.standard_normal((5, 100)).astype("float32")
    exponentials = np.exp(x - x.max(axis=1, keepdims=True))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run_softmax(cp, SOFTMAX, cp.asarray(x)), expected, rtol=1e-5)
    wrong = run_softmax(cp, SOFTMAX.replace("__syncthreads();", ""), cp.asarray(x))
    assert not np.allclose(wrong, expected, rtol=1e-2)


@pytest.mark.parametrize("size", [32, 96, 256, 1024])
def test_warp_shuffles(cp, size):
    source = r"""
    extern "C" __global__ void warp_sums(int *out)
    {
        int sum = threadIdx.x;
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffff, sum, offset);
        unsigned odd = __ballot_sync(0xffffffff, threadIdx.x % 2);
        if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = odd == 0xaaaaaaaa ? sum : -1;
    }"""
    out = cp.empty(size // 32, "int32")
    cp.RawKernel(source, "warp_sums")((1,), (size,), (out,))
    np.testing.assert_array_equal(out.get(), np.arange(size).reshape(-1, 32).sum(axis=1))


STATIC_SHARED = r"""
extern "C" __global__ void stale(unsigned char *out, int write)
{
    __shared__ unsigned char memory[64];
    if (write) memory[threadIdx.x] = 1;
    out[blockIdx.x * blockDim.x + threadIdx.x] = memory[threadIdx.x];
}"""


def test_shared_memory_is_poisoned(cp):
    kernel = cp.RawKernel(STATIC_SHARED, "stale")
    out = cp.zeros((3, 64), "uint8")
    kernel((3,), (64,), (out, np.int32(1)))
    assert (out == 1).all()
    kernel((3,), (64,), (out, np.int32(0)))
    assert (out == 0xA5).all()


EMPTY = 'extern "C" __global__ void nothing() {}'


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [((1,), (2048,), 0), ((1,), (32, 64), 0), ((1,), (1, 1, 65), 0), ((1, 70_000), (1,), 0)] + [((1,), (1,), 60_000)],
)
def test_launches_that_no_device_accepts(cp, grid, block, shared):
    kernel = cp.RawKernel(EMPTY, "nothing")
    kernel((1,), (1024,), ())
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        kernel(grid, block, (), shared_mem=shared)


def test_kernels_that_do_not_compile(cp):
    with pytest.raises(cp.cuda.compiler.CompileException, match="was not declared"):
        cp.RawKernel('extern "C" __global__ void broken() { undeclared = 1; }', "broken")((1,), (1,), ())
    with pytest.raises(RuntimeError, match="CUDA_ERROR_NOT_FOUND"):
        cp.RawKernel(EMPTY, "something")((1,), (1,), ())


def test_options_templates_and_globals(cp):
    source = r"""
    __constant__ float offset[1];
    template <class T> __global__ void scale(T *x, int n)
    {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) x[i] = x[i] * FACTOR + offset[0];
    }"""
    module = cp.RawModule(code=source, options=("-DFACTOR=3",), name_expressions=("scale<float>", "scale<double>"))
    offset = cp.ndarray((1,), "float32", module.get_global("offset"))
    offset[...] = 0.5
    for dtype, name in (("float32", "scale<float>"), ("float64", "scale<double>")):
        x = cp.arange(10, dtype=dtype)
        module.get_function(name)((2,), (8,), (x, np.int32(10)))
        assert_same(x, np.arange(10, dtype=dtype) * 3 + 0.5)


def test_elementwise_reduction_and_fused_kernels(cp, rng):
    x, y = sample(rng, (4, 5), "float32"), sample(rng, (5,), "float32")
    squared = cp.ElementwiseKernel("T x, T y", "T z", "z = (x - y) * (x - y)", "squared_difference")
    assert_same(squared(cp.asarray(x), cp.asarray(y)), (x - y) * (x - y))
    norm = cp.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "norm_of_row")
    assert_same(norm(cp.asarray(x), axis=1), np.sqrt((x * x).sum(axis=1)))

    def gelu(x):
        return 0.5 * x * (1 + cp.tanh(0.79788456 * (x + 0.044715 * x * x * x)))

    before = counters()["launches"]
    fused = cp.fuse(gelu)(cp.asarray(x))
    assert counters()["launches"] == before + 1
    assert_same(fused, 0.5 * x * (1 + np.tanh(np.float32(0.79788456) * (x + np.float32(0.044715) * x * x * x))))
