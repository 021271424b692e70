"""``@primitive``: from an array function, with its gradients written beside it, to a differentiable operation."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Concatenate, ParamSpec

from .autograd import Node, edges_of
from .operands import attached
from .operation_text import source, wrapper
from .tensor import Tensor

P = ParamSpec("P")
Vjp = Callable[..., Any]
Conversion = Callable[..., tuple[Any, ...]]


def primitive(
    conversion: Conversion | None = None, /, **vjps: Vjp | None
) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[P, Tensor]]:
    """Make a differentiable operation of a function on arrays.

    >>> @mg.primitive(x=lambda g, x: 3 * g * x * x)
    ... def cube(xp, x):
    ...     return x * x * x

    The function takes the array namespace ``xp`` (NumPy, CuPy) first. Each keyword of the decorator names
    an array argument of the function and gives its vector-Jacobian product: a function of ``g``, the
    gradient of the result, and of whatever else it names: arguments of the function, ``out`` (the
    result), ``xp``, or ``x_shape`` for an argument ``x``. What is named is saved for backward, and nothing
    else; backward computes the gradients in the order of the keywords, and lets go of what only one of them needed
    before it goes on. None marks an array argument without a gradient. For a ``*star`` argument the vjp is called once
    per array that needs a gradient, as ``vjp(g, i, ...)`` with ``i``, the array's position.

    A vjp written with operators and those functions of ``xp`` that microgradnd has too, or with operations, also of
    your own, is differentiable itself, to any order. It need not undo broadcasting: gradients are summed to their
    argument's shape where they arrive. Where all arguments are marked None the result is a constant; otherwise a tensor
    that requires a gradient is refused (TypeError) for an argument marked None.

    Within :class:`mg.autocast`, ``conversion`` is given the arguments with a gradient and returns what the function
    shall take instead; the gradients are converted back.

    Raises TypeError, when the operation is defined, for names that do not fit the function. The operation
    raises what the function raises, with the operation's name and the arguments' shapes and dtypes.
    """

    if not vjps:
        raise TypeError(
            "primitive: expected a gradient for each array argument, got none: @mg.primitive(x=lambda g, x: ...)"
        )

    def decorate(function: Callable[Concatenate[Any, P], Any]) -> Callable[P, Tensor]:
        return wrapper(Operation(function, vjps, conversion))

    return decorate


class Operation:
    """What is known of one operation.

    Attributes:
        function: the function on arrays.
        definition: whose signature, documentation and annotations the operation has: of a fused operation the function
            of tensors, else ``function``.
        names: all parameters but xp: the ``positional`` ones, the ``keyword_only`` ones, and ``star``, of ``*args``.
        arguments: the names of those that are arrays, in the order in which backward computes their gradients.
        vjps: for each of these its vector-Jacobian product, or None.
        saves: for each the names of what its vjp takes besides g.
        conversion: see :func:`primitive`.
    """

    results_text = "out"  # what the array function returns, as the generated text assigns it
    pullback_text = "None"  # what of it computes all gradients at once, if anything
    __slots__ = (
        "arguments",
        "conversion",
        "definition",
        "function",
        "keyword_only",
        "name",
        "names",
        "positional",
        "saves",
        "star",
        "vjps",
    )

    def __init__(
        self, function: Callable[..., Any], vjps: dict[str, Vjp | None], conversion: Conversion | None = None
    ) -> None:
        _refuse_all_but_functions(function, conversion, *vjps.values())
        code = function.__code__
        count, end = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
        self.function = function
        self.conversion = conversion
        self.definition = function
        self.name = function.__name__.strip("_")
        self.positional = code.co_varnames[1:count]
        self.keyword_only = code.co_varnames[count:end]
        self.star = code.co_varnames[end] if code.co_flags & 0x04 else None  # 0x04: has *args
        self.names = (*self.positional, *self.keyword_only, *([self.star] if self.star else []))
        if code.co_varnames[:1] != ("xp",) or count == 0:
            raise TypeError(f"primitive {self.name}: the first parameter must be xp, the array namespace")
        reserved = [name for name in self.names if name.startswith("_") or name in ("g", "i", "out")]
        if reserved:
            raise TypeError(f"primitive {self.name}: {', '.join(reserved)} can't be the name of a parameter")
        unknown = [name for name in vjps if name not in self.names]
        if unknown:
            raise TypeError(
                f"primitive {self.name}: expected a vjp (or None) for array arguments among {', '.join(self.names)}; "
                f"got {', '.join(unknown)}"
            )
        self.arguments = tuple(vjps)
        self.vjps = tuple(vjps.values())
        if (function.__module__ or "").partition(".")[0] != "microgradnd":
            self.vjps = tuple(vjp and _giving_arrays(self.name, x, vjp) for x, vjp in vjps.items())
        self.saves = tuple(self._saved_names(argument, vjp) for argument, vjp in vjps.items())

    def _saved_names(self, argument: str, vjp: Vjp | None) -> tuple[str, ...]:
        if vjp is None:
            return ()
        given = ("g", "i") if argument == self.star else ("g",)
        code = vjp.__code__
        parameters = code.co_varnames[: code.co_argcount - len(vjp.__defaults__ or ())]
        known = ["xp", "out", *self.names, *(f"{name}_shape" for name in self.arguments)]
        unknown = [name for name in parameters[len(given) :] if name not in known]
        if unknown or parameters[: len(given)] != given or code.co_kwonlyargcount or code.co_flags & 0x0C:
            raise TypeError(
                f"primitive {self.name}: the vjp for {argument} takes {', '.join(given)} and then any of "
                f"{', '.join(known)}; got ({', '.join(parameters)})"
            )
        return parameters[1:]

    def vjp_of_tensors(self, node: Node, index: int, saved: tuple[Any, ...], g: Tensor) -> Any:
        """The vjp with tensors for arrays and operations for ``xp``: its result can be differentiated."""
        from . import ops

        parents = self.parents(node)

        def tensor(name: str, value: Any) -> Any:
            if name == "xp":
                return ops
            if name == "out":
                return attached(value, node)
            if name == self.star:
                return tuple(attached(v, parents.get((name, i))) for i, v in enumerate(value))
            return attached(value, parents[name]) if name in parents else value

        vjp: Any = self.vjps[index]
        return vjp(g, *map(tensor, self.saves[index], saved))

    def parents(self, node: Node) -> dict[Any, Any]:
        """The nodes of a recorded call's arguments, by name; by (name, position) for a ``*star`` argument."""
        named = ((self.arguments[index], parent, saved) for parent, index, saved in edges_of(node))
        return {(name, saved[0]) if name == self.star else name: parent for name, parent, saved in named}

    def line_without_vjp(self, argument: str) -> str:
        """What the generated text does when a tensor that requires a gradient is given for ``argument``."""
        return f"raise _no_gradient(_op, {argument!r})"

    def source(self) -> str:
        """The text that a call of the operation runs, see :func:`microgradnd.operation_text.source`."""
        return source(self)


def is_operation(function: Any) -> bool:
    """Whether a function is what :func:`primitive` made, or an operation of ours."""
    return isinstance(getattr(function, "operation", None), Operation)


def _giving_arrays(name: str, argument: str, vjp: Vjp) -> Vjp:
    """A vjp from outside of the library, which may compute with operations too: of a constant tensor its array."""

    def gradient(g: Any, *saved: Any) -> Any:
        found = vjp(g, *saved)
        if found.__class__ is Tensor:
            return found if g.__class__ is Tensor else found._data
        if not hasattr(found, "shape"):
            raise TypeError(f"{name}: the gradient with respect to {argument} must be an array, got {found!r}")
        return found

    # By this captured steps head what it does: a vjp may be a lambda.
    gradient.__code__ = gradient.__code__.replace(co_qualname=f"{name}.<locals>.gradient")
    return gradient


def _refuse_all_but_functions(*functions: Any) -> None:
    for function in functions:
        if function is not None and not isinstance(function, FunctionType):
            raise TypeError(
                f"primitive: expected functions made by def or lambda, whose parameters can be read, got {function!r}"
            )
