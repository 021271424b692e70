"""``@primitive``: from an array function, with its gradients written beside it, to a differentiable operation.

The operation is generated as Python source with the array function's own signature, as dataclasses
generate ``__init__``: a general wrapper with ``*args`` costs two to three times as much per call as this
straight-line code. Tracebacks show the generated text.
"""

from __future__ import annotations

import functools
import itertools
import linecache
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, Concatenate, ParamSpec

from .autocast import autocast_mode, ever
from .autograd import Node, edges_of, grad_mode
from .backends import NAMESPACES, as_array, numpy_backend
from .devices import refuse_several_devices
from .inplace import next_order
from .operands import (
    array_operand,
    attached,
    explained,
    namespace_of,
    no_gradient,
    operand,
    operands,
)
from .tensor import Tensor, new

P = ParamSpec("P")
_text_numbers = itertools.count()  # of the texts that are compiled here
Vjp = Callable[..., Any]
Conversion = Callable[..., tuple[Any, ...]]
EDGE = ("parent", "index", "saved", "others")  # what a node has of its first edge


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
        return Operation(function, vjps, conversion).wrapper()

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

    def wrapper(self) -> Callable[..., Tensor]:
        """The operation as a function with the array function's signature, from the text of :meth:`source`.

        The text is compiled when the operation is first called, which halves the time of the import.
        """

        def first_call(*args: Any, **options: Any) -> Any:
            wrapper.__code__ = self._code(self.source())
            return wrapper(*args, **options)

        code = self._code(f"def operation({self._signature()}):\n    return _first_call({self._passed_on()})\n")
        scope = {**GENERATED_SCOPE, "_op": self, "_function": self.function, "_conversion": self.conversion}
        scope["_first_call"] = first_call
        wrapper: Any = FunctionType(code, scope, self.name)
        wrapper.__defaults__ = self.definition.__defaults__
        wrapper.__kwdefaults__ = self.definition.__kwdefaults__
        wrapper.__doc__ = self.definition.__doc__
        wrapper.__module__ = self.definition.__module__
        annotations = {name: kind for name, kind in self.definition.__annotations__.items() if name != "xp"}
        wrapper.__annotations__ = annotations | {"return": "Tensor"}
        wrapper.operation = self
        return wrapper  # type: ignore[no-any-return]

    def _code(self, text: str) -> CodeType:
        return _compiled(text).replace(co_name=self.name, co_qualname=self.name)

    def source(self) -> str:
        """The text of the wrapper: unwrap the tensors, call, record what the vjps need, wrap the result.

        It says _op instead of the operation's name, so that operations of one form share one text. That of ``exp``,
        which ``print(mg.exp.operation.source())`` shows whole::

            def operation(x):
                _x_node = None
                if x.__class__ is _Tensor:
                    _x_node = x._node
                    x = x._data
                else:
                    x = _array_operand(x, _op, 'x')
                xp = _NAMESPACES.get(x.__class__) or _numpy
                ...                                             # errors get the operation's name
                    out = _function(xp, x)
                if (_x_node is None) or not _grad_mode.enabled:
                    _node = None
                else:
                    _node = _new(_Node)
                    ...
                    _node.parent = _x_node
                    _node.saved = (out,)                        # the vjp of exp names out
                    ...
                _tensor._data = out
                _tensor._node = _node
                return _tensor
        """
        lines = [*self._unwrapping(), *self._converting(), *self._calling()]
        if any(self.vjps):
            lines += self._recording()
        lines += [
            "_tensor = _new(_Tensor)",
            "_tensor._data = out",
            f"_tensor._node = {'_node' if any(self.vjps) else None}",
        ]
        return "\n".join(
            [f"def operation({self._signature()}):", *(f"    {line}" for line in lines), "    return _tensor\n"]
        )

    def _signature(self) -> str:
        star = [f"*{self.star}"] if self.star else ["*"] if self.keyword_only else []
        return ", ".join([*self.positional, *star, *self.keyword_only])

    def _passed_on(self) -> str:
        star = [f"*{self.star}"] if self.star else []
        return ", ".join([*self.positional, *star, *(f"{x}={x}" for x in self.keyword_only)])

    def _unwrapping(self) -> list[str]:
        """From each array argument x: its array as x, its node as _x_node."""
        defaults = self.definition.__defaults__ or ()
        optional = {*self.positional[len(self.positional) - len(defaults) :], *self.keyword_only}
        lines = []
        for x in self.arguments:
            if x == self.star:
                lines.append(f"{x}, _{x}_node = _operands({x}, _op, {x!r})")
                continue
            if any(self.vjps):
                lines += [f"_{x}_node = None", f"if {x}.__class__ is _Tensor:", f"    _{x}_node = {x}._node"]
            else:
                lines.append(f"if {x}.__class__ is _Tensor:")
            lines.append(f"    {x} = {x}._data")
            if len(self.arguments) == 1:
                lines += ["else:", f"    {x} = _array_operand({x}, _op, {x!r})"]
            else:  # a number beside an array stays a Python number, so that it does not change the array's dtype
                unless_none = f" and {x} is not None" if x in optional else ""
                lines += [
                    f"elif {x}.__class__ is not _float{unless_none}:",
                    f"    {x} = _operand({x}, _op, {x!r})",
                ]
        return lines

    def _converting(self) -> list[str]:
        """Within autocast, the arguments with a gradient in another dtype: what they belong to in the graph stays."""
        if self.conversion is None:
            return []
        given = [x for x, vjp in zip(self.arguments, self.vjps, strict=True) if vjp is not None]
        star = [f"*{self.star}"] if self.star in given else []
        names = ", ".join([*(x for x in given if x != self.star), *star])
        target = self.star if given == [self.star] else names if len(given) > 1 else f"({names},)"
        return ["if _ever.entered and _autocast_mode.dtype is not None:", f"    {target} = _conversion({names})"]

    def _calling(self) -> list[str]:
        """The array function, with its namespace and its errors explained; its result is an array."""
        namespaces = [
            f"_namespace_of({x})" if x == self.star else f"_NAMESPACES.get({x}.__class__)" for x in self.arguments
        ]
        one = len(self.arguments) == 1 and self.arguments[0] != self.star
        arrays = ", ".join(f"{x}={x}" for x in self.arguments)
        return [
            f"xp = {' or '.join(namespaces)} or _numpy",
            *([] if one else ["if xp is not _numpy:", f"    _refuse_several_devices(_op.name, {arrays})"]),
            "try:",
            f"    {self.results_text} = _function(xp, {self._passed_on()})",
            "    if out.__class__ not in _NAMESPACES:",
            "        out = _as_array(out)",
            "except _Exception as _error:",
            f"    raise _explained(_error, _op, {', '.join(f'{x}={x}' for x in self.names)}) from _error",
        ]

    def _recording(self) -> list[str]:
        """The node, with an edge to each argument that requires a gradient, or None."""
        constant = " and ".join(f"_{x}_node is None" for x in self.arguments)
        lines = [f"if ({constant}) or not _grad_mode.enabled:", "    _node = None", "else:"]
        # Node.__init__, written out: a call less.
        lines += ["    _node = _new(_Node)", "    _node.op = _op", *(f"    {line}" for line in self._linking())]
        lines += [f"    _node.pullback = {self.pullback_text}"]
        lines += ["    _node.order = _next_order()", "    _node.shape = out.shape", "    _node.dtype = out.dtype"]
        return lines

    def _linking(self) -> list[str]:
        """The edges: that of the last argument is made first, since backward begins with the latest."""
        lines = []
        for x, vjp in zip(self.arguments, self.vjps, strict=True):
            if vjp is None:
                lines += [f"if _{x}_node is not None:", f"    {self.line_without_vjp(x)}"]
        saved = {  # but for the i of a *star argument
            x: f"({''.join(f'{self._saved_value(name, x)}, ' for name in names if name != 'i').rstrip(' ')})"
            for x, vjp, names in zip(self.arguments, self.vjps, self.saves, strict=True)
            if vjp is not None
        }
        if self.star in saved:
            lines.append(f"_saved = {saved[self.star]}")  # made once for all of its arrays
        elif len(self.arguments) == 1:
            (x,) = self.arguments
            first = f"_{x}_node", "0", saved[x], "()"
            return [f"_node.{name} = {value}" for name, value in zip(EDGE, first, strict=True)]
        elif len(set(saved.values())) == 1:  # as a fused operation's
            (values,) = set(saved.values())
            lines.append(f"_saved = {values}")
            saved = dict.fromkeys(saved, "_saved")
        lines.append("_edges = ()")
        for x in reversed(saved):
            index = self.arguments.index(x)
            if x == self.star:
                lines += [
                    f"for i in _reversed(_range(_len(_{x}_node or ()))):",
                    f"    if _{x}_node[i] is not None:",
                    f"        _edges = (_{x}_node[i], {index}, (i, *_saved), _edges)",
                ]
            else:
                lines += [f"if _{x}_node is not None:", f"    _edges = (_{x}_node, {index}, {saved[x]}, _edges)"]
        return [*lines, f"{', '.join(f'_node.{name}' for name in EDGE)} = _edges"]

    def line_without_vjp(self, argument: str) -> str:
        """What the generated text does when a tensor that requires a gradient is given for ``argument``."""
        return f"raise _no_gradient(_op, {argument!r})"

    def _saved_value(self, name: str, argument: str) -> str:
        if not name.endswith("_shape") or name in self.names:
            return name
        array = name.removesuffix("_shape")
        if array == self.star:
            return f"_tuple([_getattr(x, 'shape', ()) for x in {array}])"
        return f"{array}.shape" if array == argument else f"_getattr({array}, 'shape', ())"


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

    return gradient


