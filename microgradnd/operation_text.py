"""An operation as Python source: the text of its wrapper, with the array function's own signature, and what it calls.

It is generated, as dataclasses generate ``__init__``: a general wrapper with ``*args`` costs two to three times as
much per call as this straight-line code. Tracebacks show the generated text.
"""

from __future__ import annotations

import functools
import itertools
import linecache
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from .autocast import autocast_mode, ever
from .autograd import Node
from .backends import NAMESPACES, as_array, numpy_backend
from .devices import refuse_several_devices
from .grad_mode import grad_mode
from .inplace import next_order
from .operands import array_operand, explained, namespace_of, no_gradient, operand, operands
from .tensor import Tensor, new

if TYPE_CHECKING:
    from .primitive import Operation

EDGE = ("parent", "index", "saved", "others")  # what a node has of its first edge
_numbers = itertools.count()  # of the texts that are compiled here


def wrapper(operation: Operation) -> Callable[..., Tensor]:
    """The operation as a function with the array function's signature, from the text of :func:`source`.

    The text is compiled when the operation is first called, which halves the time of the import.
    """

    def first_call(*args: Any, **options: Any) -> Any:
        function.__code__ = _code(operation, source(operation))
        return function(*args, **options)

    text = f"def operation({_signature(operation)}):\n    return _first_call({_passed_on(operation)})\n"
    scope = {**GENERATED_SCOPE, "_op": operation, "_function": operation.function, "_conversion": operation.conversion}
    scope["_first_call"] = first_call
    function: Any = FunctionType(_code(operation, text), scope, operation.name)
    function.__defaults__ = operation.definition.__defaults__
    function.__kwdefaults__ = operation.definition.__kwdefaults__
    function.__doc__ = operation.definition.__doc__
    function.__module__ = operation.definition.__module__
    annotations = {name: kind for name, kind in operation.definition.__annotations__.items() if name != "xp"}
    function.__annotations__ = annotations | {"return": "Tensor"}
    function.operation = operation
    return function  # type: ignore[no-any-return]


def _code(operation: Operation, text: str) -> CodeType:
    return _compiled(text).replace(co_name=operation.name, co_qualname=operation.name)


def source(operation: Operation) -> str:
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
            ...                                             # within autocast x is converted
            xp = _NAMESPACES.get(x.__class__) or _numpy
            ...                                             # errors get the operation's name
                out = _function(xp, x)
                ...
            if (_x_node is None) or not _grad_mode.current:
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
    lines = [*_unwrapping(operation), *_converting(operation), *_calling(operation)]
    if any(operation.vjps):
        lines += _recording(operation)
    lines += [
        "_tensor = _new(_Tensor)",
        "_tensor._data = out",
        f"_tensor._node = {'_node' if any(operation.vjps) else None}",
    ]
    return "\n".join(
        [f"def operation({_signature(operation)}):", *(f"    {line}" for line in lines), "    return _tensor\n"]
    )


def _signature(operation: Operation) -> str:
    star = [f"*{operation.star}"] if operation.star else ["*"] if operation.keyword_only else []
    return ", ".join([*operation.positional, *star, *operation.keyword_only])


def _passed_on(operation: Operation) -> str:
    star = [f"*{operation.star}"] if operation.star else []
    return ", ".join([*operation.positional, *star, *(f"{x}={x}" for x in operation.keyword_only)])


def _unwrapping(operation: Operation) -> list[str]:
    """From each array argument x: its array as x, its node as _x_node."""
    defaults = operation.definition.__defaults__ or ()
    optional = {*operation.positional[len(operation.positional) - len(defaults) :], *operation.keyword_only}
    lines = []
    for x in operation.arguments:
        if x == operation.star:
            lines.append(f"{x}, _{x}_node = _operands({x}, _op, {x!r})")
            continue
        if any(operation.vjps):
            lines += [f"_{x}_node = None", f"if {x}.__class__ is _Tensor:", f"    _{x}_node = {x}._node"]
        else:
            lines.append(f"if {x}.__class__ is _Tensor:")
        lines.append(f"    {x} = {x}._data")
        if len(operation.arguments) == 1:
            lines += ["else:", f"    {x} = _array_operand({x}, _op, {x!r})"]
        else:  # a number beside an array stays a Python number, so that it does not change the array's dtype
            unless_none = f" and {x} is not None" if x in optional else ""
            lines += [
                f"elif {x}.__class__ is not _float{unless_none}:",
                f"    {x} = _operand({x}, _op, {x!r})",
            ]
    return lines


