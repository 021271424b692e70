"""Steps and kernels beside hand-written NumPy, PyTorch, JAX, MyGrad and HIPS autograd: time, page faults, memory.

One run makes the whole table: ``python -m tests.benchmarks speed``; ``speed.png`` and ``speed.md`` are written to the
directory that the environment variable ``SPEED_OUTPUT`` names, if it is set.
"""

from __future__ import annotations

import functools
import importlib
import os
import resource
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..timing import Worker, in_fresh_process, interleaved, line, median, peak_memory, ratio, reset_peak_memory, results
from . import numpy_transformer
from .engine_steps import engine
from .jax_steps import jax_jit
from .numpy_steps import by_hand, products
from .peer_steps import PEERS, peer
from .pytorch_steps import pytorch
from .table import write
from .workloads import WORKLOADS, Step, Steps, Workload

ROUNDS = 15
PAUSE = 160  # milliseconds
AGREEMENT = 1e-3  # relative, of the losses of the first steps
COMPARED = ("NumPy by hand", "six products", "memory alone", "PyTorch", "torch.compile", "JAX")


def memory_alone(workload: str) -> Steps:
    """See traffic: imported where it runs, as it needs Numba."""
    traffic: Steps = importlib.import_module(".traffic", __package__).traffic(workload)
    return traffic


def candidates(workload: Workload) -> dict[str, Callable[[], Steps]]:
    """Who takes part, each with a function that makes its steps in a process of its own."""
    name = workload.name
    found: dict[str, Callable[[], Steps]] = {}
    for kernels in ("numpy", "numba") if find_spec("numba") else ("numpy",):
        found[f"eager, {kernels}"] = functools.partial(engine, name, kernels)
        if name != "elementwise":
            found[f"captured, {kernels}"] = functools.partial(engine, name, kernels, True)
    if name in ("tiny", "mlp"):
        found["NumPy by hand"] = functools.partial(by_hand, name)
    if name in ("ffn", "block"):
        found["NumPy by hand"] = functools.partial(numpy_transformer.sublayer, name)
    if name == "char_lm":
        found["NumPy by hand"] = functools.partial(numpy_transformer.language_model, name)
    if name != "elementwise":
        for library, module in PEERS.items():
            if find_spec(module):
                found[library] = functools.partial(peer, library, name)
    if name == "ffn":
        found["six products"] = functools.partial(products, name)
    if name == "elementwise" and find_spec("numba"):
        found["memory alone"] = functools.partial(memory_alone, name)
    if find_spec("torch"):
        found["PyTorch"] = functools.partial(pytorch, name, False)
        if shutil.which("g++"):
            found["torch.compile"] = functools.partial(pytorch, name, True)
    if find_spec("jax"):
        found["JAX"] = functools.partial(jax_jit, name)
    return found


def page_faults(step: Step, count: int) -> float:
    """Of a warm step."""
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count


def modules(who: str) -> list[str]:
    """What a candidate imports before its memory is looked at."""
    if who in ("PyTorch", "torch.compile"):
        return ["torch"]
    if who == "JAX":
        return ["jax.numpy"]
    if who in ("NumPy by hand", "six products"):
        return ["numpy"]
    if who in PEERS:
        return [PEERS[who]]
    compiled = ["numba_compiler", "numba_fused"] if who.endswith("numba") else []  # in this order, as they are loaded
    return ["microgradnd", "nn", *(f"microgradnd.kernels.{name}" for name in compiled)]


def memory_growth(names: list[str], make: Callable[[], Steps], step_name: str) -> int:
    """Bytes that a model and its steps take over the process that has only imported its library."""
    for name in names:
        importlib.import_module(name)
    reset_peak_memory()
    idle = peak_memory()
    step = make()[step_name]
    for _ in range(4):
        step()
    return peak_memory() - idle


def check_losses(workload: Workload, workers: dict[str, Worker]) -> None:
    losses = {who: np.array(worker(results, workload.name, 5)) for who, worker in workers.items()}
    expected = losses["NumPy by hand"]
    for who, found in losses.items():
        if not np.allclose(found, expected, rtol=AGREEMENT):
            raise RuntimeError(f"speed: {who} computes other losses: {found}, expected {expected}")


def run(rounds: int) -> None:
    rows: list[tuple[str, dict[str, list[float]]]] = []
    for workload in WORKLOADS:
        makers = candidates(workload)
        workers = {who: Worker(make) for who, make in makers.items()}
        if workload.losses_agree:
            check_losses(workload, workers)
        times = interleaved(workers, workload.names, rounds, workload.turn, PAUSE)
        faults = {(n, who): worker(page_faults, n, 10) for n in workload.names for who, worker in workers.items()}
        for worker in workers.values():
            worker.close()
        print(f"  {workload.title}: {workload.bars}")
        for name in workload.names:
            unit = "us" if median(times[name, "PyTorch" if "PyTorch" in makers else "eager, numpy"]) < 1e-3 else "ms"
            for who in makers:
                figures = [ratio(times[name, who], times[name, other], other) for other in COMPARED if other in makers]
                own = who.startswith(("eager", "captured"))
                shown = "; ".join(figures) if own else ""
                line(f"{name}, {who}", times[name, who], unit, shown, f"{faults[name, who]:.0f} page faults")
            title = f"{workload.title}: {name}" if len(workload.names) > 1 else workload.title
            rows.append((title, {who: times[name, who] for who in makers}))
        if workload.name in ("mlp", "ffn", "block", "char_lm"):
            for who, make in makers.items():
                growth = in_fresh_process(memory_growth, modules(who), make, workload.name)
                print(f"  {workload.name}, {who}: memory grows by {growth / 1e6:.1f} MB")
    if output := os.environ.get("SPEED_OUTPUT"):
        write(Path(output), rows)
