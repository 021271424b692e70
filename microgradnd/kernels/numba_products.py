"""What products of matrices are made of: tiles, whose sums are kept in registers, and copies, which feed them.

Numba's loops add to memory instead, since it can't tell whether the matrices overlap, at a fraction of the speed. So
the loop over a tile is written in LLVM's language, in which a vector is a type. Matrices are float32; places in them
are addresses in bytes, steps in them numbers of elements.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .numba_compiler import AVX512, inner
from .numba_jobs import load
from .numba_math import f4

VECTOR = 16 if AVX512 else 8  # floats
SIZE = 4  # bytes of one
HEAD = object.__basicsize__  # bytes of an object of CPython before what is its own: of an array, where its numbers are

_array = np.zeros(1)
if ctypes.c_size_t.from_address(id(_array) + HEAD).value != _array.ctypes.data:
    raise ImportError("an array of NumPy lies in memory otherwise than it does in CPython")

INDEX, LANE, FLOAT, BYTES = ir.IntType(64), ir.IntType(32), ir.FloatType(), ir.IntType(8).as_pointer()
VECTOR_OF_FLOAT, LANES = ir.VectorType(FLOAT, VECTOR), ir.VectorType(LANE, VECTOR)


def _pointer(builder: Any, start: Any) -> Any:
    return builder.inttoptr(start, FLOAT.as_pointer())


def _vectors(builder: Any, start: Any, count: int) -> list[Any]:
    """Pointers to so many in a row."""
    places = [builder.gep(start, [ir.Constant(INDEX, i * VECTOR)]) for i in range(count)]
    return [builder.bitcast(x, VECTOR_OF_FLOAT.as_pointer()) for x in places]


def call_llvm(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call one of LLVM's own functions, whose result is of this type."""
    kind = ir.FunctionType(result, [x.type for x in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _prefetch(builder: Any, line: Any) -> None:
    """Fetch a line of memory into the first cache."""
    to_read, into_first, data = (ir.Constant(LANE, x) for x in (0, 3, 1))
    place = builder.bitcast(line, BYTES)
    call_llvm(builder, "llvm.prefetch.p0i8", ir.VoidType(), place, to_read, into_first, data)


def _lanes(builder: Any, x: Any, y: Any, chosen: list[int]) -> Any:
    """The vector of these lanes of x and, from VECTOR on, of y."""
    return builder.shuffle_vector(x, y, ir.Constant(LANES, chosen))


def broadcast(builder: Any, x: Any) -> Any:
    """The vector with x in every lane."""
    undefined = ir.Constant(ir.VectorType(x.type, VECTOR), ir.Undefined)
    return _lanes(builder, builder.insert_element(undefined, x, ir.Constant(LANE, 0)), undefined, [0] * VECTOR)


def _opaque(builder: Any, x: Any) -> Any:
    """x in a register, however LLVM would come by it: by an addition for each row, or by more registers."""
    return builder.asm(ir.FunctionType(x.type, [x.type]), "", "=r,0", [x], False)


def _times(builder: Any, step: Any, count: int) -> Any:
    return builder.mul(step, ir.Constant(INDEX, count))


def _joined(builder: Any, *origins: tuple[Any, list[Any]]) -> list[Any]:
    """Values that depend on the block that one comes from."""
    phis = [builder.phi(x.type) for x in origins[0][1]]
    for block, values in origins:
        for phi, x in zip(phis, values, strict=True):
            phi.add_incoming(x, block)
    return phis


def _added(builder: Any, sums: list[Any], a: Any, offsets: list[Any], b: Any) -> list[Any]:
    """The sums of a tile with the products of a column of the first matrix and a row of the second."""
    row = [builder.load(x, align=SIZE) for x in _vectors(builder, b, len(sums) // len(offsets))]
    new: list[Any] = []
    for offset in offsets:
        factor = broadcast(builder, builder.load(builder.gep(a, [offset])))
        for y in row:
            product = builder.fmul(factor, y, flags=("contract",))
            new.append(builder.fadd(sums[len(new)], product, flags=("contract",)))
    return new


def tile_adder(rows: int, columns: int) -> Any:
    """A function that computes the product of (rows, k) and (k, columns), a multiple of VECTOR, in a tile of c.

    ``add_tile(keep, c, c_row, a, a_row, a_step, b, b_row, k)`` adds it to what is there if ``keep``. Element (r, j) of
    the tile is c_row r + j elements from c, element (r, p) of the first matrix a_row r + a_step p from a, and element
    (p, j) of the second one b_row p + j from b.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        keep, c, c_row, a, a_row, a_step, b, b_row, k = arguments
        c, a, b = (_pointer(builder, x) for x in (c, a, b))
        starts = [builder.gep(c, [_times(builder, c_row, r)]) for r in range(rows)]
        tile = [x for start in starts for x in _vectors(builder, start, columns // VECTOR)]
        for target in tile:  # it will be needed when the sums are done
            _prefetch(builder, target)
        offsets = [_opaque(builder, _times(builder, a_row, r)) for r in range(rows)]
        nothing = [ir.Constant(VECTOR_OF_FLOAT, [0.0] * VECTOR)] * len(tile)
        none, one = ir.Constant(INDEX, 0), ir.Constant(INDEX, 1)
        pairs, odd = builder.ashr(k, one), builder.trunc(k, ir.IntType(1))
        entry = builder.block
        loop, rest, last, end = (builder.append_basic_block(x) for x in ("pairs", "rest", "last", "tile"))
        builder.cbranch(builder.icmp_signed(">", pairs, none), loop, rest)

        builder.position_at_end(loop)
        before = p, a_now, b_now, *sums = _joined(builder, (entry, [none, a, b, *nothing]))
        sums = _added(builder, sums, a_now, offsets, b_now)
        a_second, b_second = _opaque(builder, builder.gep(a_now, [a_step])), builder.gep(b_now, [b_row])
        sums = _added(builder, sums, a_second, offsets, b_second)
        a_next, b_next = (builder.gep(x, [_times(builder, y, 2)]) for x, y in ((a_now, a_step), (b_now, b_row)))
        after = [builder.add(p, one), a_next, b_next, *sums]
        for phi, x in zip(before, after, strict=True):
            phi.add_incoming(x, loop)
        builder.cbranch(builder.icmp_signed("<", after[0], pairs), loop, rest)

        builder.position_at_end(rest)
        a_now, b_now, *sums = _joined(builder, (entry, [a, b, *nothing]), (loop, after[1:]))
        builder.cbranch(odd, last, end)
        builder.position_at_end(last)
        with_last = _added(builder, sums, a_now, offsets, b_now)
        builder.branch(end)

        builder.position_at_end(end)
        totals = _joined(builder, (rest, sums), (last, with_last))
        with builder.if_else(keep) as (then, otherwise):
            with then:
                for total, target in zip(totals, tile, strict=True):
                    builder.store(builder.fadd(builder.load(target, align=SIZE), total), target, align=SIZE)
            with otherwise:
                for total, target in zip(totals, tile, strict=True):
                    builder.store(total, target, align=SIZE)
        return context.get_dummy_value()

    @intrinsic
    def add_tile(typingctx, keep, c, c_row, a, a_row, a_step, b, b_row, k):
        return types.void(types.boolean, *[types.int64] * 8), generate

    return add_tile


@intrinsic
def copy_transposed(typingctx, target, target_row, source, source_row):
    """Copy a square of VECTOR rows and columns, with the rows of one place as the columns of the other."""

    def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
        target, target_row, source, source_row = arguments
        target, source = _pointer(builder, target), _pointer(builder, source)

        def row(start: Any, step: Any, i: int) -> Any:
            return _vectors(builder, builder.gep(start, [_times(builder, step, i)]), 1)[0]

        x = [builder.load(row(source, source_row, i), align=SIZE) for i in range(VECTOR)]
        lanes, size = range(VECTOR), 1
        while size < VECTOR:  # squares of ``size`` rows and columns that lie across the diagonal change places
            for i in lanes:
                if not i & size:
                    low, high = x[i], x[i + size]
                    x[i] = _lanes(builder, low, high, [n + VECTOR - size if n & size else n for n in lanes])
                    x[i + size] = _lanes(builder, low, high, [n + VECTOR if n & size else n + size for n in lanes])
            size *= 2
        for i in lanes:
            builder.store(x[i], row(target, target_row, i), align=SIZE)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def as_pointer(typingctx, start):
    """An address, an integer, as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@inner
def numbers_at(start, count):
    """So many numbers that lie side by side, from an address on."""
    return carray(as_pointer(start), count, f4)


@inner
def numbers_of(array_id, start, count):
    """So many numbers of a contiguous array, from ``start`` on, by its id.

    In CPython that is the address of the object, of which the address of the numbers is the first part. To ask Python
    for this one takes 1.5 us an array.
    """
    return numbers_at(load(array_id + HEAD) + SIZE * start, count)


@inner
def address(x):
    """Where an array begins; a number with a sign, since Numba adds numbers with and without one as float64.

    Numba frees an array that is not mentioned any more, whoever has its address.
    """
    return np.int64(x.ctypes.data)


@inner
def element(x, r, j):
    """The address of an element of a matrix."""
    return address(x) + r * x.strides[0] + j * x.strides[1]


@intrinsic
def copy_vector(typingctx, target, source):
    """Copy VECTOR numbers from the second address to the first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, of = (_vectors(builder, _pointer(builder, x), 1)[0] for x in arguments)
        builder.store(builder.load(of, align=SIZE), to, align=SIZE)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@inner(forceinline=True)
def copy_row(target, source, count):
    """Copy so many numbers that lie side by side: few at a time, so that a call and a look for overlaps would count."""
    whole = count // VECTOR * VECTOR
    for i in range(0, whole, VECTOR):
        copy_vector(target + SIZE * i, source + SIZE * i)
    to, of = numbers_at(target, count), numbers_at(source, count)
    for i in range(whole, count):
        to[i] = of[i]


@inner
def add_row(target, source, count):
    """Add so many numbers that lie side by side to others."""
    sums, addends = numbers_at(target, count), numbers_at(source, count)
    for i in range(count):
        sums[i] += addends[i]


@inner
def padded(n, step):
    """n, or the next multiple of ``step``."""
    return (n + step - 1) // step * step


@inner
def matrix(rows, columns):
    """A matrix that begins with a line of the cache; nobody has written to it."""
    line = 64 // SIZE
    memory = np.empty(rows * columns + line, np.float32)
    first = -address(memory) % 64 // SIZE
    return memory[first : first + rows * columns].reshape(rows, columns)
