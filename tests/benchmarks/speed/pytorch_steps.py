"""The workloads in PyTorch, eager or by torch.compile."""

from __future__ import annotations

import itertools
from typing import Any

from ..environment import blas_threads
from . import workloads as w
from .workloads import Steps, initial_parameters, labelled_batches, normal, sublayer_shape, token_batches


def pytorch(workload: str, compiled: bool, device: str = "cpu") -> Steps:
    import torch

    torch.set_num_threads(blas_threads())
    torch.set_default_device(device)
    if workload == "elementwise":
        return elementwise(compiled)
    if workload in ("ffn", "block"):
        return sublayer(workload, compiled)
    return training(workload, compiled)


def blocks(width: int, inner: int, heads: int) -> Any:
    """A transformer block, or without heads its feed-forward sublayer."""
    import torch
    from torch.nn import functional as F

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm2 = torch.nn.LayerNorm(width)
            self.linear1, self.linear2 = torch.nn.Linear(width, inner), torch.nn.Linear(inner, width)
            if heads:
                self.norm1 = torch.nn.LayerNorm(width)
                self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            if heads:
                B, T, _ = x.shape
                parts = self.qkv(self.norm1(x)).split(width, dim=2)
                q, k, v = (y.view(B, T, heads, -1).transpose(1, 2) for y in parts)
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + self.out(y.transpose(1, 2).reshape(B, T, width))
            return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))

    return Block()


def language_model() -> Any:
    import torch
    from torch.nn import functional as F

    width = w.CHAR["width"]

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Parameter(torch.randn(w.CHAR["characters"], width) * 0.02)
            self.positions = torch.nn.Parameter(torch.randn(w.CHAR["length"], width) * 0.02)
            layers = [blocks(width, 4 * width, w.CHAR["heads"]) for _ in range(w.CHAR["layers"])]
            self.blocks = torch.nn.Sequential(*layers)
            self.norm = torch.nn.LayerNorm(width)

        def forward(self, tokens: Any) -> Any:
            x = self.blocks(F.embedding(tokens, self.tokens) + self.positions)
            return self.norm(x) @ self.tokens.T

    return Model()


def training(workload: str, compiled: bool) -> Steps:
    import torch
    from torch.nn import functional as F

    if workload == "char_lm":
        model, data = language_model(), token_batches()
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": w.DECAY},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer: Any = torch.optim.AdamW(groups, w.CHAR_LR, w.CHAR_BETAS, fused=True)
    else:
        data = labelled_batches(workload)
        layers: list[Any] = []
        for a, b in itertools.pairwise(w.SIZES[workload]):
            layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), initial_parameters(workload), strict=True):
                parameter.copy_(torch.tensor(values.T))  # its weights are (out, in)
        if workload == "tiny":
            optimizer = torch.optim.SGD(model.parameters(), w.LR[workload])
        else:
            optimizer = torch.optim.Adam(model.parameters(), w.LR[workload], w.BETAS, fused=True)
    call: Any = torch.compile(model) if compiled else model
    batches = itertools.cycle([(torch.tensor(X), torch.tensor(y)) for X, y in data])

    def step() -> Any:
        X, y = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(call(X).flatten(0, -2), y.flatten())
        loss.backward()
        if workload == "char_lm":
            torch.nn.utils.clip_grad_norm_(model.parameters(), w.MAX_NORM)
        optimizer.step()
        return loss.detach()

    return {workload: step}


def sublayer(workload: str, compiled: bool) -> Steps:
    import torch

    if workload == "ffn":
        model = blocks(w.WIDTH, w.INNER, 0)
    else:
        model = blocks(w.BLOCK["width"], 4 * w.BLOCK["width"], w.BLOCK["heads"])
    shape = sublayer_shape(workload)
    inputs, g = torch.tensor(normal(*shape)).requires_grad_(), torch.tensor(normal(*shape, seed=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    call: Any = torch.compile(model) if compiled else model

    def step() -> Any:
        optimizer.zero_grad()
        inputs.grad = None
        output = call(inputs)
        output.backward(g)
        optimizer.step()
        return output

    return {workload: step}


def elementwise(compiled: bool) -> Steps:
    import torch
    from torch.nn import functional as F

    matrix = torch.tensor(normal(w.SIDE, w.SIDE))
    weight, bias = torch.ones(w.SIDE), torch.zeros(w.SIDE)
    parameter = torch.nn.Parameter(matrix.clone())
    adam = torch.optim.Adam([parameter], fused=True)
    parameter.grad = matrix
    steps: dict[str, Any] = {
        "gelu": lambda: F.gelu(matrix),
        "softmax": lambda: torch.softmax(matrix, -1),
        "layer norm": lambda: F.layer_norm(matrix, (w.SIDE,), weight, bias),
        "adam": adam.step,
    }
    return {name: torch.compile(step) for name, step in steps.items()} if compiled else steps
