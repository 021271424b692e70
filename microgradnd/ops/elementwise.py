"""Elementary functions of one operand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..autocast import in_float32
from ..primitive import primitive

if TYPE_CHECKING:
    from ..tensor import Operand


@primitive(in_float32, x=lambda g, out: g * out)
def exp(xp: Any, x: Operand) -> Any:
    """The exponential e^x, elementwise."""
    return xp.exp(x)


@primitive(in_float32, x=lambda g, x: g / x)
def log(xp: Any, x: Operand) -> Any:
    """The natural logarithm, elementwise."""
    return xp.log(x)


@primitive(in_float32, x=lambda g, x: g / (1.0 + x))
def log1p(xp: Any, x: Operand) -> Any:
    """log(1 + x), elementwise, exact for small x too."""
    return xp.log1p(x)


@primitive(x=lambda g, out: 0.5 * g / out)
def sqrt(xp: Any, x: Operand) -> Any:
    """The square root, elementwise; the gradient at 0 is infinite."""
    return xp.sqrt(x)


@primitive(x=lambda g, out: g * (1.0 - out * out))
def tanh(xp: Any, x: Operand) -> Any:
    """The hyperbolic tangent, elementwise."""
    return xp.tanh(x)


@primitive(x=lambda g, xp, x: g * xp.cos(x))
def sin(xp: Any, x: Operand) -> Any:
    """The sine of x in radians, elementwise."""
    return xp.sin(x)


@primitive(x=lambda g, xp, x: -g * xp.sin(x))
def cos(xp: Any, x: Operand) -> Any:
    """The cosine of x in radians, elementwise."""
    return xp.cos(x)


@primitive(x=lambda g, xp, x: g * (2 / math.sqrt(math.pi)) * xp.exp(-x * x))
def erf(xp: Any, x: Operand) -> Any:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, elementwise."""
    return xp.erf(x)
