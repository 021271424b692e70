"""The product of two large matrices in Numba (float32).

OpenBLAS, which NumPy's products come from, takes a tenth more time for a row of different products, as training has
them (tests/benchmarks/products.py), where vectors have 16 floats.

As in Goto and van de Geijn, Anatomy of high-performance matrix multiplication (2008): DEPTH rows of the second matrix
are copied into panels, as wide as a tile, in the order in which tiles read them; HEIGHT rows of the first one, which
stay in the second cache, are multiplied with panel after panel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, njit, types, void

from .numba_compiler import AVX512, Kernel
from .numba_math import ZERO
from .numba_products import (
    SIZE,
    VECTOR,
    address,
    copy_row,
    copy_transposed,
    matrix,
    numbers_at,
    padded,
    tile_adder,
)
from .numba_threads import THREADS

# Sums of a tile, four or two vectors for each row, and a row of the second matrix fill the registers: 32, or 16.
TILE_ROWS, TILE_COLUMNS = 6, (4 if AVX512 else 2) * VECTOR
DEPTH, HEIGHT = 256, 144  # HEIGHT is a multiple of TILE_ROWS
NEAR = 256  # numbers: lines of the first matrix that are no farther from each other are read where they are
PRODUCTS = 64  # of numbers, that take the time of one element of other kernels

# With vectors of 8 floats OpenBLAS is as fast; other BLAS libraries are faster, or may be; many threads start too late.
_blas: Any = np.show_config(mode="dicts")
FASTER = AVX512 and THREADS <= 4 and "openblas" in str(_blas.get("Build Dependencies", {}).get("blas", {}).get("name"))

read, written = types.Array(float32, 2, "A", readonly=True), types.Array(float32, 2, "A")
numbers = types.Array(float32, 1, "C", readonly=True)
add_tile = tile_adder(TILE_ROWS, TILE_COLUMNS)


def pays(m: int, n: int) -> bool:
    """Whether the kernel is faster here for a result of this shape: its tiles have to fill it well."""
    return FASTER and m * n >= 0.85 * (-(-m // TILE_ROWS) * TILE_ROWS) * (-(-n // TILE_COLUMNS) * TILE_COLUMNS)


def in_lines(x: Any) -> bool:
    """Whether rows or columns of a matrix are contiguous."""
    down, beside = x.strides
    return (beside == SIZE and down % SIZE == 0) or (down == SIZE and beside % SIZE == 0)


@njit
def steps(x):
    """From one number of a matrix to that below it and to that beside it."""
    return x.strides[0] // SIZE, x.strides[1] // SIZE


@njit
def element(x, r, j):
    """The address of an element."""
    down, right = steps(x)
    return address(x) + SIZE * (r * down + j * right)


@njit
def clear(start, count):
    """Zeros where a tile reaches beyond a matrix: what was there before might be subnormal, which takes long."""
    numbers = numbers_at(start, count)
    for i in range(count):
        numbers[i] = ZERO


@njit
def load_panels(panels, b, first, count, left, right):
    """Copy b[first : first + count, left:right] into panels: count rows of TILE_COLUMNS each, one after another."""
    beside = steps(b)[1]
    if right % TILE_COLUMNS != 0:
        whole = (right - left) // TILE_COLUMNS * TILE_COLUMNS
        clear(address(panels) + SIZE * whole * count, TILE_COLUMNS * count)
    for p in range(count if beside == 1 else 0):  # row by row, as they lie in memory
        for j in range(left, right, TILE_COLUMNS):
            target = address(panels) + SIZE * ((j - left) * count + p * TILE_COLUMNS)
            copy_row(target, element(b, first + p, j), min(TILE_COLUMNS, right - j))
    for j in range(left, right if beside != 1 else left, TILE_COLUMNS):
        panel, width = address(panels) + SIZE * (j - left) * count, min(TILE_COLUMNS, right - j)
        deep, wide = count // VECTOR * VECTOR, width // VECTOR * VECTOR
        for i in range(0, wide, VECTOR):
            for p in range(0, deep, VECTOR):
                target = panel + SIZE * (p * TILE_COLUMNS + i)
                copy_transposed(target, TILE_COLUMNS, element(b, first + p, j + i), beside)
        rows = numbers_at(panel, count * TILE_COLUMNS)
        for p in range(count):
            for i in range(wide if p < deep else 0, width):
                rows[p * TILE_COLUMNS + i] = b[first + p, j + i]


@njit
def load_block(block, a, first, last, p, count, by_rows):
    """Copy a[first:last, p : p + count], with zeros below to a whole tile, in the order in which a lies in memory."""
    lines = last - first if by_rows else count
    length, step = (count, block.shape[1]) if by_rows else (last - first, HEIGHT)
    for i in range(lines):
        source = element(a, first + i, p) if by_rows else element(a, first, p + i)
        copy_row(address(block) + SIZE * i * step, source, length)
        if not by_rows and length % TILE_ROWS != 0:
            clear(address(block) + SIZE * (i * step + length), TILE_ROWS - length % TILE_ROWS)
    if by_rows and lines % TILE_ROWS != 0:
        clear(address(block) + SIZE * lines * step, (TILE_ROWS - lines % TILE_ROWS) * step)


@njit
def store(out, r, j, tile, keep):
    """Put the part of a tile that lies within the matrix where it belongs, or add it to what is there if ``keep``."""
    for i in range(min(TILE_ROWS, out.shape[0] - r)):
        for t in range(min(TILE_COLUMNS, out.shape[1] - j)):
            out[r + i, j + t] = tile[i, t] + (out[r + i, j + t] if keep else ZERO)


@Kernel.of(void(int64, int64, boolean, read, read, numbers, written))
def multiply(begin, end, by_columns, a, b, bias, out):
    """out = a b + bias, unless that is empty, for the rows (or columns) of tiles from ``begin`` to ``end``.

    Rows of ``out`` are contiguous, and either rows or columns of a.
    """
    (m, k), n = a.shape, b.shape[1]
    top, bottom, left, right = 0, m, 0, n
    if by_columns:
        left, right = begin * TILE_COLUMNS, min(n, end * TILE_COLUMNS)
    else:
        top, bottom = begin * TILE_ROWS, min(m, end * TILE_ROWS)
    by_rows, out_row = steps(a)[1] == 1, steps(out)[0]
    near = abs(steps(a)[0 if by_rows else 1]) <= NEAR
    depth = min(k, DEPTH)
    panels = matrix(padded(right - left, TILE_COLUMNS), depth)
    block = matrix(HEIGHT, depth)
    corner = matrix(TILE_ROWS, TILE_COLUMNS)
    for p in range(0, k, depth):
        count = min(depth, k - p)
        load_panels(panels, b, p, count, left, right)
        for first in range(top, bottom, HEIGHT):
            last = min(bottom, first + HEIGHT)
            if near and (last - first) % TILE_ROWS == 0:
                rows, (row, step) = element(a, first, p), steps(a)
            else:
                load_block(block, a, first, last, p, count, by_rows)
                rows, row, step = address(block), depth if by_rows else 1, 1 if by_rows else HEIGHT
            if p == 0 and bias.size > 0:
                for r in range(first, last):
                    copy_row(element(out, r, left), address(bias) + SIZE * left, right - left)
            keep = p > 0 or bias.size > 0
            for j in range(left, right, TILE_COLUMNS):
                panel = address(panels) + SIZE * (j - left) * count
                for r in range(first, last, TILE_ROWS):
                    whole = r + TILE_ROWS <= m and j + TILE_COLUMNS <= n
                    tile, tile_row = (element(out, r, j), out_row) if whole else (address(corner), TILE_COLUMNS)
                    add_tile(
                        keep and whole,
                        tile,
                        tile_row,
                        rows + SIZE * (r - first) * row,
                        row,
                        step,
                        panel,
                        TILE_COLUMNS,
                        count,
                    )
                    if not whole:
                        store(out, r, j, corner, keep)
