"""``@primitive``: from an array function, with its gradients written beside it, to a differentiable operation.

The operation is generated as Python source with the array function's own signature, as dataclasses
generate ``__init__``: a general wrapper with ``*args`` costs two to three times as much per call as this
straight-line code. Tracebacks show the generated text.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np

from .autograd import Node, grad_mode
from .backends import NAMESPACES, as_array, numpy_backend
from .tensor import Tensor, constant, new

P = ParamSpec("P")
Vjp = Callable[..., Any]


def primitive(**vjps: Vjp | None) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[P, Tensor]]:
    """Make a differentiable operation of a function on arrays.

    >>> @mg.primitive(x=lambda g, x: 3 * g * x * x)
    ... def cube(xp, x):
    ...     return x * x * x

    The function takes the array namespace ``xp`` (NumPy, CuPy) first. Each keyword of the decorator names
    an array argument of the function and gives its vector-Jacobian product: a function of ``g``, the
    gradient of the result, and of whatever else it names: arguments of the function, ``out`` (the
    result), ``xp``, or ``x_shape`` for an argument ``x``. What is named is saved for backward, and nothing
    else. None marks an array argument without a gradient. For a ``*star`` argument the vjp is called once
    per array that needs a gradient, as ``vjp(g, i, ...)`` with ``i``, the array's position.

    A vjp written with ``xp`` and operators is differentiable itself, to any order. It need not undo
    broadcasting: gradients are summed to their argument's shape where they arrive.

    Raises TypeError, when the operation is defined, for names that do not fit the function. The operation
    raises what the function raises, with the operation's name and the arguments' shapes and dtypes.
    """

    def decorate(function: Callable[Concatenate[Any, P], Any]) -> Callable[P, Tensor]:
        return Operation(function, vjps).wrapper()

    return decorate


class Operation:
    """What is known of one operation: its name, its array arguments, their vjps and what these save."""

    results = "out"  # what the array function returns, as the generated text assigns it
    __slots__ = ("arguments", "definition", "function", "name", "names", "options", "saves", "star", "vjps")

    def __init__(self, function: Callable[..., Any], vjps: dict[str, Vjp | None]) -> None:
        code = function.__code__
        count = code.co_argcount
        self.function = function
        self.definition = function  # whose documentation and annotations the operation has
        self.name = function.__name__.strip("_")
        self.star = code.co_varnames[count + code.co_kwonlyargcount] if code.co_flags & 0x04 else None
        parameters = code.co_varnames[: count + code.co_kwonlyargcount]
        if parameters[:1] != ("xp",):
            raise TypeError(f"primitive {self.name}: the first parameter must be xp, the array namespace")
        self.options = tuple(name for name in parameters[1:] if name not in vjps)
        self.names = parameters[1:] + ((self.star,) if self.star else ())
        unknown = [name for name in vjps if name not in self.names]
        if unknown or not vjps:
            raise TypeError(
                f"primitive {self.name}: expected a vjp (or None) for array arguments among {', '.join(self.names)}"
                f"; got {', '.join(unknown) or 'none'}"
            )
        self.arguments = tuple(vjps)
        self.vjps = tuple(vjps.values())
        self.saves = tuple(self._saved_names(argument, vjp) for argument, vjp in vjps.items())

    def _saved_names(self, argument: str, vjp: Vjp | None) -> tuple[str, ...]:
        if vjp is None:
            return ()
        given = ("g", "i") if argument == self.star else ("g",)
        code = vjp.__code__
        parameters = code.co_varnames[: code.co_argcount]
        known = ["xp", "out", *self.names, *(f"{name}_shape" for name in self.arguments)]
        unknown = [name for name in parameters[len(given) :] if name not in known]
        if unknown or parameters[: len(given)] != given:
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

        return self.vjps[index](g, *map(tensor, self.saves[index], saved))

    def parents(self, node: Node) -> dict[Any, Any]:
        """The nodes of a recorded call's arguments, by name; by (name, position) for a ``*star`` argument."""
        named = ((self.arguments[index], parent, saved) for parent, index, saved in node.edges or ())
        return {(name, saved[0]) if name == self.star else name: parent for name, parent, saved in named}

    def wrapper(self) -> Callable[..., Tensor]:
        """The operation as a function: compiled from :meth:`source`."""
        function = self.function
        text = self.source()
        filename = f"<microgradnd operation {self.name}>"
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
        scope: dict[str, Any] = dict(GENERATED_SCOPE, _op=self, _function=function)
        exec(compile(text, filename, "exec"), scope)
        wrapper = scope[self.name]
        wrapper.__defaults__ = function.__defaults__
        wrapper.__kwdefaults__ = function.__kwdefaults__
        wrapper.__doc__ = self.definition.__doc__
        wrapper.__module__ = self.definition.__module__
        wrapper.__annotations__ = {k: v for k, v in self.definition.__annotations__.items() if k != "xp"}
        wrapper.__annotations__["return"] = "Tensor"
        wrapper.operation = self
        return wrapper  # type: ignore[no-any-return]

    def source(self) -> str:
        """The text of the wrapper: unwrap the tensors, call, record what the vjps need, wrap the result."""
        code = self.function.__code__
        positional = code.co_varnames[1 : code.co_argcount]
        keyword_only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        arrays = [name for name in self.arguments if name != self.star]
        optional = positional[len(positional) - len(self.function.__defaults__ or ()) :] + keyword_only
        star = f"*{self.star}" if self.star else ("*" if keyword_only else "")
        differentiable = [a for a, vjp in zip(self.arguments, self.vjps, strict=True) if vjp is not None]

        lines = [f"def {self.name}({', '.join([*positional, *([star] if star else []), *keyword_only])}):"]
        # A number beside an array stays a Python number, so that it does not change the array's dtype.
        alone = len(self.arguments) == 1 and not self.star
        for x in arrays:
            lines += [
                f"    {x}_node = None",
                f"    if {x}.__class__ is Tensor:",
                f"        {x}_node = {x}._node",
                f"        {x} = {x}._data",
                "    else:" if alone else f"    elif {x}.__class__ is not float{' and x is not None'.replace('x', x) if x in optional else ''}:",
                f"        {x} = {'array_operand' if alone else 'operand'}({x}, {self.name!r}, {x!r})",
            ]
        for x in self.options:
            lines += [f"    if {x}.__class__ is Tensor:", f"        {x} = option({x}, {self.name!r}, {x!r})"]
        if self.star:
            lines.append(f"    {self.star}, {self.star}_node = operands({self.star}, {self.name!r}, {self.star!r})")
        candidates = [f"NAMESPACES.get({x}.__class__)" for x in arrays]
        candidates += [f"namespace_of({self.star})"] if self.star else []
        call = ", ".join(
            [*positional, *([star] if self.star else []), *(f"{name}={name}" for name in keyword_only)]
        )
        described = ", ".join(f"{x}={x}" for x in self.arguments)
        lines += [
            f"    xp = {' or '.join(candidates)} or numpy",
            "    try:",
            f"        {self.results} = _function(xp, {call})",
            "    except Exception as error:",
            f"        raise explained(error, {self.name!r}, {described}) from error",
            "    if out.__class__ not in NAMESPACES:",
            "        out = as_array(out)",
            "    tensor = new(Tensor)",
            "    tensor._data = out",
            "    tensor._node = None",
        ]
        if differentiable:
            untracked = " and ".join(f"{x}_node is None" for x in self.arguments)
            lines += [f"    if ({untracked}) or not grad_mode.enabled:", "        return tensor"]
            lines += [*self.lines_before_recording(), "    edges = ()"]
            for index, (x, vjp) in enumerate(zip(self.arguments, self.vjps, strict=True)):
                lines.append(f"    if {x}_node is not None:")
                values = [self._saved_value(name) for name in self.saves[index]]
                saved = ", ".join(values) + "," * (len(values) == 1)
                if vjp is None:
                    lines.append(f"        {self.line_without_vjp(x)}")
                elif x == self.star:
                    each = f"for i, node in enumerate({x}_node) if node is not None"
                    lines.append(f"        edges += tuple([(node, {index}, ({saved})) {each}])")
                else:
                    lines.append(f"        edges += (({x}_node, {index}, ({saved})),)")
            lines.append("    tensor._node = Node(_op, edges, out.shape, out.dtype)")
        lines.append("    return tensor")
        return "\n".join(lines) + "\n"

    def lines_before_recording(self) -> list[str]:
        """What the generated text does between the call and the recording."""
        return []

    def line_without_vjp(self, argument: str) -> str:
        """What the generated text does when a tensor that requires a gradient is given for ``argument``."""
        return f"raise no_gradient({self.name!r}, {argument!r})"

    def _saved_value(self, name: str) -> str:
        if not name.endswith("_shape") or name in self.names:
            return name
        argument = name.removesuffix("_shape")
        return f"tuple(getattr(x, 'shape', ()) for x in {argument})" if argument == self.star else f"getattr({argument}, 'shape', ())"


