"""Shapes and joining."""

from __future__ import annotations

import numpy as np

from .rows import ELEMENTWISE, Op, shapes

OPS = (
    Op(
        "reshape",
        lambda x, shape: np.reshape(x, shape),  # NumPy 2.0 has no keyword shape
        (
            shapes((2, 6), shape=(3, 4)),
            shapes((2, 6), shape=(-1,)),
            shapes((4,), shape=(2, 1, -1)),
            shapes((0, 3), shape=(3, 0)),
            shapes((1,), shape=()),
        ),
        torch=lambda torch, x, shape: x.reshape(shape),
    ),
    Op("ravel", np.ravel, (shapes((2, 3)), shapes(()), shapes((0, 3)))),
    Op(
        "transpose",
        np.transpose,
        (
            shapes((2, 3)),
            shapes((2, 3, 4)),
            shapes((2, 3, 4), axes=(1, 2, 0)),
            shapes((2, 3, 4), axes=(-1, 0, 1)),
            shapes((5,)),
            shapes(()),
        ),
        torch=lambda torch, x, axes=None: x.permute(tuple(range(x.ndim))[::-1] if axes is None else axes),
    ),
    Op(
        "swapaxes",
        np.swapaxes,
        (shapes((2, 3, 4), axis1=0, axis2=-1), shapes((2, 3), axis1=1, axis2=0)),
        torch=lambda torch, x, axis1, axis2: x.swapaxes(axis1, axis2),
    ),
    Op("expand_dims", np.expand_dims, (shapes((2, 3), axis=1), shapes((2, 3), axis=(0, -1)), shapes((), axis=0))),
    Op(
        "squeeze",
        np.squeeze,
        (shapes((1, 3, 1)), shapes((1, 3, 1), axis=0), shapes((1, 3, 1), axis=(0, 2)), shapes((1,))),
    ),
    Op(
        "broadcast_to",
        np.broadcast_to,
        (shapes((3, 1), shape=(2, 3, 4)), shapes((), shape=(2,)), shapes((1, 3), shape=(0, 3))),
        torch=lambda torch, x, shape: torch.broadcast_to(x, shape),
    ),
    Op(
        "astype",
        lambda x, dtype: x.astype(np.result_type(dtype, x.dtype)),
        (shapes((2, 3), dtype=np.float64), shapes((), dtype=np.float64)),
        analytic=lambda x, dtype: x,
        keeps_dtype=False,
    ),
    Op("alias", lambda x: x, ELEMENTWISE),
    Op(
        "concatenate",
        np.concatenate,
        (
            shapes((2, 3), (4, 3)),
            shapes((2, 3), (2, 1), (2, 4), axis=1),
            shapes((2, 3), (4,), axis=None),
            shapes((0, 3), (2, 3)),
            shapes((2, 1, 3), (2, 2, 3), axis=-2),
        ),
        differentiable=(0, 1, 2),
        sequence=True,
    ),
    Op(
        "stack",
        np.stack,
        (
            shapes((2, 3), (2, 3)),
            shapes((2, 3), (2, 3), (2, 3), axis=1),
            shapes((), ()),
            shapes((2, 3), (2, 3), axis=-1),
        ),
        differentiable=(0, 1, 2),
        sequence=True,
        torch=lambda torch, xs, axis=0: torch.stack(xs, axis),
    ),
)
