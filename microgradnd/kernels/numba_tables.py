"""Functions by tables, where the processor has AVX-512: one instruction looks up 16 numbers among 32.

So a function of which only a short range matters can be another polynomial of low degree on each of 32 intervals: they
take the time of one, and a look-up for each coefficient. Numba's loops can't say that, so vectors are written in LLVM's
language, as in numba_products.
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

from .numba_compiler import inner
from .numba_products import INDEX, LANE, LANES, SIZE, VECTOR, VECTOR_OF_FLOAT, broadcast, call_llvm

INTERVAL, INTERVALS = 0.5, 32  # intervals of this length lie around its first multiples, from 0 on
DEGREE, POINTS = 7, 24  # of each polynomial; to which it is fitted
# Added to t, it rounds t to a multiple of INTERVAL. The last bits of the sum say to which one: the interval's number.
COUNT_INTERVALS = 1.5 * 2**23 * INTERVAL
VECTOR_NAME = f"v{VECTOR}f32"  # in the names of LLVM's functions


@functools.cache
def table(function: Callable[[float], float], scale: Callable[[float], float], end: float) -> Any:
    """The coefficients (DEGREE + 1, INTERVALS), by falling power, of polynomials in t less the middle of its interval.

    They are fitted to ``function`` by least squares of error / ``scale``, both functions of t. From the interval around
    ``end`` on, a multiple of INTERVAL up to 15.5, they are 0.
    """
    coefficients = np.zeros((DEGREE + 1, INTERVALS), np.float32)
    points = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS) * INTERVAL / 2  # Chebyshev's: densest at the ends
    powers = np.vander(points, DEGREE + 1)
    for i in range(round(end / INTERVAL)):
        scales = np.array([scale(INTERVAL * i + x) for x in points])
        values = np.array([function(INTERVAL * i + x) for x in points])
        coefficients[:, i] = np.linalg.lstsq(powers / scales[:, None], values / scales)[0]
    return coefficients


def constant(values: Any) -> Any:
    """The vector of these numbers, or of a single one in every lane."""
    return ir.Constant(VECTOR_OF_FLOAT, [float(x) for x in np.broadcast_to(values, VECTOR)])


class VectorBuilder:
    """Writes instructions for VECTOR numbers at once: in memory, those from number ``start`` on after an address.

    With ``left``, only the first ``left`` of them are read and written.
    """

    def __init__(self, builder: Any, start: Any, left: Any = None) -> None:
        self.builder = builder
        self._offset = builder.mul(start, ir.Constant(INDEX, SIZE))
        self._mask = None
        if left is not None:
            bound = broadcast(builder, builder.trunc(left, LANE))
            self._mask = builder.icmp_signed("<", ir.Constant(LANES, list(range(VECTOR))), bound)

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(self.builder.add(address, self._offset), VECTOR_OF_FLOAT.as_pointer())

    def load(self, address: Any) -> Any:
        """The numbers there; 0 for those beyond the first ``left``."""
        pointer = self._pointer(address)
        if self._mask is None:
            return self.builder.load(pointer, align=SIZE)
        arguments = pointer, ir.Constant(LANE, SIZE), self._mask, constant(0)
        return call_llvm(self.builder, f"llvm.masked.load.{VECTOR_NAME}.p0{VECTOR_NAME}", VECTOR_OF_FLOAT, *arguments)

    def store(self, x: Any, address: Any) -> None:
        pointer = self._pointer(address)
        if self._mask is None:
            self.builder.store(x, pointer, align=SIZE)
        else:
            arguments = x, pointer, ir.Constant(LANE, SIZE), self._mask
            call_llvm(self.builder, f"llvm.masked.store.{VECTOR_NAME}.p0{VECTOR_NAME}", ir.VoidType(), *arguments)

    def absolute(self, x: Any) -> Any:
        """|x|."""
        return call_llvm(self.builder, f"llvm.fabs.{VECTOR_NAME}", VECTOR_OF_FLOAT, x)

    def minimum(self, x: Any, most: float) -> Any:
        """The smaller of x and ``most``; ``most`` for NaN."""
        return self.builder.select(self.builder.fcmp_ordered("<", x, constant(most)), x, constant(most))

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x y + z, rounded once."""
        return call_llvm(self.builder, f"llvm.fma.{VECTOR_NAME}", VECTOR_OF_FLOAT, x, y, z)

    def looked_up(self, t: Any, coefficients: Any) -> Any:
        """The value at t, from 0 to a table's end, of the polynomial of its interval."""
        counted = self.builder.fadd(t, constant(COUNT_INTERVALS))
        interval = self.builder.bitcast(counted, LANES)
        from_middle = self.builder.fsub(t, self.builder.fsub(counted, constant(COUNT_INTERVALS)))
        look_up, chosen = "llvm.x86.avx512.vpermi2var.ps.512", []
        for numbers in coefficients:
            low, high = (constant(half) for half in np.split(numbers, 2))
            chosen.append(call_llvm(self.builder, look_up, VECTOR_OF_FLOAT, low, interval, high))
        return functools.reduce(lambda value, x: self.fma(value, from_middle, x), chosen)


def by_vectors(compute: Callable[..., None]) -> Any:
    """A function (count, addresses), which compiled ones can call.

    It does for so many numbers from each address on what ``compute(v, *addresses)`` writes for one vector of them.
    """

    def vector(partly: bool) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: tuple[Any, ...]) -> Any:
            start, left, addresses = arguments
            v = VectorBuilder(builder, start, left if partly else None)
            compute(v, *cgutils.unpack_tuple(builder, addresses))
            return context.get_dummy_value()

        @intrinsic
        def function(typingctx, start, left, addresses):
            return void(int64, int64, addresses), generate

        return function

    whole, last = vector(partly=False), vector(partly=True)

    @inner  # no fastmath: it would let LLVM reorder the sums by which looked_up rounds
    def all_of_them(count, addresses):
        end = count // VECTOR * VECTOR
        for i in range(0, end, VECTOR):
            whole(i, VECTOR, addresses)
        if end < count:
            last(end, count - end, addresses)

    return all_of_them
