"""The product of two large matrices in Numba (float32).

OpenBLAS, which NumPy's products come from, takes more time for a row of different products, as training has them
(tests/benchmarks/products.py): a tenth on Intel's processors where vectors have 16 floats, nothing to a quarter on
AMD's where they have 8. On Intel's with 8 both take the same time alone, but steps of a small transformer a tenth less
with the kernel, beside whose threads those of OpenBLAS stay asleep.

As in Goto and van de Geijn, Anatomy of high-performance matrix multiplication (2008): DEPTH rows of the second matrix,
and WIDTH of its columns, are copied into panels, as wide as a tile, in the order in which tiles read them; HEIGHT rows
of the first one, which stay in the second cache, are multiplied with panel after panel. Copies take a thread 4.3 MB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, types, void

from .numba_compiler import AVX2, AVX512, contiguous, inner
from .numba_math import ZERO
from .numba_parts import Kernel
from .numba_products import (
    SIZE,
    VECTOR,
    add_row,
    address,
    copy_row,
    copy_transposed,
    element,
    matrix,
    numbers_at,
    padded,
    tile_adder,
)
from .numba_threads import THREADS

# Sums of a tile, four or two vectors for each row, and a row of the second matrix fill the registers: 32, or 16.
TILE_ROWS, TILE_COLUMNS = 6, (4 if AVX512 else 2) * VECTOR
DEPTH, HEIGHT, WIDTH = 256, 144, 4096  # HEIGHT is a multiple of TILE_ROWS, WIDTH of TILE_COLUMNS
NEAR = 1024  # bytes: lines of the first matrix that are no farther from each other are read where they are
PRODUCTS_PER_ELEMENT = 64  # of two numbers, that take as long as one element of other kernels

# Other BLAS libraries are faster, or may be; nobody has measured other processors and more threads.
_blas: Any = np.show_config(mode="dicts")
_is_openblas = "openblas" in str(_blas.get("Build Dependencies", {}).get("blas", {}).get("name"))
FASTER = AVX2 and THREADS <= 4 and _is_openblas

read, written = types.Array(float32, 2, "A", readonly=True), types.Array(float32, 2, "A")
vector = types.Array(float32, 1, "C", readonly=True)
add_tile = tile_adder(TILE_ROWS, TILE_COLUMNS)


def product(x: Any, y: Any, bias: Any) -> Any:
    """x y + bias for two matrices; None where NumPy's product is better."""
    (m, k), n = x.shape, y.shape[1]
    down, across = -(-m // TILE_ROWS), -(-n // TILE_COLUMNS)  # tiles, which the result should fill well
    filled = m * n / (down * TILE_ROWS * across * TILE_COLUMNS)
    if not FASTER or filled < 0.85 or k != y.shape[0] or not (in_lines(x) and in_lines(y)):
        return None
    bias = np.empty(0, np.float32, like=x) if bias is None else contiguous(bias)
    no_residual = np.empty((0, 0), np.float32, like=x)
    out = np.empty((m, n), np.float32, like=x)
    count = across if m < n else down
    matmul(count, m * n * k // count // PRODUCTS_PER_ELEMENT, m < n, x, y, bias, no_residual, out)
    return out


def in_lines(x: Any) -> bool:
    """Whether rows or columns of a matrix are contiguous."""
    down, beside = x.strides
    return (beside == SIZE and down % SIZE == 0) or (down == SIZE and beside % SIZE == 0)


@inner
def clear(start, count):
    """Zeros where a tile reaches beyond a matrix: what was there before might be subnormal, which takes long."""
    memory = numbers_at(start, count)
    for i in range(count):
        memory[i] = ZERO


@inner
def load_panels(panels, b, first, count, left, right):
    """Copy b[first : first + count, left:right] into panels: count rows of TILE_COLUMNS each, one after another."""
    start = address(panels)
    if right % TILE_COLUMNS != 0:
        inside = (right - left) // TILE_COLUMNS * TILE_COLUMNS
        clear(start + SIZE * inside * count, TILE_COLUMNS * count)
    if b.strides[1] == SIZE:
        for p in range(count):  # row by row, as they lie in memory
            for j in range(left, right, TILE_COLUMNS):
                target = start + SIZE * ((j - left) * count + p * TILE_COLUMNS)
                copy_row(target, element(b, first + p, j), min(TILE_COLUMNS, right - j))
        return
    deep = count // VECTOR * VECTOR
    for j in range(left, right, TILE_COLUMNS):
        panel, width = start + SIZE * (j - left) * count, min(TILE_COLUMNS, right - j)
        wide = width // VECTOR * VECTOR
        for i in range(0, wide, VECTOR):
            for p in range(0, deep, VECTOR):
                target, source = panel + SIZE * (p * TILE_COLUMNS + i), element(b, first + p, j + i)
                copy_transposed(target, TILE_COLUMNS, source, b.strides[1] // SIZE)
        rest = numbers_at(panel, count * TILE_COLUMNS)
        for p in range(count):
            for i in range(wide if p < deep else 0, width):
                rest[p * TILE_COLUMNS + i] = b[first + p, j + i]


@inner
def load_rows(block, a, first, last, p, count):
    """Copy a[first:last, p : p + count], whose rows are contiguous, with zeros below to a whole tile."""
    for r in range(first, last):
        copy_row(element(block, r - first, 0), element(a, r, p), count)
    below = padded(last - first, TILE_ROWS) - (last - first)
    clear(element(block, last - first, 0), below * block.shape[1])


@inner
def load_columns(block, a, first, last, p, count):
    """Copy the transpose of a[first:last, p : p + count], whose columns are contiguous, with zeros beside it."""
    beside = padded(last - first, TILE_ROWS) - (last - first)
    for q in range(count):
        copy_row(element(block, q, 0), element(a, first, p + q), last - first)
        clear(element(block, q, last - first), beside)


@inner
def store(out, r, j, tile, keep):
    """Put the part of a tile that lies within the matrix where it belongs, or add it to what is there if ``keep``."""
    for i in range(min(TILE_ROWS, out.shape[0] - r)):
        for t in range(min(TILE_COLUMNS, out.shape[1] - j)):
            out[r + i, j + t] = tile[i, t] + (out[r + i, j + t] if keep else ZERO)


@inner
def multiply(top, bottom, left, right, a, b, bias, residual, out, panels, block, corner):
    """out = a b + bias + residual for these rows and columns, through the memory of the last three."""
    m, k = a.shape
    by_rows, depth = a.strides[1] == SIZE, panels.shape[1]
    near = abs(a.strides[0] if by_rows else a.strides[1]) <= NEAR
    for p in range(0, k, depth):
        count = min(depth, k - p)
        load_panels(panels, b, p, count, left, right)
        for first in range(top, bottom, HEIGHT):
            last = min(bottom, first + HEIGHT)
            if near and (last - first) % TILE_ROWS == 0:
                rows, row, step = element(a, first, p), a.strides[0] // SIZE, a.strides[1] // SIZE
            elif by_rows:
                load_rows(block, a, first, last, p, count)
                rows, row, step = address(block), block.shape[1], 1
            else:
                load_columns(block, a, first, last, p, count)
                rows, row, step = address(block), 1, block.shape[1]
            if p == 0 and bias.size > 0:
                for r in range(first, last):
                    copy_row(element(out, r, left), address(bias) + SIZE * left, right - left)
            keep = p > 0 or bias.size > 0
            for j in range(left, right, TILE_COLUMNS):
                panel = address(panels) + SIZE * (j - left) * count
                for r in range(first, last, TILE_ROWS):
                    start = rows + SIZE * (r - first) * row
                    inside = r + TILE_ROWS <= m and j + TILE_COLUMNS <= out.shape[1]
                    target, target_row = element(corner, 0, 0), TILE_COLUMNS
                    if inside:
                        target, target_row = element(out, r, j), out.strides[0] // SIZE
                    add_tile(keep and inside, target, target_row, start, row, step, panel, TILE_COLUMNS, count)
                    if not inside:
                        store(out, r, j, corner, keep)
            if p + count == k and residual.size > 0:  # the rows are still in the cache
                for r in range(first, last):
                    add_row(element(out, r, left), element(residual, r, left), right - left)


@Kernel.of(void(int64, int64, boolean, read, read, vector, read, written))
def matmul(begin, end, by_columns, a, b, bias, residual, out):
    """out = a b + bias + residual, where they are not empty, for the rows (or columns) of tiles ``begin`` to ``end``.

    Rows of ``out`` and ``residual`` are contiguous, and rows or columns of a and of b: see in_lines; k > 0. The
    residual is added last, as by an operation of its own, which captured steps save: see recording/residuals.py.
    """
    (m, k), n = a.shape, b.shape[1]
    top, bottom, left, right = begin * TILE_ROWS, min(m, end * TILE_ROWS), 0, n
    if by_columns:
        top, bottom, left, right = 0, m, begin * TILE_COLUMNS, min(n, end * TILE_COLUMNS)
    depth = min(k, DEPTH)
    panels = matrix(padded(min(WIDTH, right - left), TILE_COLUMNS), depth)
    block = matrix(HEIGHT, depth) if a.strides[1] == SIZE else matrix(depth, HEIGHT)
    corner = matrix(TILE_ROWS, TILE_COLUMNS)
    for j in range(left, right, WIDTH):
        multiply(top, bottom, j, min(right, j + WIDTH), a, b, bias, residual, out, panels, block, corner)
