"""Products."""

from __future__ import annotations

import numpy as np

from .elementwise import gelu
from .rows import Op, Sample, shapes, torch_named

LINEAR_SAMPLES = (
    shapes((5, 3), (3, 4), (4,)),
    shapes((2, 5, 3), (3, 4), (4,)),
    shapes((3,), (3, 4), (4,)),
    shapes((5, 3), (3, 4)),
    shapes((0, 3), (3, 4), (4,)),
)


OPS = (
    Op(
        "matmul",
        np.matmul,
        (
            shapes((2, 3), (3, 4)),
            shapes((3,), (3,)),
            shapes((3,), (3, 4)),
            shapes((2, 3), (3,)),
            shapes((5, 2, 3), (5, 3, 4)),
            shapes((5, 2, 3), (3, 4)),
            shapes((2, 3), (5, 3, 4)),
            shapes((2, 1, 2, 3), (5, 3, 4)),
            shapes((5, 2, 3), (3,)),
            shapes((3,), (5, 3, 4)),
            shapes((0, 3), (3, 4)),
            shapes((2, 0), (0, 4)),
        ),
        differentiable=(0, 1),
        torch=torch_named("matmul"),
    ),
    Op(
        "linear",
        lambda x, weight, bias=None: x @ weight + (0 if bias is None else bias),
        LINEAR_SAMPLES,
        differentiable=(0, 1, 2),
        torch=lambda torch, x, weight, bias=None: torch.nn.functional.linear(x, weight.T, bias),
    ),
    Op(
        "linear_relu",
        lambda x, weight, bias=None: np.maximum(x @ weight + (0 if bias is None else bias), 0),
        LINEAR_SAMPLES,
        differentiable=(0, 1, 2),
        torch=lambda torch, x, weight, bias=None: torch.relu(torch.nn.functional.linear(x, weight.T, bias)),
    ),
    Op(
        "linear_gelu",
        lambda x, weight, bias=None, approximate="none": gelu(x @ weight + (0 if bias is None else bias), approximate),
        (*LINEAR_SAMPLES, shapes((5, 3), (3, 4), (4,), approximate="tanh")),
        differentiable=(0, 1, 2),
        torch=lambda torch, x, weight, bias=None, approximate="none": torch.nn.functional.gelu(
            torch.nn.functional.linear(x, weight.T, bias), approximate=approximate
        ),
    ),
    Op(
        "einsum",
        np.einsum,
        tuple(
            Sample((subscripts, *operands))
            for subscripts, *operands in (
                ("ij,jk->ik", (2, 3), (3, 4)),
                ("bij,bjk->bik", (5, 2, 3), (5, 3, 4)),
                ("ij->ji", (2, 3)),
                ("ij->i", (2, 3)),
                ("ij->", (2, 3)),
                ("ii->i", (3, 3)),
                ("ii", (3, 3)),
                ("iij->j", (3, 3, 2)),
                ("ij,ij->i", (2, 3), (2, 3)),
                ("i,j->ij", (2,), (3,)),
                ("i,j,k->kji", (2,), (3,), (4,)),
                ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
                ("...ij,...jk->...ik", (5, 2, 3), (3, 4)),
                ("b...i,...i->b...", (4, 5, 3), (5, 3)),
                ("ij,jk", (2, 3), (3, 4)),
                ("ij,kj", (2, 3), (4, 3)),
                ("ij,k->i", (2, 3), (4,)),
                (" i j , j -> i ", (2, 3), (3,)),
                ("ij,ij->ij", (1, 3), (2, 3)),
                ("i,i->", (1,), (3,)),
                ("ij,jk->ik", (2, 1), (3, 4)),
                ("...->...", (2, 3)),
                ("ij,jk->ik", (0, 3), (3, 4)),
            )
        ),
        differentiable=(1, 2, 3),
        torch=lambda torch, subscripts, *operands: torch.einsum(subscripts.replace(" ", ""), *operands),
    ),
)
