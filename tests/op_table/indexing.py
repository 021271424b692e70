"""Indexing."""

from __future__ import annotations

from typing import Any

import numpy as np

from .rows import Op, mask, shapes


def _scatter_add(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    where = np.broadcast_to(np.arange(int(np.prod(shape))).reshape(shape)[index], x.shape)
    out = np.zeros(int(np.prod(shape)), x.dtype)
    for position, value in zip(where.ravel(), x.ravel(), strict=True):
        out[position] += value
    return out.reshape(shape)


_INDEX = np.array([[2, 0], [2, -1]])


OPS = (
    Op(
        "getitem",
        lambda x, index: x[index],
        (
            shapes((3, 4), index=1),
            shapes((3, 4), index=(slice(None, None, 2), -1)),
            shapes((3, 4), index=(..., None, slice(1, 3))),
            shapes((3, 4), index=_INDEX),
            shapes((3, 4), index=(np.array([0, 0, 2]), np.array([1, 1, 3]))),
            shapes((3, 4), index=(_INDEX, slice(1, 3))),
            shapes((3, 4), index=mask(3, 4)),
            shapes((3, 4), index=(slice(None), mask(4))),
            shapes((3, 4), index=[0, 0, 1]),
            shapes((3, 4), index=[]),
            shapes((), index=()),
            shapes((2, 3, 4), index=(np.array([1, 0]), slice(None), np.array([3, 3]))),
        ),
        torch=lambda torch, x, index: x[index],
    ),
    Op(
        "scatter_add",
        _scatter_add,
        (
            shapes((2, 2, 4), index=_INDEX, shape=(3, 4)),
            shapes((3,), index=(np.array([0, 0, 2]), np.array([1, 1, 3])), shape=(3, 4)),
            shapes((4,), index=1, shape=(3, 4)),
        ),
    ),
)
