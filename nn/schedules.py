"""Learning rates that change from step to step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from microgradnd.arguments import integer, number

from .optim import Optimizer


class LRScheduler:
    """The base of all schedules: sets the learning rate of each group of an optimiser, step by step.

    >>> schedule = nn.WarmupCosineLR(optimizer, warmup_steps=100, total_steps=2000)
    >>> for X, y in batches:
    ...     ...
    ...     optimizer.step()
    ...     schedule.step()

    The rate of step 0 is set at once, that of the next with each ``step()``; until then holds what you set. Each goes
    by ``base_lrs``, so of several schedules of one optimiser the last to step decides. Subclasses define ``rate``.

    Attributes:
        base_lrs: the learning rates of the groups when the schedule was made.
        last_step: the step whose rates are set.

    Raises TypeError for what is no optimiser, ValueError for a rate that is negative, infinite or NaN.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(self).__name__}: expected an optimiser, got {optimizer!r}")
        self.optimizer = optimizer
        self.base_lrs: list[float] = []
        self._go_to(0)

    def __repr__(self) -> str:
        rates = ", ".join(f"{group['lr']:g}" for group in self.optimizer.param_groups)
        return f"{type(self).__name__}(step {self.last_step}, lr {rates})"

    def rate(self, base_lr: float, step: int) -> float:
        """The learning rate in ``step`` of a group that began with ``base_lr``."""
        raise TypeError(f"{type(self).__name__} defines no rate(self, base_lr, step)")

    def step(self) -> None:
        """Go on to the next step."""
        self._go_to(self.last_step + 1)

    def _base_lrs(self) -> list[float]:
        """Those of groups that joined the optimiser since are what they have now."""
        joined = self.optimizer.param_groups[len(self.base_lrs) :]
        return self.base_lrs + [group["lr"] for group in joined] if joined else self.base_lrs

    def _go_to(self, step: int) -> None:
        """Set the rates of ``step``, all or none; groups that joined the optimiser since begin with theirs."""
        groups, base_lrs = self.optimizer.param_groups, self._base_lrs()
        rates = [float(self.rate(base_lr, step)) for base_lr in base_lrs]
        if not all(0 <= rate < math.inf for rate in rates):
            raise ValueError(f"{type(self).__name__}: learning rates must be at least 0 and finite, got {rates}")
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.base_lrs, self.last_step = base_lrs, step

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on from here."""
        return {
            "schedule": type(self).__name__,
            "base_lrs": [*self._base_lrs()],
            "lrs": [group["lr"] for group in self.optimizer.param_groups],
            "last_step": self.last_step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where the schedule stood, with the rates of that moment, whoever had set them.

        Raises ValueError, and changes nothing, for another's state.
        """
        name, groups = type(self).__name__, self.optimizer.param_groups
        if (
            not isinstance(state, dict)
            or set(state) != {"schedule", "base_lrs", "lrs", "last_step"}
            or state["schedule"] != name
            or not all(map(_are_rates, (state["base_lrs"], state["lrs"])))
            or not len(self.base_lrs) <= len(state["base_lrs"]) == len(state["lrs"]) <= len(groups)
            or not isinstance(state["last_step"], int | np.integer)
            or state["last_step"] < 0
        ):
            raise ValueError(f"load_state_dict: this is no state of a {name} of {len(groups)} groups")
        base_lrs, last_step = [float(lr) for lr in state["base_lrs"]], int(state["last_step"])
        for base_lr in base_lrs:
            self.rate(base_lr, last_step)  # raises where the schedule ends before that step
        self.base_lrs, self.last_step = base_lrs, last_step
        for group, lr in zip(groups, state["lrs"], strict=False):
            group["lr"] = lr


def _are_rates(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(lr, int | float | np.number) and 0 <= lr < math.inf for lr in values
    )


