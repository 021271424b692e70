"""Layers and losses against PyTorch's, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.against_pytorch import F, close, compare, f64, in_pytorch, plain, randomized, torch

t64: dict[str, Any] = {"dtype": torch.float64}
SHAPES = [(4,), (3, 4), (2, 3, 4)]
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "Linear": (lambda: nn.Linear(4, 5, **f64), lambda: torch.nn.Linear(4, 5)),
    "Linear without bias": (lambda: nn.Linear(4, 5, bias=False, **f64), lambda: torch.nn.Linear(4, 5, bias=False)),
    "ReLU": (nn.ReLU, torch.nn.ReLU),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), lambda: torch.nn.LeakyReLU(0.2)),
    "Sigmoid": (nn.Sigmoid, torch.nn.Sigmoid),
    "Tanh": (nn.Tanh, torch.nn.Tanh),
    "SiLU": (nn.SiLU, torch.nn.SiLU),
    "GELU": (nn.GELU, torch.nn.GELU),
    "GELU tanh": (lambda: nn.GELU(approximate="tanh"), lambda: torch.nn.GELU(approximate="tanh")),
    "Softmax": (nn.Softmax, lambda: torch.nn.Softmax(-1)),
    "LayerNorm": (lambda: nn.LayerNorm(4, **f64), lambda: torch.nn.LayerNorm(4)),
    "LayerNorm eps": (lambda: nn.LayerNorm(4, eps=0.1, **f64), lambda: torch.nn.LayerNorm(4, eps=0.1)),
    "LayerNorm without bias": (
        lambda: nn.LayerNorm(4, bias=False, **f64),
        lambda: torch.nn.LayerNorm(4, bias=False),
    ),
    "LayerNorm plain": (
        lambda: nn.LayerNorm(4, elementwise_affine=False),
        lambda: torch.nn.LayerNorm(4, elementwise_affine=False),
    ),
    "RMSNorm": (lambda: nn.RMSNorm(4, **f64), lambda: torch.nn.RMSNorm(4, **t64)),
    "RMSNorm eps": (lambda: nn.RMSNorm(4, eps=0.1, **f64), lambda: torch.nn.RMSNorm(4, eps=0.1)),
    "RMSNorm plain": (
        lambda: nn.RMSNorm(4, elementwise_affine=False),
        lambda: torch.nn.RMSNorm(4, elementwise_affine=False),
    ),
    "Sequential": (
        lambda: nn.Sequential(nn.Linear(4, 6, **f64), nn.ReLU(), nn.LayerNorm(6, **f64), nn.Linear(6, 2, **f64)),
        lambda: torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2)
        ),
    ),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    make, make_theirs = LAYERS[name]
    ours = randomized(make())
    theirs = in_pytorch(ours, make_theirs(), tmp_path)
    compare(ours, theirs, plain, plain, np.random.default_rng(0).uniform(-2, 2, shape))


@pytest.mark.parametrize("shape", [(2, 3), (5, 2, 3)], ids=str)
def test_norms_of_two_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-2, 2, shape)
    for ours, theirs in (
        (nn.LayerNorm((2, 3), **f64), torch.nn.LayerNorm((2, 3))),
        (nn.RMSNorm((2, 3), eps=1e-3, **f64), torch.nn.RMSNorm((2, 3), eps=1e-3)),
    ):
        compare(randomized(ours), in_pytorch(ours, theirs, tmp_path), plain, plain, x)


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("tokens", [np.array([0, 2, 2, 1]), np.array([[3, 3], [2, 0]]), np.array(3)], ids=str)
def test_embedding(tokens: Any, padding_idx: int | None, tmp_path: Path) -> None:
    ours = randomized(nn.Embedding(4, 3, padding_idx, **f64))
    theirs = in_pytorch(ours, torch.nn.Embedding(4, 3, padding_idx), tmp_path)
    compare(ours, theirs, plain, plain, tokens)


def test_dropout_in_both_modes() -> None:
    x = np.random.default_rng(0).standard_normal((200, 300))
    layer = nn.Dropout(0.3, rng=0)
    out = layer(mg.tensor(x)).numpy()
    kept = out != 0
    np.testing.assert_allclose(out[kept], x[kept] / 0.7, rtol=1e-14)
    assert kept.mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_array_equal(layer.eval()(mg.tensor(x)).numpy(), x)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["ReLU", "GELU", "SiLU"])
def test_feed_forward(activation: str, gated: bool) -> None:
    ours = randomized(nn.FeedForward(4, 6, getattr(nn, activation), gated=gated, **f64))
    x = mg.tensor(np.random.default_rng(0).standard_normal((2, 3, 4)), requires_grad=True)
    their_x = torch.tensor(x.data, requires_grad=True)
    p = {name: torch.tensor(tensor.data, requires_grad=True) for name, tensor in ours.named_parameters()}
    act = getattr(torch.nn, activation)()
    inner = their_x @ p["linear1.weight"] + p["linear1.bias"]
    inner = act(their_x @ p["gate.weight"] + p["gate.bias"]) * inner if gated else act(inner)
    their_out = inner @ p["linear2.weight"] + p["linear2.bias"]
    out = ours(x)
    close(out.numpy(), their_out)
    (out * out).sum().backward()
    (their_out * their_out).sum().backward()
    close(x.grad.data, their_x.grad)  # type: ignore[union-attr]
    for name, parameter in ours.named_parameters():
        close(parameter.grad.data, p[name].grad)  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 40), (4,)], ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_cross_entropy(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    logits = mg.tensor(rng.standard_normal(shape) * 3, requires_grad=True)
    targets = (
        rng.integers(0, shape[-1], shape[:-1]) if kind == "indices" else rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    )
    their_logits = torch.tensor(logits.data, requires_grad=True)
    rows = torch.from_numpy(np.asarray(targets)).reshape(-1, *([shape[-1]] if kind == "probabilities" else []))
    loss, their_loss = nn.cross_entropy(logits, targets), F.cross_entropy(their_logits.reshape(-1, shape[-1]), rows)
    close(loss.numpy(), their_loss)
    loss.backward()
    their_loss.backward()
    close(logits.grad.data, their_logits.grad)  # type: ignore[union-attr]


def test_mse_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 4))
    ours, theirs = mg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    nn.mse_loss(ours, y).backward()
    F.mse_loss(theirs, torch.from_numpy(y)).backward()
    close(ours.grad.data, theirs.grad)  # type: ignore[union-attr]
