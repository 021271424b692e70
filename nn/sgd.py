"""Stochastic gradient descent."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from microgradnd.backends import NAMESPACES
from microgradnd.dtypes import is_narrow

from .optim import Optimizer, Params, arrays_of, for_all


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Robbins and Monro, 1951; Polyak, 1964), as in PyTorch.

        d = grad + weight_decay * p
        v = momentum * v + d          (v = d in the first step)
        p = p - lr * v                (p - lr * d without momentum)

    Args:
        params: see :class:`Optimizer`.
        lr: learning rate, at least 0.
        momentum: at least 0 and below 1.
        weight_decay: at least 0.
    """

    limits: ClassVar = {"lr": math.inf, "momentum": 1, "weight_decay": math.inf}
    optional: ClassVar = ("momentum_buffer",)

    def __init__(self, params: Params, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def _update(self, group: dict[str, Any], work: list[tuple[Any, Any, dict[str, Any]]]) -> None:
        momentum, weight_decay, rate = group["momentum"], group["weight_decay"], group["lr"]
        if (fast := for_all([p for p, _, _ in work], self._largest)) is not None:
            names = ["momentum_buffer"] if momentum else []  # from zeros: v is d in the first step
            fast.sgd_all([(p, g, *arrays_of(state, p, *names)) for p, g, state in work], weight_decay, momentum, rate)
            return
        lr: Any = None
        for p, d, state in work:
            if weight_decay:
                d = d + weight_decay * p
                if d.dtype != p.dtype:  # of bfloat16 and a number NumPy makes float32
                    d = d.astype(p.dtype)
            if momentum:
                v = state.get("momentum_buffer")
                if v is None:
                    # An array for a number too, and one that can be gone through as if it were flat.
                    v = state["momentum_buffer"] = NAMESPACES[p.__class__].array(d, order="C")
                else:
                    v *= momentum
                    v += d
                d = v
            dtype = p.dtype
            if p.__class__ is not np.ndarray:  # to a device an array would be copied, a number is not
                p -= rate * (d.astype(np.float32) if dtype.char == "e" else d)
                continue
            if lr is None or lr.dtype is not dtype:
                # NumPy multiplies by a 0-d array faster than by a number. Narrow floats have no small rates.
                lr = NAMESPACES[np.ndarray].asarray(rate, np.float32 if is_narrow(dtype) else dtype)
            p -= lr * d