class StepLR(LRScheduler):
    """The rate times ``gamma`` after every ``step_size`` steps, as in PyTorch: lr * gamma^(step // step_size).

    Raises ValueError for a ``step_size`` below 1 or a ``gamma`` below 0, TypeError for what is no integer or number.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = integer("StepLR", "step_size", step_size), number("StepLR", "gamma", gamma)
        if self.step_size < 1:
            raise ValueError(f"StepLR: step_size must be at least 1, got {step_size}")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"StepLR: gamma must be at least 0 and finite, got {gamma}")
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        return base_lr * self.gamma ** (step // self.step_size)


class WarmupCosineLR(LRScheduler):
    """Up in a straight line, down along half a cosine, then level (Loshchilov and Hutter, 2017).

        lr * (step + 1) / (warmup_steps + 1)                           up to warmup_steps
        eta_min + (lr - eta_min) * (1 + cos(pi * x)) / 2               x from 0 at warmup_steps to 1 at total_steps
        eta_min                                                        from total_steps on

    Raises ValueError unless 0 <= warmup_steps < total_steps, TypeError for steps that are no integers.
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, eta_min: float = 0.0) -> None:
        self.warmup_steps = integer("WarmupCosineLR", "warmup_steps", warmup_steps)
        self.total_steps = integer("WarmupCosineLR", "total_steps", total_steps)
        self.eta_min = number("WarmupCosineLR", "eta_min", eta_min)
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"WarmupCosineLR: expected 0 <= warmup_steps < total_steps, got {warmup_steps} and {total_steps}"
            )
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        if step < self.warmup_steps:
            return base_lr * (step + 1) / (self.warmup_steps + 1)
        x = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.eta_min + (base_lr - self.eta_min) * (1 + math.cos(math.pi * x)) / 2


class OneCycleLR(LRScheduler):
    """Up to ``max_lr`` and down again, far below the start, along half cosines or lines (Smith and Topin, 2019).

    As in PyTorch with ``cycle_momentum=False``: from max_lr / div_factor to max_lr in the first ``pct_start`` of the
    steps, then to max_lr / div_factor / final_div_factor in step total_steps - 1. The optimiser's own rate does
    not matter.

    Raises TypeError for options of other types, ValueError for those out of range, and in ``step()`` when it is called
    more than total_steps times. The last of these calls, after the cycle, leaves the rate where it is.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.max_lr = number("OneCycleLR", "max_lr", max_lr)
        self.total_steps = integer("OneCycleLR", "total_steps", total_steps)
        self.pct_start = number("OneCycleLR", "pct_start", pct_start)
        self.anneal_strategy = anneal_strategy
        self.div_factor = number("OneCycleLR", "div_factor", div_factor)
        self.final_div_factor = number("OneCycleLR", "final_div_factor", final_div_factor)
        if not 0 < self.pct_start < 1 or self.total_steps < 2 or anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                "OneCycleLR: expected 0 < pct_start < 1, total_steps of at least 2, and anneal_strategy 'cos' or "
                f"'linear', got {pct_start}, {total_steps} and {anneal_strategy!r}"
            )
        if not (self.max_lr > 0 and self.div_factor > 0 and self.final_div_factor > 0):
            raise ValueError(
                "OneCycleLR: expected a positive max_lr, div_factor and final_div_factor, got "
                f"{max_lr}, {div_factor} and {final_div_factor}"
            )
        super().__init__(optimizer)

    def rate(self, base_lr: float, step: int) -> float:
        last, top = self.total_steps - 1, self.pct_start * self.total_steps - 1
        step, beyond = min(step, last), step > last + 1
        if beyond:
            raise ValueError(f"OneCycleLR: the cycle ends after {self.total_steps} steps")
        low = self.max_lr / self.div_factor
        start, end, x = (
            (low, self.max_lr, step / top) if step < top else
            (self.max_lr, low / self.final_div_factor, (step - top) / (last - top))
        )  # fmt: skip
        return end + (start - end) * ((1 + math.cos(math.pi * x)) / 2 if self.anneal_strategy == "cos" else 1 - x)
