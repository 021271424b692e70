"""Layers against PyTorch's, in float64, with results and all gradients.

A layer's weights go to PyTorch through a file of ``nn.save_pytorch``, so that names and layouts are tested with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from nn.pytorch import _counterparts

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
TOLERANCE = 1e-10
f64: dict[str, Any] = {"dtype": np.float64}
E, H, B, T = 12, 3, 2, 5
BLOCKS = [(first, activation) for first in (True, False) for activation in ("relu", "gelu")]


def close(ours: Any, theirs: Any) -> None:
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    scale = np.max(np.abs(theirs), initial=0.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * scale)


def randomized(module: nn.Module, seed: int = 1) -> nn.Module:
    """With random parameters, so that no bias is zero and no scale is one."""
    rng = np.random.default_rng(seed)
    for parameter in module.parameters():
        parameter.data = rng.uniform(-0.6, 1.0, parameter.shape)
    return module


def in_pytorch(ours: nn.Module, theirs: Any, path: Path) -> Any:
    """PyTorch's module with the weights of ours."""
    import safetensors.torch

    nn.save_pytorch(path / "weights.safetensors", ours)
    theirs.double().load_state_dict(safetensors.torch.load_file(path / "weights.safetensors"))
    return theirs


def compare(ours: nn.Module, theirs: Any, call: Callable[..., Any], their_call: Callable[..., Any], *xs: Any) -> None:
    """Results, gradients of the inputs and of all parameters."""
    inputs = [mg.tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in xs]
    their_inputs = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in xs]
    out, their_out = call(ours, *inputs), their_call(theirs, *their_inputs)
    close(out.numpy(), their_out)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, out.shape)
    (out * weights).sum().backward()
    (their_out * torch.from_numpy(weights)).sum().backward()
    for x, their_x in zip(inputs, their_inputs, strict=True):
        if isinstance(x, mg.Tensor):
            close(x.grad.data, their_x.grad)  # type: ignore[union-attr]
    parameters = dict(theirs.named_parameters())
    for name, their_name, tensor, transposed in _counterparts(ours):
        assert tensor.grad is not None, name
        gradient = tensor.grad.data.T if transposed else tensor.grad.data
        if np.abs(gradient).max() > 1e-12:  # the bias of keys, for one, has no influence
            close(gradient, parameters.pop(their_name).grad)
        else:
            assert parameters.pop(their_name).grad.abs().max() < 1e-12
    assert not parameters


def plain(module: Any, *xs: Any) -> Any:
    return module(*xs)
