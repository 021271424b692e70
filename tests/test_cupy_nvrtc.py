"""NVRTC accepts every CUDA kernel, for each architecture and dtype, and keeps all of its numbers in registers."""

from __future__ import annotations

import pytest

from tests import cupy_on_cpu, nvrtc

missing = nvrtc.unavailable() or cupy_on_cpu.unavailable()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"NVRTC can't be used: {missing}")


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_every_kernel_compiles_without_spills(architecture: int) -> None:
    found = nvrtc.usages(architecture)
    assert {name for _, _, names in nvrtc.all_sources() for name in names} == {usage.kernel for usage in found}
    assert not [usage for usage in found if usage.spills or usage.stack]


def test_what_does_not_compile_is_an_error() -> None:
    compiler = nvrtc.Compiler()
    with pytest.raises(nvrtc.CompileError, match="identifier"):
        compiler("broken", "__global__ void f(float* x) { *x = nothing; }", ("f",), 80)


def test_spills_are_seen() -> None:
    code = """
    __global__ void __launch_bounds__(1024, 2) f(float* x) {
        float y[64];
        #pragma unroll
        for (int i = 0; i < 64; i++) y[i] = x[i * blockDim.x + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 64; i++) x[(i * 7 + 1) % 64 * blockDim.x + threadIdx.x] = y[i] * y[(i + 1) % 64];
    }
    """
    (usage,) = nvrtc.Compiler()("spilling", code, ("f",), 80)
    assert usage.registers <= 32
    assert usage.spills > 0
