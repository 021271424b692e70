"""Functions by tables, where the processor has AVX-512: one instruction looks up 16 numbers among 32.

So a function of few arguments that matter is a polynomial of low degree for each of some intervals, all of which take
the same time. Numba's loops can't say that, so vectors are written in LLVM's language, as in numba_products.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, void
from numba.core import cgutils
from numba.extending import intrinsic

from .numba_compiler import SUMS, inner
from .numba_products import INDEX, LANE, SIZE, VECTOR, VECTOR_OF_FLOAT

# Intervals of this length lie around its multiples. Of a number to which COUNT_INTERVALS has been added the last bits
# say in which interval it is.
INTERVAL, INTERVALS = 0.5, 32
DEGREE, POINTS = 7, 24
COUNT_INTERVALS = 1.5 * 2**23 * INTERVAL
INDICES = ir.VectorType(LANE, VECTOR)
VECTOR_NAME = f"v{VECTOR}f32"
FUSED = ("contract",)


@functools.cache
def table(function: Callable[[float], float], size: Callable[[float], float], end: float) -> Any:
    """A polynomial for each interval, fitted to ``function`` by least squares: rows of coefficients by falling power.

    Errors count by their share of ``size``. Around ``end``, a multiple of INTERVAL below 15.5, the polynomial is 0.
    """
    coefficients = np.zeros((DEGREE + 1, INTERVALS), np.float32)
    points = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS) * INTERVAL / 2  # Chebyshev's: densest at the ends
    powers = np.vander(points, DEGREE + 1)
    for i in range(round(end / INTERVAL)):
        sizes = np.array([size(INTERVAL * i + x) for x in points])
        values = np.array([function(INTERVAL * i + x) for x in points])
        coefficients[:, i] = np.linalg.lstsq(powers / sizes[:, None], values / sizes)[0]
    return coefficients


def constant(values: Any) -> Any:
    """A vector of these numbers, or of one that they all are."""
    return ir.Constant(VECTOR_OF_FLOAT, [float(x) for x in np.broadcast_to(values, VECTOR)])


class Vectors:
    """Vectors of what lies at some addresses, from number ``start`` on: VECTOR numbers, or only the first ``left``."""

    def __init__(self, builder: Any, start: Any, left: Any = None) -> None:
        self.builder = builder
        self._offset = builder.mul(start, ir.Constant(INDEX, SIZE))
        self._mask = None
        if left is not None:
            undefined = ir.Constant(INDICES, ir.Undefined)
            bound = builder.insert_element(undefined, builder.trunc(left, LANE), ir.Constant(LANE, 0))
            bound = builder.shuffle_vector(bound, undefined, ir.Constant(INDICES, [0] * VECTOR))
            self._mask = builder.icmp_signed("<", ir.Constant(INDICES, list(range(VECTOR))), bound)

    def _place(self, address: Any) -> Any:
        return self.builder.inttoptr(self.builder.add(address, self._offset), VECTOR_OF_FLOAT.as_pointer())

    def load(self, address: Any) -> Any:
        """The numbers there; 0 for those beyond the first ``left``."""
        place = self._place(address)
        if self._mask is None:
            return self.builder.load(place, align=SIZE)
        arguments = place, ir.Constant(LANE, SIZE), self._mask, constant(0)
        return self.call(f"llvm.masked.load.{VECTOR_NAME}.p0{VECTOR_NAME}", VECTOR_OF_FLOAT, *arguments)

    def store(self, x: Any, address: Any) -> None:
        place = self._place(address)
        if self._mask is None:
            self.builder.store(x, place, align=SIZE)
        else:
            arguments = x, place, ir.Constant(LANE, SIZE), self._mask
            self.call(f"llvm.masked.store.{VECTOR_NAME}.p0{VECTOR_NAME}", ir.VoidType(), *arguments)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        """One of LLVM's own functions."""
        kind = ir.FunctionType(result, [x.type for x in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def absolute(self, x: Any) -> Any:
        """|x|."""
        return self.call(f"llvm.fabs.{VECTOR_NAME}", VECTOR_OF_FLOAT, x)

    def least(self, x: Any, most: float) -> Any:
        """x where it is less than ``most``, which is what becomes of NaN too."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, constant(most)), x, constant(most))

    def plus(self, x: Any, y: Any, z: Any) -> Any:
        """x y + z, rounded once."""
        return self.builder.fadd(self.builder.fmul(x, y, flags=FUSED), z, flags=FUSED)

    def looked_up(self, t: Any, coefficients: Any) -> Any:
        """What a table has for t, from 0 to its end."""
        counted = self.builder.fadd(t, constant(COUNT_INTERVALS))
        interval = self.builder.bitcast(counted, INDICES)
        from_middle = self.builder.fsub(t, self.builder.fsub(counted, constant(COUNT_INTERVALS)))
        chosen = []
        for numbers in coefficients:
            low, high = (constant(half) for half in np.split(numbers, 2))
            chosen.append(self.call("llvm.x86.avx512.vpermi2var.ps.512", VECTOR_OF_FLOAT, low, interval, high))
        return functools.reduce(lambda value, x: self.plus(value, from_middle, x), chosen)


def by_vectors(compute: Callable[..., None]) -> Any:
    """A function for compiled ones: ``f(count, places)`` does ``compute(vectors, *places)`` for so many numbers."""

    def vector(partly: bool) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
            start, left, places = arguments
            vectors = Vectors(builder, start, left if partly else None)
            compute(vectors, *cgutils.unpack_tuple(builder, places))
            return context.get_dummy_value()

        @intrinsic
        def function(typingctx, start, left, places):
            return void(int64, int64, places), generate

        return function

    whole, last = vector(partly=False), vector(partly=True)

    @inner(fastmath=SUMS, error_model="numpy")
    def all_of_them(count, places):
        end = count // VECTOR * VECTOR
        for i in range(0, end, VECTOR):
            whole(i, VECTOR, places)
        if end < count:
            last(end, count - end, places)

    return all_of_them
