"""Products as NumPy has them, bit for bit, for calls in a row (see numba_sequences): by functions of its BLAS library.

NumPy computes ``a.dot(b)`` by them where the rows, or the columns, of both matrices fill their memory.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, types, void
from numba.extending import intrinsic

from .numba_kernels import read, row, written, written_row
from .numba_parts import Kernel
from .numba_products import SIZE, address

# Of NumPy's wheels, of a library with integers of 64 bits, and of others: in Linux's calling conventions a longer
# integer is as good.
NAMES = ("scipy_cblas_{}64_", "cblas_{}64_", *(["cblas_{}"] if sys.platform == "linux" else []))
BY_ROWS, PLAIN, TRANSPOSED = 101, 111, 112  # of CBLAS's enumerations
ENUM, INT, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _address(name: str) -> int:
    """Where a function of NumPy's BLAS library is; 0 where it is not found."""
    try:
        library: Any = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    except (AttributeError, OSError):
        return 0
    found = [getattr(library, pattern.format(name), None) for pattern in NAMES]
    return next((ctypes.cast(x, ctypes.c_void_p).value or 0 for x in found if x is not None), 0)


SGEMM, SGEMV = _address("sgemm"), _address("sgemv")


def _call(builder: Any, function: Any, arguments: list[Any]) -> None:
    kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
    builder.call(builder.inttoptr(function, kind.as_pointer()), arguments)


@intrinsic
def sgemm(typingctx, function, a_transposed, b_transposed, m, n, k, a, a_row, b, b_row, out, out_row):
    """out = a b; the matrices by their addresses and the lengths of their rows in memory."""

    def generate(context: Any, builder: Any, signature: Any, values: tuple[Any, ...]) -> Any:
        function, *flags, m, n, k, a, a_row, b, b_row, out, out_row = values
        enums = [builder.select(x, ir.Constant(ENUM, TRANSPOSED), ir.Constant(ENUM, PLAIN)) for x in flags]
        one, zero = ir.Constant(FLOAT, 1.0), ir.Constant(FLOAT, 0.0)
        given = [ir.Constant(ENUM, BY_ROWS), *enums, m, n, k, one, a, a_row, b, b_row, zero, out, out_row]
        _call(builder, function, given)
        return context.get_dummy_value()

    return void(int64, types.boolean, types.boolean, *[int64] * 9), generate


@intrinsic
def sgemv(typingctx, function, m, n, a, x, out):
    """out = x a, for a matrix of m rows that lie one after another."""

    def generate(context: Any, builder: Any, signature: Any, values: tuple[Any, ...]) -> Any:
        function, m, n, a, x, out = values
        number, one, zero = ir.Constant(INT, 1), ir.Constant(FLOAT, 1.0), ir.Constant(FLOAT, 0.0)
        enums = [ir.Constant(ENUM, x) for x in (BY_ROWS, TRANSPOSED)]
        _call(builder, function, [*enums, m, n, one, a, n, x, number, zero, out, number])
        return context.get_dummy_value()

    return void(*[int64] * 6), generate


by_rows_or_columns = types.Array(float32, 2, "A", readonly=True)


@Kernel.of(void(int64, int64, int64, by_rows_or_columns, by_rows_or_columns, written))
def _dot(begin, end, at, a, b, out):
    """An address is another one in each process, and so an argument."""
    if begin < end:
        (m, k), n = a.shape, b.shape[1]
        a_by_columns, b_by_columns = a.strides[1] != SIZE, b.strides[1] != SIZE
        a_row, b_row = m if a_by_columns else k, k if b_by_columns else n
        sgemm(at, a_by_columns, b_by_columns, m, n, k, address(a), a_row, address(b), b_row, address(out), n)


@Kernel.of(void(int64, int64, int64, row, read, written_row))
def _vector_dot(begin, end, at, x, a, out):
    if begin < end:
        sgemv(at, len(a), a.shape[1], address(a), address(x), address(out))


def dot(count: int, parts: int, board: int, a: Any, b: Any, out: Any) -> None:
    """out = a b, as a compiled function of a kernel."""
    _dot.compiled(count, parts, board, SGEMM, a, b, out)


def vector_dot(count: int, parts: int, board: int, x: Any, a: Any, out: Any) -> None:
    """out = x a for a vector x."""
    _vector_dot.compiled(count, parts, board, SGEMV, x, a, out)
