"""Whether operations record a graph, in each thread."""

from __future__ import annotations

import threading

from .modes import Mode


class _GradMode(threading.local):
    enabled = True

    def __init__(self) -> None:
        self.outer: list[bool] = []


grad_mode = _GradMode()


class no_grad(Mode):
    """Record nothing: results of operations need no gradient. A ``with`` block or a decorator.

    >>> with mg.no_grad():
    ...     accuracy = (model(x).argmax(axis=-1) == y).mean()

    Holds for the current thread alone and may be nested. As a decorator it refuses generator and
    coroutine functions (TypeError): their bodies run outside the decorated call.
    """

    _enabled = False

    def __enter__(self) -> None:
        grad_mode.outer.append(grad_mode.enabled)
        grad_mode.enabled = self._enabled

    def __exit__(self, *exception: object) -> None:
        grad_mode.enabled = grad_mode.outer.pop()


class enable_grad(no_grad):
    """Record, whatever the mode outside: what ``mg.grad`` needs inside of ``no_grad``."""

    _enabled = True
