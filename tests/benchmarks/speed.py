"""Training steps and kernels against PyTorch: time, page faults and memory; float32."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import resource
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .environment import TORCH_INSTALLED, blas_threads
from .timing import Step, Worker, in_fresh_process, interleaved, line, peak_memory, ratio, reset_peak_memory

ROUNDS = 15
TURN = 400  # milliseconds of one candidate before the next has its turn
PAUSE = 60
WIDTH, INNER, TOKENS = 512, 2048, 2048  # of the feed-forward sublayer
BLOCK = {"width": 256, "heads": 8, "batch": 8, "length": 256}
SIDE = 2048  # of the matrices that elementwise kernels go through

Steps = Mapping[str, Step]


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def engine(workload: str, kernels: str) -> Steps:
    """A step of microgradnd, by compiled kernels ("numba") or without ("numpy")."""
    import microgradnd as mg
    import nn

    mg.kernels(kernels)
    model: nn.Module
    if workload == "mlp":
        model = nn.MLP([784, 512, 256, 10], rng=0)
        x, y = normal(128, 784), np.arange(128) % 10
        optimizer: nn.Optimizer = nn.Adam(model.parameters())

        def step() -> None:
            loss = nn.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return {workload: step}
    if workload in ("ffn", "block"):
        if workload == "ffn":

            class FFN(nn.Module):
                def __init__(self) -> None:
                    self.norm, self.feed_forward = nn.LayerNorm(WIDTH), nn.FeedForward(WIDTH, INNER, rng=0)

                def forward(self, x: mg.Tensor) -> mg.Tensor:
                    return x + self.feed_forward(self.norm(x))

            model, shape = FFN(), (TOKENS, WIDTH)
        else:
            model = nn.TransformerBlock(BLOCK["width"], BLOCK["heads"], causal=True, rng=0)
            shape = (BLOCK["batch"], BLOCK["length"], BLOCK["width"])
        inputs, g = mg.tensor(normal(*shape), requires_grad=True), normal(*shape, seed=1)
        optimizer = nn.SGD(model.parameters(), lr=1e-7)

        def step() -> None:
            optimizer.zero_grad()
            inputs.zero_grad()
            model(inputs).backward(g)
            optimizer.step()

        return {workload: step}
    matrix = normal(SIDE, SIDE)
    weight, bias = np.ones(SIDE, np.float32), np.zeros(SIDE, np.float32)
    parameter = mg.tensor(matrix, requires_grad=True)
    adam = nn.Adam([parameter])
    parameter.grad = mg.tensor(matrix)
    calls: dict[str, Step] = {
        "gelu": lambda: mg.gelu(matrix),
        "softmax": lambda: mg.softmax(matrix),
        "layer norm": lambda: mg.layer_norm(matrix, weight, bias),
        "adam": adam.step,
    }
    return calls


def pytorch(workload: str, compiled: bool) -> Steps:
    """The same in PyTorch, eager or by torch.compile."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(blas_threads())
    model: Any
    if workload == "mlp":
        sizes = [784, 512, 256, 10]
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
        optimizer: Any = torch.optim.Adam(model.parameters(), fused=True)
        x, y = torch.from_numpy(normal(128, 784)), torch.arange(128) % 10
        call = torch.compile(model) if compiled else model

        def step() -> None:
            loss = F.cross_entropy(call(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return {workload: step}
    if workload in ("ffn", "block"):
        width, heads = (WIDTH, 1) if workload == "ffn" else (BLOCK["width"], BLOCK["heads"])

        class Block(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
                self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
                inner = INNER if workload == "ffn" else 4 * width
                self.linear1, self.linear2 = torch.nn.Linear(width, inner), torch.nn.Linear(inner, width)

            def forward(self, x: Any) -> Any:
                if workload == "block":
                    B, T, width = x.shape
                    parts = self.qkv(self.norm1(x)).split(width, dim=2)
                    q, k, v = (y.view(B, T, heads, -1).transpose(1, 2) for y in parts)
                    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                    x = x + self.out(y.transpose(1, 2).reshape(B, T, width))
                return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))

        model = Block()
        if workload == "ffn":
            del model.norm1, model.qkv, model.out
        shape = (TOKENS, WIDTH) if workload == "ffn" else (BLOCK["batch"], BLOCK["length"], BLOCK["width"])
        inputs, g = torch.from_numpy(normal(*shape)).requires_grad_(), torch.from_numpy(normal(*shape, seed=1))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
        call = torch.compile(model) if compiled else model

        def step() -> None:
            optimizer.zero_grad()
            inputs.grad = None
            call(inputs).backward(g)
            optimizer.step()

        return {workload: step}
    matrix = torch.from_numpy(normal(SIDE, SIDE))
    weight, bias = torch.ones(SIDE), torch.zeros(SIDE)
    parameter = torch.nn.Parameter(matrix.clone())
    adam = torch.optim.Adam([parameter], fused=True)
    parameter.grad = matrix
    calls: dict[str, Step] = {
        "gelu": lambda: F.gelu(matrix),
        "softmax": lambda: torch.softmax(matrix, -1),
        "layer norm": lambda: F.layer_norm(matrix, (SIDE,), weight, bias),
        "adam": adam.step,
    }
    return calls


def products(workload: str) -> Steps:
    """The six matrix products of the feed-forward sublayer alone, into warm buffers."""
    x, w1, w2 = normal(TOKENS, WIDTH), normal(WIDTH, INNER), normal(INNER, WIDTH)
    h, out, dw1, dw2 = (np.empty_like(a) for a in (x @ w1, x, w1, w2))

    def step() -> None:
        np.matmul(x, w1, out=h)
        np.matmul(h, w2, out=out)
        np.matmul(h.T, x, out=dw2)
        np.matmul(x, w2.T, out=h)
        np.matmul(x.T, h, out=dw1)
        np.matmul(h, w1.T, out=out)

    return {workload: step}


def page_faults(step: Step, count: int) -> float:
    """Of a warm step."""
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count


def memory_growth(modules: list[str], make: Callable[[], Steps], name: str) -> int:
    """Bytes that a model and its steps take over the process that has only imported its library."""
    for module in modules:
        importlib.import_module(module)
    reset_peak_memory()
    idle = peak_memory()
    step = make()[name]
    for _ in range(3):
        step()
    return peak_memory() - idle


def run(rounds: int) -> None:
    for workload, names, bar in (
        ("mlp", ["mlp"], "bar: numba 0.9 x, numpy 1.0 x PyTorch"),
        ("ffn", ["ffn"], "bar: 1.08 x products, 0.92 x PyTorch"),
        ("block", ["block"], "bar: 0.9 x PyTorch"),
        ("kernels", ["gelu", "softmax", "layer norm", "adam"], "bar: 0.8 x PyTorch"),
    ):
        makers: dict[str, Callable[[], Steps]] = {
            f"microgradnd, {kernels}": functools.partial(engine, workload, kernels)
            for kernels in (["numpy", "numba"] if importlib.util.find_spec("numba") else ["numpy"])
        }
        if TORCH_INSTALLED:
            makers["PyTorch"] = functools.partial(pytorch, workload, False)
            if workload in ("ffn", "block") and shutil.which("g++"):
                makers["torch.compile"] = functools.partial(pytorch, workload, True)
        if workload == "ffn":
            makers["six products"] = functools.partial(products, workload)
        workers = {who: Worker(make) for who, make in makers.items()}
        times = interleaved(workers, names, rounds, TURN, PAUSE)
        faults = {(name, who): worker(page_faults, name, 10) for name in names for who, worker in workers.items()}
        for worker in workers.values():
            worker.close()
        print(f"  {workload}: {bar}")
        for name in names:
            for who in makers:
                figures = [
                    ratio(times[name, who], times[name, other], other)
                    for other in ("PyTorch", "six products")
                    if other in makers and other != who
                ]
                line(
                    f"{name}, {who}", times[name, who], "ms", "; ".join(figures), f"{faults[name, who]:.0f} page faults"
                )
        if workload in ("ffn", "block"):
            for who, make in makers.items():
                modules = ["torch"] if "orch" in who else ["microgradnd", "nn"]
                modules += ["microgradnd.kernels.numba_fused"] if who.endswith("numba") else []
                growth = in_fresh_process(memory_growth, modules, make, workload)
                print(f"  {workload}, {who}: memory grows by {growth / 1e6:.1f} MB")
