"""Optimisers, clipping and schedules against PyTorch's, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.against_pytorch import close, torch

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05}),
    ("Adam", {"lr": 0.05, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.05}),
    ("AdamW", {"lr": 0.05, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.3}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.8, "eps": 0.1, "weight_decay": 0.3, "momentum": 0.7, "centered": True}),
]


@pytest.mark.parametrize("chunk", [5, 1 << 18])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_optimizers_step_by_step(name: str, options: dict[str, Any], chunk: int, monkeypatch: Any) -> None:
    """Two groups of parameters, one of which has another rate, and skips a step."""
    monkeypatch.setattr("nn.adaptive.BLOCK", chunk)
    rng = np.random.default_rng(0)
    values = [np.asarray(rng.standard_normal(shape)) for shape in ((3, 4), (4,), ())]
    ours = [mg.tensor(x, requires_grad=True) for x in values]
    theirs = [torch.tensor(x, requires_grad=True) for x in values]
    groups = [[{"params": p[:2]}, {"params": p[2:], "lr": 0.2}] for p in (ours, theirs)]
    optimizer, their_optimizer = (
        getattr(nn, name)(groups[0], **options),
        getattr(torch.optim, name)(groups[1], **options),
    )
    for step in range(8):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            gradient = np.asarray(rng.standard_normal(p.shape))
            skipped = i == 2 and step == 3
            p.grad, q.grad = (None, None) if skipped else (gradient, torch.tensor(gradient))
        optimizer.step()
        their_optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            close(p.data, q)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_grad_norm(max_norm: float) -> None:
    rng = np.random.default_rng(0)
    ours = [mg.tensor(np.zeros(shape), requires_grad=True) for shape in ((3, 4), (4,), ())]
    theirs = [torch.zeros(p.shape, dtype=torch.float64, requires_grad=True) for p in ours]
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        p.grad = rng.standard_normal(p.shape)
        q.grad = torch.tensor(p.grad.data)  # type: ignore[union-attr]
    norm = nn.clip_grad_norm(ours, max_norm)
    close(norm.numpy(), torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        close(p.grad.data, q.grad)  # type: ignore[union-attr]
    assert ours[2].grad is None


def test_schedules() -> None:
    def rates(make: Callable[..., Any], optimizers: Any, library: Any, steps: int) -> list[list[float]]:
        parameters = [library(0.0), library(0.0)]
        optimizer = optimizers.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}], lr=0.1)
        schedule, found = make(optimizer), []
        for _ in range(steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return found

    leaf = functools.partial(mg.tensor, requires_grad=True)
    their_leaf = functools.partial(torch.tensor, requires_grad=True)
    schedulers = torch.optim.lr_scheduler
    for ours, theirs in (
        (lambda o: nn.StepLR(o, 4, 0.5), lambda o: schedulers.StepLR(o, 4, 0.5)),
        (
            lambda o: nn.OneCycleLR(o, 0.4, 20),
            lambda o: schedulers.OneCycleLR(o, 0.4, 20, cycle_momentum=False),
        ),
        (
            lambda o: nn.OneCycleLR(o, 0.4, 20, 0.45, "linear", 10, 50),
            lambda o: schedulers.OneCycleLR(
                o,
                0.4,
                20,
                pct_start=0.45,
                anneal_strategy="linear",
                cycle_momentum=False,
                div_factor=10,
                final_div_factor=50,
            ),
        ),
        (
            lambda o: nn.WarmupCosineLR(o, 0, 15, 0.02),
            lambda o: schedulers.SequentialLR(
                o,
                [schedulers.CosineAnnealingLR(o, 15, 0.02), schedulers.ConstantLR(o, 1.0)],
                [19],
            ),
        ),
    ):
        n = 15 if "Warmup" in str(ours.__code__.co_names) else 19
        np.testing.assert_allclose(rates(ours, nn, leaf, n), rates(theirs, torch.optim, their_leaf, n), rtol=1e-12)
