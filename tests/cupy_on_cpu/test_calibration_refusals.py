"""What the stand-in has not says so, instead of giving whatever the memory held."""

import numpy as np
import pytest

from tests.cupy_on_cpu.comparing import assert_same

EMPTY = 'extern "C" __global__ void nothing() {}'


def capture_graph(cp):
    with cp.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()


def cooperative_launch(cp):
    cp.RawKernel(EMPTY, "nothing", enable_cooperative_groups=True)((1,), (1,), ())


UNSUPPORTED = {
    "CUB": lambda cp: cp.cuda.cub.device_reduce(cp.ones(9), 0, None, None, None),
    "accelerators": lambda cp: cp._core.set_routine_accelerators(["cub"]),
    "accelerators of reductions": lambda cp: cp._core.set_reduction_accelerators(["cub"]),
    "partition": lambda cp: cp.partition(cp.arange(100_000), 5),
    "argpartition": lambda cp: cp.argpartition(cp.arange(1000), 5),
    "solve": lambda cp: cp.linalg.solve(cp.eye(3), cp.ones(3)),
    "inv": lambda cp: cp.linalg.inv(cp.eye(3)),
    "svd": lambda cp: cp.linalg.svd(cp.eye(3)),
    "qr": lambda cp: cp.linalg.qr(cp.eye(3)),
    "cholesky": lambda cp: cp.linalg.cholesky(cp.eye(3)),
    "eigh": lambda cp: cp.linalg.eigh(cp.eye(3)),
    "det": lambda cp: cp.linalg.det(cp.eye(3)),
    "fft": lambda cp: cp.fft.fft(cp.ones(8)),
    "rfft2": lambda cp: cp.fft.rfft2(cp.ones((8, 8))),
    "cupy.random.rand": lambda cp: cp.random.rand(3),
    "cupy.random.seed": lambda cp: cp.random.seed(3),
    "RandomState": lambda cp: cp.random.RandomState(3),
    "raw random bits": lambda cp: cp.random.XORWOW(3).random_raw(3),
    "graph capture": capture_graph,
    "cooperative launch": cooperative_launch,
    "stream callback": lambda cp: cp.cuda.Stream().launch_host_func(print, 1),
    "stream-ordered allocator": lambda cp: cp.cuda.MemoryAsyncPool(),
    "cuBLAS trsm": lambda cp: cp.cuda.cublas.strsm(),
    "two-dimensional copy": lambda cp: cp.cuda.runtime.memcpy2D(0, 0, 0, 0, 0, 0, 0),
    "compiled modules": lambda cp: cp.RawModule(path="kernel.cubin").get_function("kernel"),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_is_not_there_raises(cp, what):
    with pytest.raises(NotImplementedError, match="the CPU stand-in has no"):
        UNSUPPORTED[what](cp)


def test_short_partitions_are_sorts(cp, rng):
    x = rng.permutation(50)
    assert_same(cp.partition(cp.asarray(x), 5), np.sort(x))
