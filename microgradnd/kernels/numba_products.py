"""Products of matrices that stay in the caches, for kernels: the sums of a tile are kept in registers.

Numba's loops add to memory instead, since it can't tell whether the matrices overlap, at a fraction of the speed. So
the loop over a tile is written in LLVM's language, in which a vector is a type.

Numba keeps compiled kernels on disk and does not see that this file has changed: delete ``__pycache__`` then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .numba_compiler import AVX512

TILE_ROWS = 4
VECTOR = 16 if AVX512 else 8  # floats
TILE_COLUMNS = 2 * VECTOR  # 8 vectors of sums are as many additions as a processor can have under way

INDEX, VECTOR_OF_INT = ir.IntType(64), ir.VectorType(ir.IntType(32), VECTOR)
VECTOR_OF_FLOAT = ir.VectorType(ir.FloatType(), VECTOR)


@intrinsic
def add_tile(typingctx, keep, c, c_at, c_row, a, a_at, a_row, a_step, b, b_at, b_row, k):
    """The product of (TILE_ROWS, k) and (k, TILE_COLUMNS) in a tile of c, added to what is there if ``keep``.

    The arrays are contiguous. In the order of memory, element (r, j) of the tile is number c_at + r c_row + j, element
    (r, p) of the first matrix a_at + r a_row + p a_step, and element (p, j) of the second one b_at + p b_row + j.
    """
    number = types.int64
    return types.void(types.boolean, c, number, number, a, number, number, number, b, number, number, number), _add_tile


def _add_tile(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
    keep, c, c_at, c_row, a, a_at, a_row, a_step, b, b_at, b_row, k = arguments
    c, a, b = (context.make_array(signature.args[i])(context, builder, x).data for i, x in ((1, c), (4, a), (8, b)))

    def index(number: int) -> Any:
        return ir.Constant(INDEX, number)

    def pointer(start: Any, at: Any, step: Any, count: Any) -> Any:
        return builder.gep(start, [builder.add(at, builder.mul(step, count))])

    def vectors(start: Any) -> list[Any]:
        """Pointers to the two of a row."""
        return [builder.bitcast(builder.gep(start, [index(i)]), VECTOR_OF_FLOAT.as_pointer()) for i in (0, VECTOR)]

    def repeated(x: Any) -> Any:
        undefined = ir.Constant(VECTOR_OF_FLOAT, ir.Undefined)
        first = builder.insert_element(undefined, x, ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, undefined, ir.Constant(VECTOR_OF_INT, [0] * VECTOR))

    rows = [index(r) for r in range(TILE_ROWS)]
    tile = [x for r in rows for x in vectors(pointer(c, c_at, r, c_row))]
    left = [pointer(a, a_at, r, a_row) for r in rows]
    zero = ir.Constant(VECTOR_OF_FLOAT, [0.0] * VECTOR)
    before = [builder.select(keep, builder.load(x, align=4), zero) for x in tile]
    entry, loop, end = builder.block, builder.append_basic_block("products"), builder.append_basic_block("tile")
    builder.cbranch(builder.icmp_signed(">", k, index(0)), loop, end)

    builder.position_at_end(loop)
    p = builder.phi(INDEX)
    sums = [builder.phi(VECTOR_OF_FLOAT) for _ in tile]
    right = [builder.load(x, align=4) for x in vectors(pointer(b, b_at, p, b_row))]
    factors = [repeated(builder.load(builder.gep(x, [builder.mul(p, a_step)]))) for x in left]
    products = [builder.fmul(x, y, flags=("contract",)) for x in factors for y in right]
    added = [builder.fadd(x, y, flags=("contract",)) for x, y in zip(sums, products, strict=True)]
    following = builder.add(p, index(1))
    builder.cbranch(builder.icmp_signed("<", following, k), loop, end)
    for phi, first, new in zip((p, *sums), (index(0), *before), (following, *added), strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(new, loop)

    builder.position_at_end(end)
    totals = [builder.phi(VECTOR_OF_FLOAT) for _ in tile]
    for phi, first, new in zip(totals, before, added, strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(new, loop)
    for total, target in zip(totals, tile, strict=True):
        builder.store(total, target, align=4)
    return context.get_dummy_value()


@njit
def set_product(c, a, b, r, j, k):
    """c = a[:, :k] b[:k], for the tile of c that begins at (r, j)."""
    n = a.shape[1]
    add_tile(False, c, r * c.shape[1] + j, c.shape[1], a, r * n, n, 1, b, j, b.shape[1], k)


@njit
def add_transposed(c, a, b, r, j, first, end):
    """c += a[first:end]^T b[first:end], for the tile of c that begins at (r, j)."""
    m, n = a.shape[1], b.shape[1]
    add_tile(True, c, r * c.shape[1] + j, c.shape[1], a, first * m + r, 1, m, b, first * n + j, n, end - first)


@njit
def padded(n, step):
    """n, or the next multiple of ``step``."""
    return (n + step - 1) // step * step


@njit
def matrix(rows, columns):
    """A matrix that begins with a line of the cache; nobody has written to it."""
    memory = np.empty(rows * columns + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + rows * columns].reshape(rows, columns)
