"""What each layer and a training step ask of a GPU: launches and products pinned, no copies, nothing waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn

D, B, T = 32, 2, 16
# Launches of our kernels and CuPy's, and library calls (products by cuBLAS), of forward and of backward. A change
# here is a change of speed: fewer are welcome, more need a reason.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], tuple[int, int]]] = {
    "Linear": (lambda: nn.Linear(D, D, rng=0), (1, 1), (3, 2)),
    "Linear and ReLU": (lambda: nn.MLP([D, D, D], rng=0), (2, 2), (5, 4)),
    "LayerNorm": (lambda: nn.LayerNorm(D), (1, 0), (3, 0)),
    "RMSNorm": (lambda: nn.RMSNorm(D), (1, 0), (3, 0)),
    "GELU": (nn.GELU, (1, 0), (2, 0)),
    "SiLU": (nn.SiLU, (1, 0), (2, 0)),
    "Softmax": (nn.Softmax, (1, 0), (2, 0)),
    "Dropout": (lambda: nn.Dropout(0.5, rng=0), (1, 0), (2, 0)),
    "FeedForward": (lambda: nn.FeedForward(D, 4 * D, rng=0), (2, 2), (5, 4)),
    "gated FeedForward": (lambda: nn.FeedForward(D, 4 * D, nn.SiLU, gated=True, rng=0), (4, 3), (7, 6)),
    "MultiHeadAttention": (lambda: nn.MultiHeadAttention(D, 4, rng=0), (3, 2), (9, 4)),
    "TransformerBlock": (lambda: nn.TransformerBlock(D, 4, causal=True, rng=0), (9, 4), (18, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name: str, counted: Any) -> None:
    make, forward, backward = LAYERS[name]
    layer = make().to("cuda")
    x = mg.tensor(
        np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32), device="cuda", requires_grad=True
    )
    g = mg.tensor(np.ones((B, T, D), np.float32), device="cuda")
    for _ in range(2):
        with counted() as there:
            out = layer(x)
        with counted() as back:
            out.backward(g)
        layer.zero_grad()
        x.zero_grad()
    assert there.is_quiet()
    assert back.is_quiet()
    assert ((there.launches, there.library_calls), (back.launches, back.library_calls)) == (forward, backward)


OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "SGD": (lambda p: nn.SGD(p, 0.1), 1),
    "SGD with momentum": (lambda p: nn.SGD(p, 0.1, momentum=0.9), 1),
    "Adam": (lambda p: nn.Adam(p, 0.1), 1),
    "AdamW, two groups": (lambda p: nn.AdamW([{"params": p[:1]}, {"params": p[1:], "weight_decay": 0.0}], 0.1), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_takes_all_parameters_at_once(name: str, counted: Any) -> None:
    make, launches = OPTIMIZERS[name]
    with mg.device("cuda"):
        parameters = [mg.tensor(np.ones((7, i), np.float32), requires_grad=True) for i in range(1, 30)]
        for p in parameters:
            p.grad = mg.tensor(np.ones(p.shape, np.float32))
    optimizer = make(parameters)
    for _ in range(3):
        with counted() as step:
            optimizer.step()
    assert step.is_quiet()
    assert (step.launches, step.library_calls) == (launches, 0)
    with counted() as clipping:
        nn.clip_grad_norm(parameters, 1.0)
    assert clipping.is_quiet()
    assert clipping.launches == 3


def test_a_training_step_neither_copies_nor_waits(counted: Any) -> None:
    rng = np.random.default_rng(0)
    for options in (
        {},
        {"positions": "rotary", "gated": True, "num_kv_heads": 2, "norm": nn.RMSNorm},
        {"dropout": 0.1},
    ):
        with mg.device("cuda"):
            model = nn.Transformer(50, D, 4, 2, T, rng=0, **options)
            tokens = mg.tensor(rng.integers(0, 50, (B, T + 1)))
        optimizer = nn.AdamW(nn.decay_groups(model, 0.1), 1e-3)
        schedule = nn.WarmupCosineLR(optimizer, 2, 10)
        for _ in range(4):
            with counted() as step:
                loss = nn.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
                optimizer.zero_grad()
                loss.backward()
                nn.clip_grad_norm(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        assert step.is_quiet()
        assert np.isfinite(loss.item())
