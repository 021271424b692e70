"""Kernel launches of a training step on a GPU, counted on host memory, beside PyTorch's operations for the same."""

from __future__ import annotations

import functools
from importlib.util import find_spec
from typing import Any

import microgradnd as mg
from tests import cupy_on_cpu

from .speed import workloads as w
from .speed.engine_steps import engine
from .speed.pytorch_steps import pytorch
from .speed.workloads import Step

ROUNDS = 1
# The counts depend on the operations alone, and the stand-in takes its time for every element.
SMALL: dict[str, Any] = {"WIDTH": 32, "INNER": 64, "TOKENS": 16}
SMALLER = {"BLOCK": {"width": 32, "batch": 2, "length": 16}, "CHAR": {"width": 32, "batch": 2, "length": 16}}
SIZES = {"tiny": (16, 24, 10), "mlp": (16, 24, 12, 10)}
VIEWS = (
    "alias", "as_strided", "detach", "expand", "permute", "reshape", "select", "slice", "split", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_reshape_alias", "empty_like", "empty",
)  # fmt: skip


def ours(step: Step) -> tuple[int, int]:
    """Launches and library calls of a step that has been done before."""
    for _ in range(4):
        step()
    before = cupy_on_cpu.counters()
    step()
    after = cupy_on_cpu.counters()
    return after["launches"] - before["launches"], after["library_calls"] - before["library_calls"]


def theirs(step: Step) -> int:
    """Operations of PyTorch's that compute: at least a launch or a product each."""
    from torch.utils._python_dispatch import TorchDispatchMode

    step()
    found: list[str] = []

    class Count(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Count():
        step()
    return sum(name not in VIEWS for name in found)


def run(rounds: int) -> None:
    if missing := cupy_on_cpu.unavailable():
        print(f"  {missing}")
        return
    cupy_on_cpu.install()
    for name, value in SMALL.items():
        setattr(w, name, value)
    for name, values in SMALLER.items():
        getattr(w, name).update(values)
    w.SIZES.update(SIZES)
    print("  launches + library calls of a step; PyTorch: operations of a step that compute")
    for workload in ("tiny", "mlp", "ffn", "block", "char_lm"):
        counts = {}
        for title, kernels, captured in (
            ("array functions", "numpy", False),
            ("kernels", "auto", False),
            ("captured", "auto", True),
        ):
            with mg.device("cuda"):
                counts[title] = ours(engine(workload, kernels, captured)[workload])
        text = ", ".join(f"{title} {a} + {b}" for title, (a, b) in counts.items())
        if find_spec("torch"):
            import torch

            plain = torch.optim.SGD
            torch.optim.SGD = functools.partial(plain, foreach=True)  # type: ignore[misc]  # as on a GPU
            try:
                text += f", PyTorch {theirs(pytorch(workload, False)[workload])}"
            finally:
                torch.optim.SGD = plain  # type: ignore[misc]
        print(f"  {workload:<10}{text}", flush=True)
