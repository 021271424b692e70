"""Comparisons, logic on their results, and arrays made to match another: constants to the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..primitive import primitive

if TYPE_CHECKING:
    from ..tensor import Operand


@primitive(x=None, y=None)
def equal(xp: Any, x: Operand, y: Operand) -> Any:
    """Whether x = y, elementwise with broadcasting."""
    return xp.equal(x, y)


@primitive(x=None, y=None)
def not_equal(xp: Any, x: Operand, y: Operand) -> Any:
    """Whether x differs from y, elementwise with broadcasting."""
    return xp.not_equal(x, y)


@primitive(x=None, y=None)
def less(xp: Any, x: Operand, y: Operand) -> Any:
    """Whether x < y, elementwise with broadcasting."""
    return xp.less(x, y)


@primitive(x=None, y=None)
def less_equal(xp: Any, x: Operand, y: Operand) -> Any:
    """Whether x <= y, elementwise with broadcasting."""
    return xp.less_equal(x, y)


@primitive(x=None, y=None)
def greater(xp: Any, x: Operand, y: Operand) -> Any:
    """Whether x > y, elementwise with broadcasting."""
    return xp.greater(x, y)


@primitive(x=None, y=None)
def greater_equal(xp: Any, x: Operand, y: Operand) -> Any:
    """Whether x >= y, elementwise with broadcasting."""
    return xp.greater_equal(x, y)


@primitive(x=None, y=None)
def bitwise_and(xp: Any, x: Operand, y: Operand) -> Any:
    """x and y, of booleans or bit by bit of integers, elementwise with broadcasting."""
    return x & y


@primitive(x=None, y=None)
def bitwise_or(xp: Any, x: Operand, y: Operand) -> Any:
    """x or y, of booleans or bit by bit of integers, elementwise with broadcasting."""
    return x | y


@primitive(x=None, y=None)
def bitwise_xor(xp: Any, x: Operand, y: Operand) -> Any:
    """Either x or y, of booleans or bit by bit of integers, elementwise with broadcasting."""
    return x ^ y


@primitive(x=None)
def invert(xp: Any, x: Operand) -> Any:
    """Not x, of booleans or bit by bit of integers, elementwise."""
    return ~x


@primitive(x=None)
def isfinite(xp: Any, x: Operand) -> Any:
    """Whether x is neither infinite nor NaN, elementwise."""
    return xp.isfinite(x)


@primitive(x=None)
def zeros_like(xp: Any, x: Operand) -> Any:
    """Zeros of the shape and dtype of x."""
    return xp.zeros_like(x)


@primitive(x=None)
def ones_like(xp: Any, x: Operand) -> Any:
    """Ones of the shape and dtype of x."""
    return xp.ones_like(x)
