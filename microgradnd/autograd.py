"""The graph that operations record, and the walk back through it.

Knows no operation, no layer and no array library: gradients are added, summed, reshaped and cast with
their own operators and methods, so that the walk is the same for NumPy arrays, CuPy arrays and, when a
gradient is to be differentiated again, for tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from copy import copy
from heapq import heappop, heappush
from operator import attrgetter
from sys import getrefcount
from types import CellType, FunctionType
from typing import Any
from weakref import ref

from .dtypes import cast, is_narrow
from .inplace import changed_since, changes, next_order

UNSHARED = 2  # references to what a dictionary alone holds: its own and the call's that counts them


class Node:
    """One recorded call of an operation: what made a tensor, without the tensor itself.

    ``edges`` is a linked list, ``(parent, index, saved, other edges)`` with ``()`` at its end, so that backward can let
    go of one edge after the other: ``op.vjps[index](g, *saved)`` is the gradient for the node ``parent``. Where there
    is a ``pullback`` it is called once with g, and the vjps take what it gave instead of g. ``order`` falls with every
    node, so going through a graph in the order of ``order`` is a topological sort. After a backward that does not
    retain the graph ``edges`` is None, and all that it saved is free.
    """

    # The first edge lies in the node, not in a tuple of its own: fewer objects for Python's garbage collector, which
    # goes through a growing graph again and again, and takes longer for a deep one than its operations do.
    __slots__ = ("dtype", "index", "op", "order", "others", "parent", "pullback", "saved", "shape")

    def __init__(self, op: Any, edges: tuple[Any, ...], shape: tuple[int, ...], dtype: Any) -> None:
        self.op = op  # an Operation, or what has its attributes
        self.parent, self.index, self.saved, self.others = edges
        self.pullback: Callable[[Any], tuple[Any, ...]] | None = None
        self.order = next_order()
        self.shape = shape
        self.dtype = dtype

    @property
    def edges(self) -> tuple[Any, ...] | None:
        return None if self.parent is None else (self.parent, self.index, self.saved, self.others)


class Leaf:
    """The node of a tensor that the user made with ``requires_grad=True``; it keeps the gradient.

    The gradient lives here and not on the tensor, so that graph and tensors form no reference cycle (but
    a gradient made with ``create_graph`` holds the graph, and the graph its leaves, until ``zero_grad()``).
    """

    __slots__ = ("assigned", "dtype", "grad", "is_argument", "order", "shape", "tensor")
    edges = ()

    def __init__(self, tensor: Any) -> None:
        self.is_argument = False  # of a function that is differentiated: no parameter
        self.assigned = 0  # the order of the latest assignment of another array to its tensor
        self.grad: Any = None  # an array, and a tensor once it has been looked at or can be differentiated
        self.tensor = ref(tensor)  # to be called; weak, since the tensor holds the leaf
        self.order = next_order()
        self.shape = tensor.shape
        self.dtype = tensor.dtype


class Part:
    """The gradient of ``x[index]`` with respect to x, for a basic index: ``g`` at ``index``, zero elsewhere.

    Kept as the pair, so that several parts of one tensor are added into one array, not into one of zeros each.
    """

    __slots__ = ("g", "index", "whole")
    shape = None

    def __init__(self, g: Any, index: Any, whole: Callable[[], Any]) -> None:
        self.g = g
        self.index = index
        self.whole = whole  # makes the gradient with its zeros


class Onto:
    """A gradient that adds itself to the sum so far, in one pass over memory."""

    __slots__ = ("compute",)
    shape = None

    def __init__(self, compute: Callable[[Any], Any]) -> None:
        self.compute = compute  # takes the sum so far, which stays as it is, or None; returns a new array


def backpropagate(
    root: Node | Leaf,
    g: Any,
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
    targets: frozenset[Node | Leaf] | None = None,
) -> dict[Any, Any]:
    """Gradients of ``root``, weighted with ``g``, for all leaves or for the nodes in ``targets``.

    Reverse-mode accumulation (Linnainmaa, 1970): nodes are taken newest first, so that a node's gradient
    is complete when its turn comes; no recursion. Nothing outside of the returned dict changes but the
    visited nodes, which are freed unless ``retain_graph``. Each returned gradient has its node's shape and
    dtype and shares memory with nothing else. With ``create_graph`` gradients are tensors that can be
    differentiated again.

    Raises RuntimeError where the graph was freed before, or where a value saved for the gradient has been
    changed in place since.
    """
    if root.__class__ is Leaf if targets is None else root in targets:
        return {root: g}
    if root.__class__ is Leaf:
        return {}  # nothing leads from it to a target
    needed = None if targets is None else _leading_to(targets, root)
    retain_graph = retain_graph or create_graph
    grads: dict[Any, Any] = {root: g}  # of results to the end, of other nodes until their turn
    del g  # which is not needed any more once the root has had its turn
    allocated: set[Any] = set()  # nodes whose gradient is a sum made here: nobody else holds it
    waiting: list[Any] = [(root.order, root)]
    while waiting:
        node = heappop(waiting)[1]
        given = grads.pop(node)  # what the vjps take: g, or what the pullback makes of it
        if node.parent is None:
            raise _freed(node)
        edges = node.parent, node.index, node.saved, node.others
        if node.order > changes.latest:  # orders fall: the node is older than the latest change
            _refuse_changed(node)
        op = node.op
        vjps = op.vjps
        if node.pullback is not None and not create_graph:
            given = list(node.pullback(given))
        if not retain_graph:
            node.parent = node.saved = node.others = node.pullback = None
        while edges:
            parent, index, saved, edges = edges
            if needed is not None and parent not in needed:
                continue
            try:
                gx = op.vjp_of_tensors(node, index, saved, given) if create_graph else vjps[index](given, *saved)
                shape = gx.shape
            except Exception as error:
                error.add_note(f"(in the gradient of {op.name} with respect to {op.arguments[index]})")
                raise
            if shape != parent.shape:
                if gx.__class__ is Onto:
                    before = grads.get(parent)
                    gx = gx.compute(before)
                    if before is not None:
                        grads[parent] = gx if gx.dtype == parent.dtype else _cast(gx, parent.dtype, op, index)
                        allocated.add(parent)
                        continue
                elif gx.__class__ is Part:
                    if parent in allocated and parent.shape:  # sums of 0-d arrays are numbers
                        grads[parent][gx.index] += gx.g
                        continue
                    gx = gx.whole()
                    if parent not in grads:
                        allocated.add(parent)
                else:
                    gx = _sum_to(gx, parent.shape, op, index)
            if gx.dtype is not parent.dtype and gx.dtype != parent.dtype:
                gx = _cast(gx, parent.dtype, op, index)
            if parent in grads:
                if parent in allocated:
                    grads[parent] += gx
                else:
                    grads[parent] = grads[parent] + gx
                    if not create_graph:
                        allocated.add(parent)
                continue
            grads[parent] = gx
            is_result = parent.__class__ is Leaf if targets is None else parent in targets
            if not is_result:
                heappush(waiting, (parent.order, parent))
            elif not create_graph:
                del gx  # whether a variable counts depends on the release of Python: the dictionary alone holds it
                if grads[parent].base is not None or getrefcount(grads[parent]) > UNSHARED:
                    grads[parent] = grads[parent].copy()  # somebody else holds its memory: as g, as a saved value
            elif not gx.requires_grad:
                grads[parent] = copy(gx)  # the same of a constant, which may be changed in place
    return grads


def edges_of(node: Node | Leaf) -> Iterator[tuple[Any, int, tuple[Any, ...]]]:
    """Parent, index and saved values of each edge; none of a node that has been freed."""
    edges = node.edges or ()
    while edges:
        parent, index, saved, edges = edges
        yield parent, index, saved


def reachable(root: Node | Leaf, end: Set[Any] = frozenset()) -> set[Any]:
    """All nodes that ``root`` was computed from, itself included, but none beyond those in ``end``.

    Raises RuntimeError if the graph was freed.
    """
    seen: set[Any] = {root}
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if node in end:
            continue
        if node.edges is None:
            raise _freed(node)
        for parent, _, _ in edges_of(node):
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return seen


def _freed(node: Node) -> RuntimeError:
    return RuntimeError(
        f"backward: the graph was already freed (at {node.op.name}, shape {node.shape}). A backward frees what it "
        "saved, also one that failed; call the first one with retain_graph=True to go through it again, or compute "
        "the result again"
    )


def _leading_to(targets: frozenset[Any], root: Node | Leaf) -> set[Any]:
    """The nodes through which a gradient of ``root`` can reach a target; the targets themselves included."""
    needed: set[Any] = set(targets)
    for node in sorted(reachable(root, targets), key=attrgetter("order"), reverse=True):  # oldest first
        if node not in targets and any(parent in needed for parent, _, _ in edges_of(node)):
            needed.add(node)
    return needed


def _sum_to(g: Any, shape: tuple[int, ...], op: Any, index: int) -> Any:
    """Undo broadcasting: the sum of ``g`` over every axis along which ``shape`` was stretched."""
    if is_narrow(g.dtype):  # in float16, ones add up to 2048 and no further
        return cast(_sum_to(g.astype("float32"), shape, op, index), g.dtype)
    extra = len(g.shape) - len(shape)
    if extra == 1 and g.shape[1:] == shape:
        return g.sum(axis=0)
    if extra < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[extra:], strict=True)):
        raise ValueError(
            f"{op.name}: the gradient with respect to {op.arguments[index]} has shape {g.shape}, which does "
            f"not sum to the argument's shape {shape}"
        )
    stretched = [extra + i for i, n in enumerate(shape) if n != g.shape[extra + i]]
    g = g.sum(axis=(*range(extra), *stretched))
    return g.reshape(shape) if stretched else g


def _cast(g: Any, dtype: Any, op: Any, index: int) -> Any:
    """A gradient has its tensor's dtype; a complex one can't be cast to real without losing half of it."""
    if g.dtype.kind == "c":
        raise TypeError(
            f"{op.name}: the gradient with respect to {op.arguments[index]} is {g.dtype}, but the argument "
            f"is {dtype}: gradients through complex values are not supported"
        )
    return cast(g, dtype)


def _refuse_changed(node: Node) -> None:
    """Raise if an array saved by ``node`` has been changed in place since it was saved."""
    for array in saved_arrays(node):
        if changed_since(array, node.order):
            raise RuntimeError(
                f"backward: {node.op.name} saved an array of shape {array.shape} for its gradient, and its values have "
                "been changed in place since; call backward() before the optimiser's step(), or assign a new array "
                "(t.data = t.data - ..., not t.data -= ...)"
            )


def saved_arrays(node: Node) -> Iterator[Any]:
    """The arrays that a node saved: for its vjps, and in the variables of its pullback."""
    saved = [value for _, _, values in edges_of(node) for value in values]
    waiting = [*saved, node.pullback]
    seen: set[int] = set()  # the edges of joined arrays save one tuple, of all their shapes
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        if isinstance(value, tuple | list):
            seen.add(id(value))
            waiting += value
        elif isinstance(value, FunctionType):
            seen.add(id(value))
            waiting += [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        elif hasattr(value, "strides"):
            yield value
