"""What is done with gradients and parameters between backward and the optimiser's step."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

import microgradnd as mg
from microgradnd import Tensor
from microgradnd.arguments import number
from microgradnd.backends import NAMESPACES, as_array

from .module import Module
from .optim import for_all


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients by one factor, so that their norm together is at most ``max_norm`` (Pascanu et al., 2013).

    The norm is the square root of the sum of the squares of all elements; as in PyTorch the factor is
    max_norm / (norm + 1e-6) where that is below 1. Parameters without a gradient are left out. Compiled kernels add up
    in float64; without them, squares of float32 gradients beyond 1e19 are infinite.

    Returns the norm before, a tensor of shape (). Raises ValueError for a negative ``max_norm``, and with
    ``error_if_nonfinite`` RuntimeError, before anything changes, for a norm that is infinite or NaN.
    """
    max_norm = number("clip_grad_norm", "max_norm", max_norm)
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
    fast = for_all(arrays, max(g.size for g in arrays))
    gradient_norm, scaled = (fast.gradient_norm, fast.scaled) if fast else (_gradient_norm, _scaled)
    norm, factor = gradient_norm(arrays, max_norm)
    _refuse_nonfinite(norm, error_if_nonfinite)
    if not (type(norm) is np.ndarray and factor == 1):  # a device is not waited for: there 1 is multiplied with
        for tensor, g in zip(tensors, scaled(arrays, factor), strict=True):
            tensor.grad = g
    return mg.tensor(norm)


def _gradient_norm(gradients: list[Any], largest: float) -> tuple[Any, Any]:
    """The norm of all elements together; min(largest / norm, 1): as the kernel of this name."""
    xp = NAMESPACES[gradients[0].__class__]
    gradients = [xp.ascontiguousarray(g) if 0 in g.strides else g for g in gradients]  # of one number vdot sums naively
    squares = [xp.vdot(g, g) for g in (g.astype(np.float32) if g.dtype.itemsize < 4 else g for g in gradients)]
    norm = as_array(functools.reduce(operator.add, squares) ** 0.5)
    return norm, xp.minimum(largest / (norm + 1e-6), 1.0)


def _scaled(gradients: list[Any], factor: Any) -> list[Any]:
    factors = {dtype: factor.astype(dtype) for dtype in {g.dtype for g in gradients}}
    with np.errstate(invalid="ignore"):  # an infinite gradient times 0: nn.GradScaler leaves such a step out
        return [g * factors[g.dtype] for g in gradients]


def _refuse_nonfinite(norm: Any, asked: bool) -> None:
    if asked and not np.isfinite(float(norm)):
        raise RuntimeError(f"clip_grad_norm: the norm of the gradients is {float(norm)}; nothing was scaled")


def decay_groups(model: Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: ``weight_decay`` for parameters of two axes and more, none for biases and other vectors.

    >>> optimizer = nn.AdamW(nn.decay_groups(model, 0.1), lr=1e-3)

    A group that would be empty is left out. Raises TypeError for what is no module.
    """
    if not isinstance(model, Module):
        raise TypeError(f"decay_groups: expected a module, got {model!r}")
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
