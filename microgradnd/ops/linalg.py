"""Products of matrices and of named axes."""

from __future__ import annotations

import functools
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autocast import in_low_precision
from ..fused import fused
from ..kernels import array_kernels
from ..kernels.array_kernels import affine, rows
from ..primitive import primitive
from ..tensor import Tensor
from .activations import gelu, relu

if TYPE_CHECKING:
    from ..tensor import Operand


def _matmul_x(g, xp, y, x_shape):
    if len(x_shape) == 1:
        if y.ndim == 1:  # inner product: g is 0-d
            return g * y
        return xp.matmul(y, g[..., None])[..., 0]  # (..., k, n) @ (..., n, 1) -> (..., k)
    if y.ndim == 1:
        return g[..., None] * y  # (..., m, 1) * (k,) -> (..., m, k)
    return xp.matmul(g, xp.swapaxes(y, -1, -2))


def _matmul_y(g, xp, x, y_shape):
    if len(y_shape) == 1:
        if x.ndim == 1:
            return g * x
        return xp.matmul(xp.reshape(g, (prod(g.shape),)), rows(x))  # all rows of x at once
    if x.ndim == 1:
        return x[:, None] * g[..., None, :]  # (k, 1) * (..., 1, n) -> (..., k, n)
    if len(y_shape) == 2 and x.ndim > 2:
        # One product of all rows; a product per batch would have to be summed over the batch afterwards.
        x, g = rows(x), rows(g)
    return xp.matmul(xp.swapaxes(x, -1, -2), g)


@primitive(in_low_precision, x=_matmul_x, y=_matmul_y)
def matmul(xp: Any, x: Operand, y: Operand) -> Any:
    """The matrix product over the last axis of x and the last but one of y; leading axes broadcast.

    (..., m, k) @ (..., k, n) -> (..., m, n). A 1-D operand is a row on the left and a column on the right;
    its axis is missing from the result. Raises ValueError for 0-d operands and lengths that differ.
    """
    return xp.matmul(x, y)


def _linear_x(g, xp, weight, x_shape):
    if g.ndim == 2:
        return xp.matmul(g, weight.T)
    return xp.matmul(rows(g), weight.T).reshape(x_shape)


def _linear_weight(g, xp, x):
    if x.ndim != 2:
        x, g = rows(x), rows(g)
    return xp.matmul(x.T, g)


@primitive(
    in_low_precision,
    x=_linear_x,
    weight=_linear_weight,
    bias=lambda g, xp: xp.sum(g if g.ndim == 2 else rows(g), axis=0),
)
def linear(xp: Any, x: Operand, weight: Operand, bias: Operand | None = None) -> Any:
    """The affine map x weight + bias: (..., in) with weight (in, out) and bias (out,) -> (..., out).

    Rows are multiplied in one product, whatever the leading axes. Raises ValueError for other shapes.
    """
    out = affine(xp, rows(x), weight, bias)
    return out if x.ndim == 2 else out.reshape((*x.shape[:-1], weight.shape[1]))


@fused(array_kernels.linear_relu, "x", "weight", "bias", conversion=in_low_precision)
def linear_relu(x: Operand, weight: Operand, bias: Operand | None = None) -> Tensor:
    """max(x weight + bias, 0): :func:`linear` and the rectifier in one."""
    return relu(linear(x, weight, bias))


@fused(array_kernels.linear_gelu, "x", "weight", "bias", conversion=in_low_precision)
def linear_gelu(x: Operand, weight: Operand, bias: Operand | None = None, approximate: str = "none") -> Tensor:
    """gelu(x weight + bias): :func:`linear` and :func:`gelu`, with its ``approximate``, in one."""
    return gelu(linear(x, weight, bias), approximate)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _spelled_out(subscripts, shapes):
    """Each operand's letters and the output's, with implicit output and ellipses written out as in NumPy."""
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        output = "..." * ("..." in left) + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    hidden = [len(shape) - len(s.replace("...", "")) for s, shape in zip(inputs, shapes, strict=True)]
    spare = [c for c in LETTERS if c not in subscripts][: max([*hidden, 0])]
    inputs = [s.replace("...", "".join(spare[len(spare) - n :])) for s, n in zip(inputs, hidden, strict=True)]
    return inputs, output.replace("...", "".join(spare))


def _promoted(*operands):
    """The operands in the dtype of their product: NumPy may sum over axes of one alone first, in that one's dtype."""
    dtypes = [x.dtype for x in operands if hasattr(x, "dtype")]
    if all(dtype == dtypes[0] for dtype in dtypes):
        return operands
    dtype = functools.reduce(lambda a, b: np.multiply.resolve_dtypes((a, b, None))[-1], dtypes)
    return [x.astype(dtype) if hasattr(x, "dtype") else x for x in operands]


def _einsum(g, i, xp, subscripts, operands, operands_shape):
    inputs, output = _spelled_out(subscripts, operands_shape)
    sizes: dict[str, int] = {}
    for letters, shape in zip(inputs, operands_shape, strict=True):
        for c, n in zip(letters, shape, strict=True):
            sizes[c] = n if sizes.get(c, 1) == 1 else sizes[c]
    mine = "".join(dict.fromkeys(inputs[i]))
    others = [j for j in range(len(operands)) if j != i]
    known = output + "".join(inputs[j] for j in others)
    reachable = "".join(c for c in mine if c in known)
    gx = xp.einsum(
        f"{','.join([output, *(inputs[j] for j in others)])}->{reachable}",
        *_promoted(g, *(operands[j] for j in others)),
    )
    # A letter of this operand alone was summed over: the same gradient along all of it.
    lengths = dict(zip(reachable, gx.shape, strict=True))
    gx = xp.reshape(gx, tuple(lengths.get(c, 1) for c in mine))
    gx = xp.broadcast_to(gx, tuple(sizes[c] for c in mine))
    if len(mine) == len(inputs[i]):
        return gx
    # A repeated letter read a diagonal: the gradient goes there, zeros elsewhere.
    grid = np.ogrid[tuple(slice(sizes[c]) for c in mine)]
    return xp.scatter_add(gx, tuple(grid[mine.index(c)] for c in inputs[i]), tuple(sizes[c] for c in inputs[i]))


@primitive(in_low_precision, operands=_einsum)
def einsum(xp: Any, subscripts: str, *operands: Operand) -> Any:
    """Sums of products over named axes (Einstein's summation), for example ``einsum("bij,bjk->bik", x, y)``.

    ``subscripts`` as in NumPy, with ``...`` and implicit output; not the form with lists of integers
    (TypeError). Raises ValueError for subscripts that do not fit the operands.
    """
    if not isinstance(subscripts, str):
        raise TypeError(f"expected a string of subscripts such as 'ij,jk->ik' first, got {type(subscripts).__name__}")
    terms, arrow, output = subscripts.replace(" ", "").partition("->")
    if arrow and "..." not in output:  # NumPy sums over these axes where it looks for the best order
        for term, x in zip(terms.split(","), operands, strict=False):
            if "..." in term and np.ndim(x) > len(term) - 3:
                raise ValueError(f"{subscripts}: the output has no ..., for which an operand has axes")
    return xp.einsum(subscripts, *_promoted(*operands), optimize=len(operands) > 1)
