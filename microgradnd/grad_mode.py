"""Whether operations record a graph, in each thread."""

from __future__ import annotations

from .modes import Mode, Setting

grad_mode = Setting(True)


class no_grad(Mode):
    """Record nothing: results of operations need no gradient. A ``with`` block or a decorator.

    >>> with mg.no_grad():
    ...     accuracy = (model(x).argmax(axis=-1) == y).mean()

    Holds for the current thread alone and may be nested. As a decorator it refuses generator and
    coroutine functions (TypeError): their bodies run outside the decorated call.
    """

    setting, value = grad_mode, False


class enable_grad(no_grad):
    """Record, whatever the mode outside: what ``mg.grad`` needs inside of ``no_grad``."""

    value = True
