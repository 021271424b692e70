"""Peak memory of attention, forward and backward, as the sequence grows: B = 1, 4 heads of 32, float32, causal."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np

from .environment import TORCH_INSTALLED, blas_threads
from .timing import in_fresh_process, median, peak_memory, reset_peak_memory

ROUNDS = 3
LENGTHS = (512, 1024, 2048, 4096)
HEADS, WIDTH = 4, 32
WARM = 288  # the length of a first call, which loads kernels


def inputs(T: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, HEADS, T, WIDTH)).astype(np.float32) for _ in range(3)]


def engine_step(T: int) -> None:
    import microgradnd as mg

    q, k, v = (mg.tensor(x, requires_grad=True) for x in inputs(T))
    mg.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def torch_step(T: int) -> None:
    import torch

    torch.set_num_threads(blas_threads())
    q, k, v = (torch.from_numpy(x).requires_grad_() for x in inputs(T))
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()


def allocated(T: int) -> int:
    """Bytes that Python and NumPy had allocated at most, inputs and gradients included."""
    engine_step(WARM)
    gc.collect()
    tracemalloc.start()
    engine_step(T)
    return tracemalloc.get_traced_memory()[1]


def resident(library: str, T: int) -> int:
    """Bytes by which the process's memory grew at its peak."""
    step = {"microgradnd": engine_step, "PyTorch": torch_step}[library]
    step(WARM)
    reset_peak_memory()
    before = peak_memory()
    step(T)
    return peak_memory() - before


def run(rounds: int) -> None:
    libraries = ["microgradnd", *(["PyTorch"] if TORCH_INSTALLED else [])]
    print(
        f"  {'T':>6} {'all scores':>12} {'allocated':>12}" + "".join(f"{f'resident, {who}':>26}" for who in libraries)
    )
    last = 0
    for T in LENGTHS:
        scores = HEADS * T * T * 4
        peak = in_fresh_process(allocated, T)
        growth = [median([in_fresh_process(resident, who, T) for _ in range(rounds)]) for who in libraries]
        factor = f"  allocated: {peak / last:.2f} x that of {T // 2}" if last else ""
        last = peak
        print(
            f"  {T:6} {scores / 1e6:9.1f} MB {peak / 1e6:9.1f} MB"
            + "".join(f"{g / 1e6:23.1f} MB" for g in growth)
            + factor,
            flush=True,
        )
