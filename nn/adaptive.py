"""Optimisers that give each element a step size of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from microgradnd.backends import NAMESPACES

from .optim import Optimizer, Params, arrays_of, for_all

BLOCK = 1 << 18  # elements at a time: what is computed in between is small and stays in the cache


def _blocks(*arrays: Any) -> Iterator[list[Any]]:
    """The same parts of arrays of one shape, in turn: views of parameters and states, which are contiguous."""
    flat = [x.reshape(-1) for x in arrays]
    size = flat[0].size
    step = BLOCK if isinstance(flat[0], np.ndarray) else max(1, size)  # a device has no such cache
    for start in range(0, size, step):
        yield [x[start : start + step] for x in flat]


class Adam(Optimizer):
    """Adaptive moment estimation (Kingma and Ba, 2015), as in PyTorch.

        d = grad + weight_decay * p
        m = beta1 * m + (1 - beta1) * d
        v = beta2 * v + (1 - beta2) * d^2
        p = p - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)        in step t = 1, 2, ...

    Args:
        params: see :class:`Optimizer`.
        lr: learning rate, at least 0.
        betas: how much of the averages m and v a step keeps, both at least 0 and below 1.
        eps: added to the denominator, at least 0.
        weight_decay: at least 0.
    """

    limits: ClassVar = {"lr": math.inf, "betas": (1, 1), "eps": math.inf, "weight_decay": math.inf}
    needed: ClassVar = ("step", "exp_avg", "exp_avg_sq")
    decoupled = False

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _update(self, group: dict[str, Any], work: list[tuple[Any, Any, dict[str, Any]]]) -> None:
        lr, eps, decay = group["lr"], group["eps"], group["weight_decay"]
        beta1, beta2 = group["betas"]
        fast = for_all([p for p, _, _ in work], self._largest)
        added, shrink = (0.0, 1 - lr * decay) if self.decoupled else (decay, 1.0)
        batches: list[tuple[Any, list[Any]]] = []  # of parameters in a row with the same number of steps
        for parameter, gradient, state in work:
            t = state["step"] = state.get("step", 0) + 1
            averages = arrays_of(state, parameter, "exp_avg", "exp_avg_sq")
            root = (1 - beta2**t) ** 0.5  # taken out of the quotient: two passes less
            rate = lr / (1 - beta1**t) * root
            if fast is not None:
                settings = added, shrink, beta1, 1 - beta1, beta2, 1 - beta2, rate, eps * root
                if not batches or batches[-1][0] != settings:
                    batches.append((settings, []))
                batches[-1][1].append((parameter, gradient, *averages))
                continue
            xp = NAMESPACES[parameter.__class__]
            for p, d, m, v in _blocks(parameter, gradient, *averages):
                if decay and self.decoupled:
                    p *= 1 - lr * decay
                elif decay:
                    d = d + decay * p
                m *= beta1
                scratch = (1 - beta1) * d
                m += scratch
                v *= beta2
                xp.multiply(d, 1 - beta2, out=scratch)  # first: the square alone may be beyond the range
                scratch *= d
                v += scratch
                xp.sqrt(v, out=scratch)
                scratch += eps * root
                xp.divide(m, scratch, out=scratch)
                scratch *= rate
                p -= scratch
        for settings, arrays in batches:
            fast.adam_all(arrays, *settings)


class AdamW(Adam):
    """Adam with a weight decay of its own (Loshchilov and Hutter, 2019), as in PyTorch.

        p = p - lr * weight_decay * p     first, and then as :class:`Adam` without weight decay

    Args: as for :class:`Adam`, but that ``weight_decay`` is 0.01 at first.
    """

    decoupled = True

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """Steps divided by a running average of the gradient's magnitude (Hinton, 2012), as in PyTorch.

        d = grad + weight_decay * p
        v = alpha * v + (1 - alpha) * d^2
        a = alpha * a + (1 - alpha) * d                 centered (Graves, 2013), else a = 0
        s = d / (sqrt(v - a^2) + eps)
        b = momentum * b + s
        p = p - lr * b                                  (p - lr * s without momentum)

    Args:
        params: see :class:`Optimizer`.
        lr: learning rate, at least 0.
        alpha: how much of the averages a step keeps, at least 0 and below 1.
        eps: added to the denominator, at least 0.
        weight_decay: at least 0.
        momentum: at least 0 and below 1.
        centered: whether the variance is taken instead of the mean square.
    """

    needed: ClassVar = ("square_avg",)
    optional: ClassVar = ("grad_avg", "momentum_buffer")
    limits: ClassVar = {
        "lr": math.inf, "alpha": 1, "eps": math.inf, "weight_decay": math.inf, "momentum": 1, "centered": bool,
    }  # fmt: skip

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def _update(self, group: dict[str, Any], work: list[tuple[Any, Any, dict[str, Any]]]) -> None:
        lr, alpha, eps, decay, momentum = map(group.__getitem__, ("lr", "alpha", "eps", "weight_decay", "momentum"))
        centered = group["centered"]
        names = ["square_avg", *(["grad_avg"] if centered else []), *(["momentum_buffer"] if momentum else [])]
        for parameter, gradient, state in work:
            for p, d, v, *others in _blocks(parameter, gradient, *arrays_of(state, parameter, *names)):
                if decay:
                    d = d + decay * p
                v *= alpha
                v += (1 - alpha) * d * d
                step = v
                if centered:
                    mean = others[0]
                    mean *= alpha
                    mean += (1 - alpha) * d
                    step = (v - mean * mean).clip(0)  # rounding may take it below
                step = d / (step**0.5 + eps)
                if momentum:
                    others[-1] *= momentum
                    others[-1] += step
                    step = others[-1]
                p -= lr * step
