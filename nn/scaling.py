"""Loss scaling: gradients in float16 are kept within its range."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from microgradnd import Tensor
from microgradnd.arguments import integer, number
from microgradnd.autocast import in_float32
from microgradnd.backends import NAMESPACES, as_array
from microgradnd.recording.active import CaptureError, is_recording

from .optim import Optimizer

LARGEST = float(np.finfo(np.float32).max)
LEAST = 2.0**-126


class GradScaler:
    """Multiply the loss, so that small gradients survive float16, and divide the gradients again before the step.

    >>> scaler = nn.GradScaler()
    >>> with mg.autocast("float16"):
    ...     loss = nn.cross_entropy(model(x), y)
    >>> optimizer.zero_grad()
    >>> scaler.scale(loss).backward()
    >>> scaler.unscale_(optimizer)  # only where the gradients are looked at, as by clip_grad_norm
    >>> nn.clip_grad_norm(model.parameters(), 1.0)
    >>> scaler.step(optimizer)
    >>> scaler.update()

    A step whose gradients are not all finite is left out, and the scale falls; after ``growth_interval`` steps in a
    row that were taken it grows (Micikevicius et al., 2018). Names and rules are those of ``torch.amp.GradScaler``.
    bfloat16 has the range of float32, and needs no scaling. NumPy may warn of what follows from an overflow before the
    step is left out (RuntimeWarning); ``np.errstate(over="ignore", invalid="ignore")`` around backward prevents that.

    On a device, ``step`` waits for one number: whether all gradients of the optimiser are finite. Nothing else here
    waits. Python decides by it: ``scale`` and backward may be part of a step that ``mg.capture`` records, the other
    methods belong outside of it.

    Args:
        init_scale: the scale at first, above 0.
        growth_factor: what the scale is multiplied by when it grows, above 1; it stays where it would be infinite in
            float32.
        backoff_factor: what it is multiplied by after a step that was left out, above 0 and below 1.
        growth_interval: how many steps, at least 1.
        enabled: False makes ``scale`` give the loss itself, ``step`` the optimiser's step, and the rest do nothing.

    Attributes:
        skipped: how many steps have been left out.

    Raises ValueError for values out of range, and CaptureError where a captured step calls more than ``scale``.
    """

    # What mg.capture need not look after: within a captured step it does not change.
    unwatched: ClassVar = ("skipped", "_growth_tracker", "_finite", "_stepped")

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._live = {"scale": _positive("init_scale", init_scale)}
        self.growth_factor = number("GradScaler", "growth_factor", growth_factor)
        self.backoff_factor = number("GradScaler", "backoff_factor", backoff_factor)
        self.growth_interval = integer("GradScaler", "growth_interval", growth_interval)
        if not self.growth_factor > 1:
            raise ValueError(f"GradScaler: growth_factor must be above 1, got {growth_factor}")
        if not 0 < self.backoff_factor < 1:
            raise ValueError(f"GradScaler: backoff_factor must lie between 0 and 1, got {backoff_factor}")
        if self.growth_interval < 1:
            raise ValueError(f"GradScaler: growth_interval must be at least 1, got {growth_interval}")
        self.enabled = bool(enabled)
        self.skipped = 0
        self._growth_tracker = 0  # steps since the scale changed
        # Since the last update: whether the unscaled gradients are finite, None where there are none.
        self._finite: dict[Optimizer, Any] = {}
        self._stepped: set[Optimizer] = set()

    def scale(self, outputs: Any) -> Any:
        """A tensor, or each of a list or tuple of tensors, times the scale."""
        if isinstance(outputs, list | tuple):
            return type(outputs)([self.scale(x) for x in outputs])
        if not isinstance(outputs, Tensor):
            raise TypeError(f"scale: expected a tensor or a list of tensors, got {outputs!r}")
        if not self.enabled:
            return outputs
        (outputs,) = in_float32(outputs)
        return outputs * self._live["scale"]

    def live_numbers(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Where the scale lies: ``mg.capture`` reads it anew each time."""
        yield self._live, "scale"

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of all parameters of ``optimizer`` by the scale: ``step`` does so where you do not.

        Raises RuntimeError for a second time before ``update``, ValueError for gradients in float16: parameters are
        float32.
        """
        if not self.enabled:
            return
        _refuse_recording("unscale_")
        if optimizer in self._stepped:
            raise RuntimeError("unscale_: it must come before step(), which has been called since the last update()")
        if optimizer in self._finite:
            raise RuntimeError("unscale_: it has already been called on this optimizer since the last update()")
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if any(p.dtype.char == "e" for p in parameters):
            raise ValueError("unscale_: a gradient is float16; parameters must be float32, mg.autocast converts them")
        factor = 1 / self._live["scale"]  # of Python's, which changes no array's dtype
        gradients = [as_array(p.grad.data * factor) for p in parameters]
        finite = [NAMESPACES[g.__class__].isfinite(g).all() for g in gradients]
        for parameter, g in zip(parameters, gradients, strict=True):
            parameter.grad = g
        self._finite[optimizer] = functools.reduce(operator.and_, finite) if finite else None

    def step(self, optimizer: Optimizer) -> None:
        """``optimizer.step()`` if all gradients are finite; otherwise nothing but ``skipped`` changes.

        Raises RuntimeError for a second time before ``update``, and where no parameter has a gradient.
        """
        if not self.enabled:
            optimizer.step()
            return
        _refuse_recording("step")
        if optimizer in self._stepped:
            raise RuntimeError("step: it has already been called on this optimizer since the last update()")
        if optimizer not in self._finite:
            self.unscale_(optimizer)
        if self._finite[optimizer] is None:
            raise RuntimeError("step: no parameter of this optimizer has a gradient; first call scale(loss).backward()")
        finite = self._finite[optimizer] = bool(self._finite[optimizer])
        self._stepped.add(optimizer)
        if finite:
            optimizer.step()
        else:
            self.skipped += 1

    def update(self, new_scale: float | None = None) -> None:
        """Once per iteration, after the steps of all optimisers: the scale for the next one, or ``new_scale``.

        Raises RuntimeError where no gradient has been unscaled since the last update.
        """
        if not self.enabled:
            return
        _refuse_recording("update")
        checked = [finite for finite in self._finite.values() if finite is not None]
        if new_scale is not None:
            self._live["scale"] = _positive("new_scale", new_scale)
        elif not checked:
            raise RuntimeError("update: call step() or unscale_() before; there is no gradient to judge the scale by")
        elif not all(map(bool, checked)):
            # Not below the least scale whose inverse float32 can hold.
            self._live["scale"] = max(float(np.float32(self._live["scale"] * self.backoff_factor)), LEAST)
            self._growth_tracker = 0
        else:
            self._growth_tracker += 1
            if self._growth_tracker == self.growth_interval:
                grown = self._live["scale"] * self.growth_factor
                if grown <= LARGEST:
                    self._live["scale"] = float(np.float32(grown))
                self._growth_tracker = 0
        self._finite.clear()
        self._stepped.clear()

    def get_scale(self) -> float:
        """The scale; 1 where scaling is not enabled."""
        return self._live["scale"] if self.enabled else 1.0

    def is_enabled(self) -> bool:
        """Whether scaling is enabled."""
        return self.enabled

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict``, and ``nn.save_checkpoint``, need; empty where scaling is not enabled."""
        if not self.enabled:
            return {}
        return {
            "scale": self._live["scale"],
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self._growth_tracker,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where a scaler stood; PyTorch's state will do too.

        Raises, and changes nothing, ValueError for values out of range, RuntimeError for the state of a scaler that was
        not enabled.
        """
        if not self.enabled:
            return
        if not state:
            raise RuntimeError("load_state_dict: the state is empty, as that of a GradScaler with enabled=False")
        settings = ("growth_factor", "backoff_factor", "growth_interval")
        missing = [name for name in ("scale", *settings, "_growth_tracker") if name not in state]
        if missing:
            raise ValueError(f"load_state_dict: this is no state of a GradScaler: there is no {', '.join(missing)}")
        checked = GradScaler(state["scale"], *(state[name] for name in settings))
        checked._growth_tracker = operator.index(state["_growth_tracker"])
        checked.skipped = operator.index(state.get("skipped", 0))
        self._live.update(checked._live)
        vars(self).update(vars(checked) | {"_live": self._live})

    def __repr__(self) -> str:
        return f"GradScaler(scale={self.get_scale()}, skipped={self.skipped}, enabled={self.enabled})"


def _refuse_recording(method: str) -> None:
    if is_recording():
        raise CaptureError(
            f"capture: GradScaler.{method} decides by what the gradients are, which replays would not; call it after "
            "the captured step"
        )


def _positive(name: str, value: float) -> float:
    """A scale, as float32 has it."""
    scale = number("GradScaler", name, value)
    if not 0 < scale <= LARGEST:
        raise ValueError(f"GradScaler: {name} must be above 0 and finite in float32, got {value}")
    return float(np.float32(scale))
