"""Sums of a compiled product and another array, as of residual connections: the product adds it on the way.

That is a pass over memory less. The kernel adds the array last, as the sum did: but for the sign of a NaN, the bits
are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .instructions import Instruction, Variable


def with_residuals(body: list[Instruction], outputs: Iterable[Variable]) -> list[Instruction]:
    """The instructions with each sum of a product, if that is used for nothing else, computed by the product's kernel.

    That is where the sum was, so nothing may be written in between; both addends are float32, of one shape and in
    order. Instructions are changed in place.

    Args:
        outputs: what a step gives out.
    """
    leaving = {v.root for v in outputs}
    users: dict[Variable, list[int]] = {}  # of each root, by position
    for i, x in enumerate(body):
        for root in {v.root for v in (*x.reads(), *x.results, *x.writes)}:
            users.setdefault(root, []).append(i)
    places = [[x] for x in body]  # what is done in the place of each
    for i, x in enumerate(body):
        if not _is_product(x) or x.args[-1] in leaving:
            continue
        *factors, _, out = x.args
        first, last = users[out][0], users[out][-1]  # np.empty gives it, and the sum reads it
        residual = _added(body[last], out)
        if residual is None or any(y.writes for y in body[i + 1 : last]):
            continue
        between = [j for j in users[out] if first < j < last and j != i]
        if not all(body[j].results and all(v.root is out for v in body[j].results) for j in between):
            continue  # by more than views
        (total,) = body[last].results
        creation = Instruction("create", body[first].name, None, (total.shape, total.dtype), {}, body[last].note)
        creation.results.append(total)
        (target, target_reshaped), (addend, addend_reshaped) = _in_shape(total, out), _in_shape(residual, out)
        x.args, x.writes = (*factors, addend, target), [target]
        for j in (i, *between):
            places[j] = []
        places[first], places[last] = [creation, *target_reshaped], [*addend_reshaped, x]
    return [x for place in places for x in place]


def _is_product(x: Instruction) -> bool:
    """Whether it is a call of kernels.numba_matmul.matmul: its last arguments are a residual, empty so far, and out."""
    return x.kind == "kernel" and x.name == "matmul"


def _added(x: Instruction, out: Variable) -> Variable | None:
    """What an instruction adds to all of ``out``, element by element, if it does nothing else."""
    if x.kind != "operator" or x.name != "add":
        return None
    (total,) = x.results
    residuals = [v for v in x.args if type(v) is Variable and v.root is not out]
    if not residuals or math.prod(total.shape) != math.prod(out.shape):
        return None
    alike = all(v.shape == total.shape and v.dtype == np.float32 and v.is_c_contiguous for v in (*x.args, total))
    return residuals[0] if alike else None


def _in_shape(x: Variable, other: Variable) -> tuple[Variable, list[Instruction]]:
    """x in the shape of another one, and the instruction that makes it, if it takes one."""
    if x.shape == other.shape:
        return x, []
    view = other.twin()
    view.root, view.address = x.root, x.address
    shaping = Instruction("method", "reshape", None, (x, view.shape), {}, "")
    shaping.results.append(view)
    return view, [shaping]
