"""Which operation, gradient or optimiser is at work: what instructions are headed with in a program's text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .. import ops

KERNELS = f"{str(__package__).rpartition('.')[0]}.kernels."  # with what the names of their modules begin
NAMELESS = ("computing_in_float32", "noted", "taken")  # whose inner functions say nothing of what they do


def notes(function: Any) -> Callable[[], str]:
    """A function that tells which operation, gradient or optimiser is at work, from the stack of calls.

    It looks at the code of the frames alone: their variables would be held for longer than the step holds them.
    """
    end = getattr(getattr(function, "__func__", function), "__code__", None)
    operations = [x.operation for x in vars(ops).values() if hasattr(x, "operation")]
    known = {x.name for x in operations}
    gradients = {
        vjp.__code__: x.name for x in operations for vjp in x.vjps if vjp is not None and x.pullback_text == "None"
    }

    latest = ""  # the gradient at work: functions that a pullback leaves, to be called after it, may have no name of it

    def note() -> str:
        nonlocal latest
        frame: Any = sys._getframe(2)
        name, is_of_kernel = "", False
        while frame is not None and frame.f_code is not end:
            code = frame.f_code
            if code.co_filename.startswith("<microgradnd operation"):
                return str(code.co_name)
            if code.co_name == "backpropagate":
                latest = name or latest
                return f"gradient of {latest}" if name or is_of_kernel else "sum of gradients"
            if code.co_name == "clip_grad_norm":
                return "clip_grad_norm"
            if code.co_name == "_update":
                return str(code.co_qualname.partition(".")[0])
            kernel, local, _ = code.co_qualname.partition(".<locals>.")
            module = frame.f_globals.get("__name__", "")
            if not module.startswith(str(__package__)):  # not of the recording itself
                if kernel.strip("_") in known:
                    kernel = kernel.strip("_")
                is_named = local and kernel not in NAMELESS and not kernel.startswith("_")
                name = gradients.get(code) or (kernel if is_named else name)
                is_of_kernel = is_of_kernel or (local != "" and module.startswith(KERNELS))
            frame = frame.f_back
        return ""

    return note