def attached(value: Any, node: Any) -> Any:
    """A tensor around the array ``value`` that belongs to ``node``; other values as they are."""
    if value.__class__ not in NAMESPACES:
        return value
    tensor = constant(value)
    tensor._node = node
    return tensor


def operand(x: Any, operation: str, argument: str) -> Any:
    """An argument that is no tensor, checked: arrays and numbers as they are, sequences as arrays.

    Python numbers stay Python numbers, so that NumPy's promotion keeps the other operand's dtype.
    """
    if x.__class__ in _NUMBERS or isinstance(x, np.number | np.bool_):
        return x
    return array_operand(x, operation, argument)


def array_operand(x: Any, operation: str, argument: str) -> Any:
    """An argument that is no tensor, as an array."""
    try:
        return as_array(x)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{operation}: {argument}: {error}") from None


def operands(xs: tuple[Any, ...], operation: str, argument: str) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
    """Arrays and nodes of a ``*star`` argument; None for the nodes where none of them needs a gradient."""
    nodes = tuple(x._node if x.__class__ is Tensor else None for x in xs)
    arrays = tuple(x._data if x.__class__ is Tensor else operand(x, operation, argument) for x in xs)
    return arrays, (nodes if any(node is not None for node in nodes) else None)


def namespace_of(arrays: tuple[Any, ...]) -> Any:
    """The namespace of the first array among ``arrays``, or None."""
    return next((NAMESPACES[x.__class__] for x in arrays if x.__class__ in NAMESPACES), None)