def _converting(operation: Operation) -> list[str]:
    """Within autocast, the arguments with a gradient in another dtype: what they belong to in the graph stays."""
    if operation.conversion is None:
        return []
    given = [x for x, vjp in zip(operation.arguments, operation.vjps, strict=True) if vjp is not None]
    star = [f"*{operation.star}"] if operation.star in given else []
    names = ", ".join([*(x for x in given if x != operation.star), *star])
    target = operation.star if given == [operation.star] else names if len(given) > 1 else f"({names},)"
    return ["if _ever.entered and _autocast_mode.current is not None:", f"    {target} = _conversion({names})"]


def _calling(operation: Operation) -> list[str]:
    """The array function, with its namespace and its errors explained; its result is an array."""
    namespaces = [
        f"_namespace_of({x})" if x == operation.star else f"_NAMESPACES.get({x}.__class__)" for x in operation.arguments
    ]
    one = len(operation.arguments) == 1 and operation.arguments[0] != operation.star
    arrays = ", ".join(f"{x}={x}" for x in operation.arguments)
    return [
        f"xp = {' or '.join(namespaces)} or _numpy",
        *([] if one else ["if xp is not _numpy:", f"    _refuse_several_devices(_op.name, {arrays})"]),
        "try:",
        f"    {operation.results_text} = _function(xp, {_passed_on(operation)})",
        "    if out.__class__ not in _NAMESPACES:",
        "        out = _as_array(out)",
        "except _Exception as _error:",
        f"    raise _explained(_error, _op, {', '.join(f'{x}={x}' for x in operation.names)}) from _error",
    ]


def _recording(operation: Operation) -> list[str]:
    """The node, with an edge to each argument that requires a gradient, or None."""
    constant = " and ".join(f"_{x}_node is None" for x in operation.arguments)
    lines = [f"if ({constant}) or not _grad_mode.current:", "    _node = None", "else:"]
    # Node.__init__, written out: a call less.
    lines += ["    _node = _new(_Node)", "    _node.op = _op", *(f"    {line}" for line in _linking(operation))]
    lines += [f"    _node.pullback = {operation.pullback_text}"]
    lines += ["    _node.order = _next_order()", "    _node.shape = out.shape", "    _node.dtype = out.dtype"]
    return lines


def _linking(operation: Operation) -> list[str]:
    """The edges: that of the last argument is made first, since backward begins with the latest."""
    lines = []
    for x, vjp in zip(operation.arguments, operation.vjps, strict=True):
        if vjp is None:
            lines += [f"if _{x}_node is not None:", f"    {operation.line_without_vjp(x)}"]
    saved = {  # but for the i of a *star argument
        x: f"({''.join(f'{_saved_value(operation, name, x)}, ' for name in names if name != 'i').rstrip(' ')})"
        for x, vjp, names in zip(operation.arguments, operation.vjps, operation.saves, strict=True)
        if vjp is not None
    }
    if operation.star in saved:
        lines.append(f"_saved = {saved[operation.star]}")  # made once for all of its arrays
    elif len(operation.arguments) == 1:
        (x,) = operation.arguments
        first = f"_{x}_node", "0", saved[x], "()"
        return [f"_node.{name} = {value}" for name, value in zip(EDGE, first, strict=True)]
    elif len(set(saved.values())) == 1:  # as a fused operation's
        (values,) = set(saved.values())
        lines.append(f"_saved = {values}")
        saved = dict.fromkeys(saved, "_saved")
    lines.append("_edges = ()")
    for x in reversed(saved):
        index = operation.arguments.index(x)
        if x == operation.star:
            lines += [
                f"for i in _reversed(_range(_len(_{x}_node or ()))):",
                f"    if _{x}_node[i] is not None:",
                f"        _edges = (_{x}_node[i], {index}, (i, *_saved), _edges)",
            ]
        else:
            lines += [f"if _{x}_node is not None:", f"    _edges = (_{x}_node, {index}, {saved[x]}, _edges)"]
    return [*lines, f"{', '.join(f'_node.{name}' for name in EDGE)} = _edges"]


def _saved_value(operation: Operation, name: str, argument: str) -> str:
    if not name.endswith("_shape") or name in operation.names:
        return name
    array = name.removesuffix("_shape")
    if array == operation.star:
        return f"_tuple([_getattr(x, 'shape', ()) for x in {array}])"
    return f"{array}.shape" if array == argument else f"_getattr({array}, 'shape', ())"


def _one_array(out: Any) -> Any:
    if isinstance(out, tuple):
        raise TypeError(f"it returned a {type(out).__name__}, expected one array")
    return as_array(out)


@functools.cache
def _compiled(text: str) -> CodeType:
    """The code of the function that ``text`` defines; tracebacks show the text."""
    filename = f"<microgradnd operation {text[text.index('(') : text.index(':')]} {next(_numbers)}>"
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
