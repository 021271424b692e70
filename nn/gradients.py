"""What is done with gradients and parameters between backward and the optimiser's step."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

import microgradnd as mg
from microgradnd import Tensor
from microgradnd.backends import NAMESPACES, as_array
from microgradnd.kernels import compiled_together

from .module import Module


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients by one factor, so that their norm together is at most ``max_norm`` (Pascanu et al., 2013).

    The norm is the square root of the sum of the squares of all elements; as in PyTorch the factor is
    max_norm / (norm + 1e-6) where that is below 1. Parameters without a gradient are left out.

    Returns the norm before, a tensor of shape (). Raises ValueError for a negative ``max_norm``, and with
    ``error_if_nonfinite`` RuntimeError, before anything changes, for a norm that is infinite or NaN.
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm: max_norm must be at least 0, got {max_norm}")
    if isinstance(parameters, Module):
        raise TypeError("clip_grad_norm: expected tensors, got a module: give model.parameters()")
    everything = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for parameter in everything:
        if not isinstance(parameter, Tensor):
            raise TypeError(f"clip_grad_norm: expected tensors, got {parameter!r}")
    tensors = [parameter for parameter in everything if parameter.grad is not None]
    arrays: list[Any] = [tensor.grad.data for tensor in tensors]  # type: ignore[union-attr]
    if not arrays:
        return mg.tensor(0.0)
    fast = None if arrays[0].__class__ is np.ndarray else compiled_together(*arrays)
    if fast is not None:
        norm, factor = fast.gradient_norm(arrays, max_norm)
        _refuse_nonfinite(norm, error_if_nonfinite)
        for tensor, g in zip(tensors, fast.scaled(arrays, factor), strict=True):
            tensor.grad = g
        return mg.tensor(norm)
    xp = NAMESPACES[arrays[0].__class__]
    squares = [xp.vdot(g, g) for g in (g.astype(np.float32) if g.dtype.itemsize < 4 else g for g in arrays)]
    norm = as_array(functools.reduce(operator.add, squares) ** 0.5)
    _refuse_nonfinite(norm, error_if_nonfinite)
    factor = xp.minimum(max_norm / (norm + 1e-6), 1.0)
    if not (type(norm) is np.ndarray and factor == 1):  # a device is not waited for: there 1 is multiplied with
        with np.errstate(invalid="ignore"):  # an infinite gradient times 0: nn.GradScaler leaves such a step out
            for tensor, g in zip(tensors, arrays, strict=True):
                tensor.grad = g * factor.astype(g.dtype)
    return mg.tensor(norm)


def _refuse_nonfinite(norm: Any, asked: bool) -> None:
    if asked and not np.isfinite(float(norm)):
        raise RuntimeError(f"clip_grad_norm: the norm of the gradients is {float(norm)}; nothing was scaled")


def decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: ``weight_decay`` for matrices and larger, none for biases and the scales of norms.

    >>> optimizer = nn.AdamW(nn.decay_groups(model, 0.1), lr=1e-3)

    A group that would be empty is left out.
    """
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