def option(tensor: Tensor, operation: str, argument: str) -> Any:
    """The array of a tensor given for an argument that has no gradient."""
    if tensor._node is not None:
        raise no_gradient(operation, argument)
    return tensor._data


def no_gradient(operation: str, argument: str) -> TypeError:
    """The error for a tensor that requires a gradient where none is defined."""
    return TypeError(
        f"{operation}: no gradient is defined with respect to {argument}, but a tensor that requires one was given; "
        "pass a constant, for example its detach()"
    )


def explained(error: Exception, operation: str, **arguments: Any) -> Exception:
    """``error`` as an error of the same kind that names the operation, the shapes and the dtypes."""
    for kind in _EXPLAINED:
        if isinstance(error, kind):
            got = ", ".join(f"{name}: {_described(x)}" for name, x in arguments.items())
            return kind(f"{operation}: {error} (got {got})")
    error.add_note(f"(in the operation {operation})")
    return error


def _described(x: Any) -> str:
    if isinstance(x, tuple):
        return f"[{', '.join(map(_described, x))}]"
    return f"{type(x).__module__.partition('.')[0]} {x.dtype} {x.shape}" if hasattr(x, "shape") else repr(x)


_EXPLAINED = (
    np.exceptions.AxisError,
    AttributeError,
    IndexError,
    OverflowError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
_NUMBERS = frozenset({bool, int, float, complex})
GENERATED_SCOPE = {
    "NAMESPACES": NAMESPACES,
    "Node": Node,
    "Tensor": Tensor,
    "array_operand": array_operand,
    "as_array": as_array,
    "explained": explained,
    "grad_mode": grad_mode,
    "namespace_of": namespace_of,
    "new": new,
    "no_gradient": no_gradient,
    "numpy": numpy_backend.namespace,
    "operand": operand,
    "operands": operands,
    "option": option,
}
