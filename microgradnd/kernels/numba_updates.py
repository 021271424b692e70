"""The kernels of numba_optimisers, for lists of arrays: optimisers' steps, the norm of all gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..noting import noted
from . import numba_optimisers as kernels
from .numba_compiler import contiguous

PARTS = 16  # in which the squares of all gradients are added up


def _optimiser(kernel: Any) -> Any:
    """The step of an optimiser by this kernel, for rows of a parameter's arrays: (work, *settings of the kernel)."""

    def update(work: Sequence[tuple[Any, ...]], *settings: float) -> None:
        rows = _checked(work)
        kernel.bind(*_prepared(rows))(*settings)

    def bound(work: Sequence[tuple[Any, ...]]) -> Callable[..., None]:
        """The same for arrays that stay where they are: they are looked at once."""
        rows = _checked(work)
        if any(x is not y for row, given in zip(rows, work, strict=True) for x, y in zip(row, given, strict=True)):
            return functools.partial(update, work)  # some have to be copied each time
        step: Any = kernel.bind(*_prepared(rows))
        step.arrays = rows  # the kernel knows their addresses alone
        return step

    update.__name__ = kernel.__name__
    return noted(writes=lambda work, *settings: [x for p, _, *rest in work for x in (p, *rest)], bound=bound)(update)


adam_all = _optimiser(kernels.adam_all)  # (p, g, m, v)
sgd_all = _optimiser(kernels.sgd_all)  # (p, g), with momentum (p, g, v)


def _checked(work: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The same rows; all but the gradients have to be arrays that can be changed in place."""
    # The gradient of a 0-d parameter may be a number.
    return [(_changed(p), _as_float32(g), *map(_changed, rest)) for p, g, *rest in work]


def _as_float32(g: Any) -> Any:
    return g if g.__class__ is np.ndarray and _lies_as_kernels_expect(g) else np.asarray(g, np.float32, order="C")


def _lies_as_kernels_expect(x: Any) -> bool:
    return x.dtype.char == "f" and x.dtype.isnative and x.flags.c_contiguous


def _run(kernel: Any, rows: Sequence[tuple[Any, ...]], parts: int | None, *args: Any) -> None:
    """Run a kernel of numba_optimisers for all elements of the arrays in ``rows``, or for so many parts of them."""
    kernel.run(*_prepared(rows, parts), *args)


def _prepared(rows: Sequence[tuple[Any, ...]], parts: int | None = None) -> tuple[int, int, Any, Any]:
    """Count, width, ids and edges: the kernel's first arguments. The caller has to hold the arrays, contiguous ones."""
    total, edges = _counted(tuple([row[0].size for row in rows]))
    count = total if parts is None else parts
    return count, -(-total // max(1, count)), np.array([list(map(id, row)) for row in rows], np.int64), edges


@functools.lru_cache(maxsize=64)  # steps meet the same parameters again and again
def _counted(sizes: tuple[int, ...]) -> tuple[int, Any]:
    edges = np.cumsum([0, *sizes], dtype=np.int64)
    return int(edges[-1]), edges


def _changed(x: Any) -> Any:
    if not _lies_as_kernels_expect(x):
        raise ValueError("expected a float32 array in contiguous memory, to be changed in place")
    return x


@noted
def gradient_norm(gradients: Sequence[Any], largest: float) -> tuple[Any, Any]:
    """The norm of all elements together; min(largest / norm, 1)."""
    sums = np.zeros(PARTS)
    _run(kernels.squares, [(contiguous(g),) for g in gradients], PARTS, sums)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite norm, or NaN
        norm = np.sqrt(sums.sum()).astype(np.float32)
        factor = np.minimum(np.float32(largest) / (norm + np.float32(1e-6)), np.float32(1))
    return np.asarray(norm), np.asarray(factor)


def scaled(gradients: Sequence[Any], factor: Any) -> tuple[Any, ...]:
    """Each array times the number that ``factor``, an array of shape (), holds."""
    out = [np.empty(g.shape, np.float32, like=g) for g in gradients]
    scale_all(list(zip(gradients, out, strict=True)), factor)
    return tuple(out)


@noted(writes=lambda work, factor: [out for _, out in work])
def scale_all(work: Sequence[tuple[Any, Any]], factor: Any) -> None:
    """Put each first array, times the number, into the second one."""
    _run(kernels.scale_all, [(contiguous(g), out) for g, out in work], None, np.float32(factor))