def _one_array(out: Any) -> Any:
    if isinstance(out, tuple):
        raise TypeError(f"it returned a {type(out).__name__}, expected one array")
    return as_array(out)


def _refuse_all_but_functions(*functions: Any) -> None:
    for function in functions:
        if function is not None and not isinstance(function, FunctionType):
            raise TypeError(
                f"primitive: expected functions made by def or lambda, whose parameters can be read, got {function!r}"
            )


@functools.cache
def _compiled(text: str) -> CodeType:
    """The code of the function that ``text`` defines; tracebacks show the text."""
    filename = f"<microgradnd operation {text[text.index('(') : text.index(':')]} {next(_text_numbers)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    return next(x for x in compile(text, filename, "exec").co_consts if isinstance(x, CodeType))


# What the generated text calls. Names begin with an underscore, which no parameter may.
GENERATED_SCOPE: dict[str, Any] = {
    "_Exception": Exception,
    "_NAMESPACES": NAMESPACES,
    "_Node": Node,
    "_Tensor": Tensor,
    "_array_operand": array_operand,
    "_as_array": _one_array,
    "_autocast_mode": autocast_mode,
    "_ever": ever,
    "_explained": explained,
    "_float": float,
    "_getattr": getattr,
    "_grad_mode": grad_mode,
    "_len": len,
    "_namespace_of": namespace_of,
    "_new": new,
    "_next_order": next_order,
    "_no_gradient": no_gradient,
    "_numpy": numpy_backend.namespace,
    "_operand": operand,
    "_operands": operands,
    "_range": range,
    "_refuse_several_devices": refuse_several_devices,
    "_reversed": reversed,
    "_tuple": tuple,
}
