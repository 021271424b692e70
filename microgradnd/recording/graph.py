"""A program on a GPU as a CUDA graph: all of its launches in one.

What is handed to kernels by value is frozen in a graph, and so are the addresses of arrays: arguments are copied into
arrays of the graph's own, and results out of them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .active import CaptureError
from .effects import Effects
from .instructions import Variable
from .program import Program
from .writable import may_diverge


def refuse(program: Program, arguments: list[Variable], effects: Effects) -> None:
    """Raise CaptureError for a program that a graph would not repeat."""
    body = [x for x in program.body if not program.is_hoisted(x)]
    used = [*arguments, *(v for x in body for v in (*x.reads(), *x.results, *x.writes))]
    reasons = {
        "uses numbers that are read or drawn anew in each call, such as a learning rate": bool(
            program.first or effects.fixed
        )
        or any(v.kind in ("number", "generator") for v in used)
        or program.draws,
        "branches on values, or selects by them": any(x.kind == "branch" or may_diverge(x) for x in body),
        "uses arrays on the host": not used or any(not v.is_on_device for v in used),
        "adds to gradients, or gives tensors new arrays (t.data = ...)": bool(effects.loaded or effects.assigned),
        "changes an argument in place": any(v.root.kind == "argument" for x in body for v in x.writes),
        "gets an array with gaps in its memory, or without elements": any(
            v.is_on_device and not v.is_dense for v in arguments
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise CaptureError(
                f"capture: graph=True, but the step {reason}, which a CUDA graph does not do; leave it out"
            )


def graphed(program: Callable[..., Any], arguments: list[Variable]) -> Callable[..., Any]:
    """The same function by a graph, which is made here: nothing is computed before it is called."""
    cupy = sys.modules["cupy"]
    inputs = []
    for v in arguments:
        memory = cupy.empty(v.nbytes, np.uint8)
        inputs.append(cupy.ndarray(v.shape, v.dtype, memory.data, v.strides))
    pool = cupy.cuda.MemoryPool()  # nobody else gets the memory of what the graph computes on its way
    with cupy.cuda.using_allocator(pool.malloc):
        graph, out = recorded(cupy.cuda.Stream(non_blocking=True), program, inputs)

    def run(*arrays: Any, _pool: Any = pool) -> Any:
        for x, array in zip(inputs, arrays, strict=True):
            x[...] = array
        graph.launch()
        return tuple([x.copy("K") for x in out]) if type(out) is tuple else out if out is None else out.copy("K")

    return run


def recorded(stream: Any, program: Callable[..., Any], inputs: list[Any]) -> tuple[Any, Any]:
    """The graph of what ``program`` launches, and where it leaves its results."""
    with stream:
        stream.begin_capture()
        try:
            out = program(*inputs)
        except Exception as error:
            with contextlib.suppress(Exception):
                stream.end_capture()
            raise CaptureError(f"capture: graph=True, but no CUDA graph can be made of the step: {error!r}") from error
        return stream.end_capture(), out
