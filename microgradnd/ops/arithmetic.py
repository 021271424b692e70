"""Arithmetic: operations of one or two operands behind Python's operators, and their piecewise relatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..autocast import in_float32
from ..dtypes import BFLOAT16
from ..primitive import primitive

if TYPE_CHECKING:
    from ..tensor import Operand


@primitive(
    x=lambda g: g,
    y=lambda g: g,
)
def add(xp: Any, x: Operand, y: Operand) -> Any:
    """The sum x + y, elementwise with broadcasting."""
    return x + y


@primitive(
    x=lambda g: g,
    y=lambda g: -g,
)
def subtract(xp: Any, x: Operand, y: Operand) -> Any:
    """The difference x - y, elementwise with broadcasting."""
    return x - y


@primitive(
    x=lambda g, y: g * y,
    y=lambda g, x: g * x,
)
def multiply(xp: Any, x: Operand, y: Operand) -> Any:
    """The product x y, elementwise with broadcasting."""
    return x * y


@primitive(
    x=lambda g, y: g / y,
    y=lambda g, y, out: -g * out / y,
)
def divide(xp: Any, x: Operand, y: Operand) -> Any:
    """The quotient x / y, elementwise with broadcasting; integers give floats."""
    return x / y


@primitive(
    x=lambda g, xp: xp.zeros_like(g),
    y=lambda g, xp: xp.zeros_like(g),
)
def floor_divide(xp: Any, x: Operand, y: Operand) -> Any:
    """The quotient rounded down, floor(x / y), elementwise with broadcasting; the gradients are 0."""
    return x // y


@primitive(
    x=lambda g: g,
    y=lambda g, x, y: -g * (x // y),
)
def remainder(xp: Any, x: Operand, y: Operand) -> Any:
    """The remainder x - y floor(x / y), with the sign of y, elementwise; the gradients are 1 and -floor(x / y)."""
    return x % y


@primitive(x=lambda g: -g)
def negative(xp: Any, x: Operand) -> Any:
    """The negative -x, elementwise."""
    return -x


@primitive(x=lambda g: g)
def positive(xp: Any, x: Operand) -> Any:
    """A copy +x."""
    return +x


def _power_base(g, xp, x, y):
    # y = 0 has the gradient 0 also at x = 0 and next to it, where y * x ** (y - 1) is 0 * inf, and at NaN. Changing the
    # base there, not the exponent, keeps the gradient's own derivatives elsewhere.
    if isinstance(y, (int, float)):
        return g * (y * x ** (y - 1)) if y != 0 else xp.zeros_like(g)
    least = 2.0**-126 if g.dtype.char == BFLOAT16 else float(np.finfo(g.dtype).smallest_normal)  # has an inverse
    return g * (y * xp.where((y != 0) | (xp.absolute(x) >= least), x, 1.0) ** (y - 1.0))


def _power_exponent(g, xp, x, out):
    # Limits at x = 0: out * log(x) goes to 0 for y > 0. A negative base has no real derivative: NaN.
    if isinstance(x, (int, float)):
        x = xp.zeros_like(out) + x
    return g * out * xp.log(xp.where(x == 0, 1.0, x))  # 1.0: integers would take their logarithm in float16


@primitive(in_float32, x=_power_base, y=_power_exponent)
def power(xp: Any, x: Operand, y: Operand) -> Any:
    """The power x ** y, elementwise with broadcasting.

    The gradient with respect to y is out log(x); it is 0 where x = 0 and y >= 0, and NaN where
    x < 0, or x = 0 and y < 0.
    """
    return x**y


@primitive(x=lambda g, x, xp: g * xp.sign(x))
def absolute(xp: Any, x: Operand) -> Any:
    """The absolute value |x|, elementwise; the gradient at 0 is 0."""
    return xp.absolute(x)


@primitive(x=lambda g, xp: xp.zeros_like(g))
def sign(xp: Any, x: Operand) -> Any:
    """-1, 0 or 1 by the sign of x, elementwise; the gradient is 0 everywhere."""
    return xp.sign(x)


def _half_where_equal(g, xp, chosen, equal):
    return xp.masked(g, chosen) + xp.masked(0.5 * g, equal)


@primitive(
    x=lambda g, xp, x, y: _half_where_equal(g, xp, x > y, x == y),
    y=lambda g, xp, x, y: _half_where_equal(g, xp, y > x, x == y),
)
def maximum(xp: Any, x: Operand, y: Operand) -> Any:
    """The larger of x and y, elementwise with broadcasting; where they are equal each gets half the gradient."""
    return xp.maximum(x, y)


@primitive(
    x=lambda g, xp, x, y: _half_where_equal(g, xp, x < y, x == y),
    y=lambda g, xp, x, y: _half_where_equal(g, xp, y < x, x == y),
)
def minimum(xp: Any, x: Operand, y: Operand) -> Any:
    """The smaller of x and y, elementwise with broadcasting; where they are equal each gets half the gradient."""
    return xp.minimum(x, y)


@primitive(
    condition=None,
    x=lambda g, xp, condition: xp.where(condition, g, xp.zeros_like(g)),
    y=lambda g, xp, condition: xp.where(condition, xp.zeros_like(g), g),
)
def where(xp: Any, condition: Operand, x: Operand, y: Operand) -> Any:
    """x where ``condition`` holds and y elsewhere, with broadcasting.

    Raises TypeError for a condition that requires a gradient: it has none.
    """
    return xp.where(condition, x, y)


def _within(x, a_min, a_max):
    """Where a_min <= x <= a_max; None leaves a side open."""
    above = True if a_min is None else x >= a_min
    below = True if a_max is None else x <= a_max
    return above & below


def _over(xp, x, a_min, a_max):
    """Where clip gives a_max; also where a_min > a_max."""
    return (x if a_min is None else xp.maximum(x, a_min)) > a_max


@primitive(
    x=lambda g, xp, x, a_min, a_max: xp.masked(g, _within(x, a_min, a_max)),
    a_min=lambda g, xp, x, a_min, a_max: xp.masked(g, (x < a_min) & _within(a_min, None, a_max)),
    a_max=lambda g, xp, x, a_min, a_max: xp.masked(g, _over(xp, x, a_min, a_max)),
)
def clip(xp: Any, x: Operand, a_min: Operand | None = None, a_max: Operand | None = None) -> Any:
    """x limited to [a_min, a_max], elementwise with broadcasting; None leaves a side open.

    On a bound the gradient goes to x. Where a_min > a_max the result is a_max, as in NumPy.
    """
    if a_min is not None:
        x = xp.maximum(x, a_min)
    return x if a_max is None else xp.minimum(x, a_max)
