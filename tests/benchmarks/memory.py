"""Memory of the first training step of an MLP with 50 layers: width 512, 256 rows, float32."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .environment import TORCH_INSTALLED, blas_threads
from .timing import in_fresh_process, median, peak_memory, reset_peak_memory

ROUNDS = 3
LAYERS = 50
WIDTH = 512
ROWS = 256
LR = 0.01
PHASES = ("forward", "backward", "update")
PARAMETER_BYTES = LAYERS * (WIDTH + 1) * WIDTH * 4
# What the gradients are made of: the input of every layer but the first, which is the data, and the softmax.
# Which units a rectifier let through shows in the input of the next layer.
ACTIVATION_BYTES = LAYERS * ROWS * WIDTH * 4
# Backward can drop a layer's input once it has the layer's gradient, which is the larger one: the sum is
# largest at the end.
LEAST = {"forward": ACTIVATION_BYTES, "backward": PARAMETER_BYTES, "update": PARAMETER_BYTES}
LIVE_BAR = "bar: 1.00 x"


def data() -> tuple[np.ndarray, np.ndarray]:
    """Random rows and labels."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, WIDTH)).astype(np.float32), rng.integers(0, WIDTH, ROWS)


# A training step as a generator: it has made the parameters at its first yield, and goes through a phase of
# the step to each of the others.


def engine_step(X: np.ndarray, y: np.ndarray, layers: int) -> Iterator[None]:
    import nn

    model = nn.MLP([WIDTH] * (layers + 1), rng=0)
    optimizer = nn.SGD(model.parameters(), lr=LR)
    yield
    loss = nn.cross_entropy(model(X), y)
    yield
    loss.backward()
    yield
    optimizer.step()
    yield


def torch_step(X: np.ndarray, y: np.ndarray, layers: int) -> Iterator[None]:
    import torch

    torch.set_num_threads(blas_threads())
    modules: list[torch.nn.Module] = []
    for _ in range(layers):
        modules += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()]
    model = torch.nn.Sequential(*modules[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    rows, labels = torch.from_numpy(X), torch.from_numpy(y)
    yield
    loss = torch.nn.functional.cross_entropy(model(rows), labels)
    yield
    loss.backward()
    yield
    optimizer.step()
    yield


StepMaker = Callable[[np.ndarray, np.ndarray, int], Iterator[None]]


def resident_growth(make: StepMaker) -> list[int]:
    """Bytes by which the process's memory, at its peak so far, exceeded that before the step, after each phase.

    Freed memory that the process had kept and uses again does not show: 1 or 2 MB here. Gaps between arrays
    do, and differ from run to run where the C library's allocator is used as PyTorch uses it.
    """
    X, y = data()
    for _ in make(X, y, 1):  # buffers of the BLAS library, modules that are imported late
        pass
    step = make(X, y, LAYERS)
    next(step)
    reset_peak_memory()
    before = peak_memory()
    return [peak_memory() - before for _ in step]


def traced(make: StepMaker) -> tuple[list[int], list[int]]:
    """The same in bytes that Python and NumPy allocated, and the bytes in use after each phase, parameters included."""
    X, y = data()
    for _ in make(X, y, 1):
        pass
    gc.collect()
    tracemalloc.start()
    step = make(X, y, LAYERS)
    next(step)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    memory = [tracemalloc.get_traced_memory() for _ in step]
    return [peak - before for _, peak in memory], [live for live, _ in memory]


def show(label: str, sizes: Sequence[int], least: int, bar: str = "") -> None:
    size = median(sizes)
    spread = f"({min(sizes) / 1e6:.2f} to {max(sizes) / 1e6:.2f})" if len(sizes) > 1 else ""
    print(f"  {label:<48} {size / 1e6:8.2f} MB {spread:<18} {size / least:.2f} x {least / 1e6:.2f} MB  {bar}".rstrip())


def run(rounds: int) -> None:
    makers: dict[str, StepMaker] = {"microgradnd": engine_step}
    if TORCH_INSTALLED:
        makers["PyTorch"] = torch_step
    else:
        print("  PyTorch is not installed")
    print(
        f"  parameters {PARAMETER_BYTES / 1e6:.2f} MB; least growth: forward {ACTIVATION_BYTES / 1e6:.2f} MB (saved "
        f"activations), then {PARAMETER_BYTES / 1e6:.2f} MB (gradients)"
    )
    growth: dict[str, list[list[int]]] = {who: [] for who in makers}
    for _ in range(rounds):
        for who, make in makers.items():
            growth[who].append(in_fresh_process(resident_growth, make))
    peaks, live = in_fresh_process(traced, engine_step)
    for i, phase in enumerate(PHASES):
        for who in makers:
            show(f"peak up to {phase}, resident: {who}", [g[i] for g in growth[who]], LEAST[phase])
        show(f"peak up to {phase}, allocated: microgradnd", [peaks[i]], LEAST[phase])
    show("in use after backward (parameters and gradients)", [live[1]], 2 * PARAMETER_BYTES, LIVE_BAR)
