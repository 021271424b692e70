"""The tensor: an array and the node that made it. No mathematics: operations bind their methods in ``ops``."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .autograd import Leaf, Node, backpropagate
from .backends import NAMESPACES, as_array
from .devices import beside, default, device_of, placed
from .dtypes import is_floating
from .grad_mode import enable_grad
from .inplace import is_changed_in_place, next_change, next_order, record_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from . import devices
    from .devices import Device

    # CuPy has no types: its arrays are Any. npt.ArrayLike would allow strings.
    Operand: TypeAlias = (
        "Tensor | complex | np.ndarray[Any, Any] | np.number[Any] | np.bool | list[Any] | tuple[Any, ...]"
    )
    Shape: TypeAlias = int | tuple[int, ...]
    Axis: TypeAlias = int | tuple[int, ...] | None

new = object.__new__


class Tensor:
    """An N-dimensional array that remembers how it was computed, so that it can be differentiated.

    Args:
        data: an array, a number, or nested lists of numbers. NumPy and CuPy arrays are not copied: the
            tensor shares their memory (as ``np.asarray`` does). Of a tensor the values, without its graph.
        dtype: converts ``data``; None keeps its dtype (Python floats: float64, as in NumPy).
        requires_grad: whether ``backward()`` shall compute a gradient for it; floating-point dtypes only.
        device: ``"cpu"``, ``"cuda"`` or a :class:`device`, to which ``data`` is copied if it is not there. None leaves
            CuPy arrays where they are, and everything else on the device of the ``with`` block around, or the host.

    Raises:
        TypeError: for data that is not numeric, and for ``requires_grad`` with an integer, boolean or
            complex dtype.
        ValueError: for nested lists whose lengths differ, and for devices of other names.
        ImportError, RuntimeError: for a GPU without CuPy, and one that CuPy does not find.

    Operations on tensors are functions of ``microgradnd`` under NumPy's names; the operators and a few
    methods are the same functions.
    """

    __slots__ = ("__weakref__", "_data", "_frozen", "_node")
    __array_ufunc__ = None  # NumPy's and CuPy's operators leave `array * tensor` to Tensor.__rmul__

    _data: Any
    _node: Node | Leaf | None
    _frozen: Leaf  # of a parameter whose requires_grad was turned off: its node again where that is turned on

    if TYPE_CHECKING:  # bound in ops, to the functions of the same names
        T: Tensor

        def __add__(self, other: Operand) -> Tensor: ...
        def __radd__(self, other: Operand) -> Tensor: ...
        def __sub__(self, other: Operand) -> Tensor: ...
        def __rsub__(self, other: Operand) -> Tensor: ...
        def __mul__(self, other: Operand) -> Tensor: ...
        def __rmul__(self, other: Operand) -> Tensor: ...  # type: ignore[misc]  # lists have __mul__ too
        def __truediv__(self, other: Operand) -> Tensor: ...
        def __rtruediv__(self, other: Operand) -> Tensor: ...
        def __floordiv__(self, other: Operand) -> Tensor: ...
        def __rfloordiv__(self, other: Operand) -> Tensor: ...
        def __mod__(self, other: Operand) -> Tensor: ...
        def __rmod__(self, other: Operand) -> Tensor: ...
        def __pow__(self, other: Operand) -> Tensor: ...
        def __rpow__(self, other: Operand) -> Tensor: ...
        def __matmul__(self, other: Operand) -> Tensor: ...
        def __rmatmul__(self, other: Operand) -> Tensor: ...
        def __and__(self, other: Operand) -> Tensor: ...
        def __rand__(self, other: Operand) -> Tensor: ...
        def __or__(self, other: Operand) -> Tensor: ...
        def __ror__(self, other: Operand) -> Tensor: ...
        def __xor__(self, other: Operand) -> Tensor: ...
        def __rxor__(self, other: Operand) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __eq__(self, other: Operand) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Operand) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other: Operand) -> Tensor: ...
        def __le__(self, other: Operand) -> Tensor: ...
        def __gt__(self, other: Operand) -> Tensor: ...
        def __ge__(self, other: Operand) -> Tensor: ...
        def __hash__(self) -> int: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def all(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
        def any(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
        def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor: ...
        def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor: ...
        def astype(self, dtype: npt.DTypeLike) -> Tensor: ...
        def clip(self, a_min: Operand | None = None, a_max: Operand | None = None) -> Tensor: ...
        def flatten(self) -> Tensor: ...
        def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
        def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
        def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
        def ravel(self) -> Tensor: ...
        def reshape(self, *shape: Any) -> Tensor: ...
        def squeeze(self, axis: Axis = None) -> Tensor: ...
        def std(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor: ...
        def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
        def to(self, device: Device) -> Tensor: ...
        def swapaxes(self, axis1: int, axis2: int) -> Tensor: ...
        def transpose(self, *axes: Any) -> Tensor: ...
        def var(self, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Tensor: ...

    def __init__(
        self,
        data: Operand,
        dtype: npt.DTypeLike | None = None,
        requires_grad: bool = False,
        device: Device | None = None,
    ) -> None:
        if isinstance(data, Tensor):
            data = data._data
        try:
            array = as_array(data, dtype)
        except (TypeError, ValueError) as error:
            raise type(error)(f"tensor: {error}") from None
        if device is not None or (default.current is not None and array.__class__ is np.ndarray):
            array = placed(array, device or default.current)  # type: ignore[arg-type]
        self._data = array
        self._node = None
        if requires_grad:
            self.requires_grad = True

    @property
    def data(self) -> Any:
        """The array itself, NumPy's or CuPy's.

        Assigning replaces the values: same shape, converted to the tensor's dtype and device; a graph recorded before
        keeps the old values. After an in-place change such as ``t.data -= step``, a backward that needs
        the old values raises RuntimeError instead of giving a wrong gradient. (Writing through an index,
        ``t.data[0] = 1``, goes unnoticed.)

        Raises, when assigned to, RuntimeError for the result of an operation that needs a gradient, and for the
        argument of a function that is differentiated; ValueError for another shape; TypeError for values that can't be
        converted.
        """
        return self._data

    @data.setter
    def data(self, value: Any) -> None:  # Any: to what was assigned type checkers would narrow it
        if isinstance(self._node, Leaf) and self._node.is_argument:
            raise RuntimeError("data: the argument of a function that is differentiated was given other values")
        if value is self._data:  # t.data -= x has changed the array, whatever is raised below
            record_of(value)[1] = next_change()
        if isinstance(self._node, Node):
            raise RuntimeError(
                f"data: a tensor made by {self._node.op.name} was given other values, or changed in place, and its "
                "gradients belong to the old ones; change leaves only, or compute a new tensor"
            )
        if value is self._data:
            return
        array = self._matching(value, "data")
        # An array that somebody changes in place, as an optimiser does with its own, is not shared.
        replace(self, array.copy() if is_changed_in_place(array) else array)

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward accumulated, for leaves with ``requires_grad``; otherwise None.

        Assigning takes the array as it is, without a copy. Raises then RuntimeError for a tensor that is no leaf
        with ``requires_grad``, ValueError for another shape, TypeError for values that can't be converted.
        """
        if not isinstance(self._node, Leaf) or self._node.grad is None:
            return None
        self._node.grad = constant(self._node.grad)  # one tensor from now on, so that its data can be assigned
        return self._node.grad  # type: ignore[no-any-return]

    @grad.setter
    def grad(self, value: Any) -> None:
        if not isinstance(self._node, Leaf):
            raise RuntimeError("grad: only a leaf that requires a gradient has one")
        if isinstance(value, Tensor) and value.requires_grad and value.shape == self.shape:
            self._node.grad = value.astype(self.dtype)  # a gradient that can be differentiated again
        else:
            self._node.grad = None if value is None else constant(self._matching(value, "grad"))

    def _matching(self, value: Operand, what: str) -> Any:
        """``value`` as an array of this tensor's shape and dtype, on its device."""
        data = self._data
        try:
            array = as_array(value._data if isinstance(value, Tensor) else value, like=data)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{what}: {error}") from None
        array = beside(array, data)
        if array.shape != data.shape:
            raise ValueError(f"{what}: expected shape {data.shape}, got {array.shape}")
        if array.dtype != data.dtype:
            if not np.can_cast(array.dtype, data.dtype, "same_kind"):
                raise TypeError(f"{what}: expected {data.dtype}, got {array.dtype}")
            array = array.astype(data.dtype)
        return array

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to this tensor. Can be set on leaves (tensors that no operation made).

        Set to False, a leaf forgets its gradient, and graphs that were recorded before give it none. Raises, when set
        to False, RuntimeError for results of operations and for arguments of a function that is differentiated;
        when set to True, TypeError for dtypes that are not floating-point.
        """
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if isinstance(self._node, Node):
            if not value:
                raise RuntimeError("requires_grad: only a leaf can be changed; use detach() for a constant copy")
        elif not value:
            if self._node is not None and self._node.is_argument:
                raise RuntimeError(
                    "requires_grad: the argument of a function that is differentiated needs its gradient"
                )
            if self._node is not None:
                self._frozen, self._node = self._node, None
                self._frozen.grad = None
        elif hasattr(self, "_frozen"):
            # The same node, by which captured steps know the parameter; other values may have been assigned since.
            self._frozen.grad, self._frozen.assigned = None, next_order()
            self._node = self._frozen
            del self._frozen
        elif self._node is None:
            if not is_floating(self._data.dtype):
                raise TypeError(
                    f"requires_grad: {self._data.dtype} values have no gradient; convert to a floating-point "
                    "dtype first, for example mg.tensor(data, dtype='float32', requires_grad=True)"
                )
            self._node = Leaf(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self._data.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> Any:
        """The dtype of the elements."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._data.size  # type: ignore[no-any-return]

    @property
    def device(self) -> devices.device:
        """Where the elements lie: ``device('cpu')``, or a GPU such as ``device('cuda:0')``."""
        return device_of(self._data)

    def item(self) -> Any:
        """The only element as a Python number. Raises ValueError where there is not exactly one."""
        if self._data.size != 1:
            raise ValueError(f"item: needs a tensor of one element, got shape {self.shape}")
        return self._data.item()

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array: the tensor's own array, or a copy on the host of a CuPy array."""
        return self._data if isinstance(self._data, np.ndarray) else self._data.get()

    def detach(self) -> Tensor:
        """A constant tensor with the same memory: no gradient flows back through it."""
        return constant(self._data)

    def zero_grad(self) -> None:
        """Forget the gradient (sets it to None)."""
        if isinstance(self._node, Leaf):
            self._node.grad = None

    def backward(self, grad: Operand | None = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add the gradient of this tensor to ``.grad`` of every leaf that it was computed from.

        Threads may do so at one time where their graphs share no leaf: of two that add to one, one may be lost.

        Args:
            grad: gradient with respect to this tensor, of its shape; may be left out for one element (1.0).
            retain_graph: keep what the graph saved, so that backward can go through it again.
            create_graph: make the gradients differentiable tensors (retains the graph).

        Raises:
            RuntimeError: if this tensor needs no gradient, the graph has been freed, or a value saved for
                a gradient has been changed in place. No ``.grad`` has changed then.
            ValueError: if ``grad`` is missing for several elements, or has another shape.
            TypeError: if ``grad`` can't be converted to this tensor's dtype, for example from complex numbers.
        """
        if self._node is None:
            raise RuntimeError(
                "backward: this tensor needs no gradient: it was computed from no tensor with requires_grad=True, "
                "or within no_grad()"
            )
        g = self._initial_gradient(grad)
        if create_graph:
            with enable_grad():
                totals = _added(backpropagate(self._node, constant(g), create_graph=True))
        else:
            g = g._data if isinstance(g, Tensor) else g
            totals = _added(backpropagate(self._node, g, retain_graph=retain_graph))
        for leaf, total in totals.items():
            leaf.grad = total

    def _initial_gradient(self, grad: Operand | None) -> Any:
        """``grad`` with this tensor's shape and dtype, sharing memory with nothing; a tensor if it needs a gradient."""
        data = self._data
        if grad is None:
            if data.size != 1:
                raise ValueError(
                    f"backward: a tensor of shape {self.shape} is no scalar; reduce it first (sum, mean), or pass grad"
                )
            one = NAMESPACES[data.__class__].asarray(1, data.dtype)
            return one.reshape(data.shape) if data.ndim else one
        array = self._matching(grad, "backward: grad")
        if isinstance(grad, Tensor) and grad.requires_grad:
            return grad.astype(data.dtype)
        return array.copy()

    if not TYPE_CHECKING:  # type checkers would take np.exp(t) and np.ones(3) * t for arrays

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            """NumPy's array conversion, refused where it would lose a gradient unnoticed."""
            if self._node is not None:
                raise TypeError(
                    "a tensor that requires a gradient does not become a NumPy array by itself, since the gradient "
                    "would be lost: use t.detach() or t.numpy(), mg's functions instead of NumPy's, and mg.stack or "
                    "mg.concatenate to join tensors"
                )
            if self._data.__class__ is not np.ndarray:
                raise TypeError(f"a tensor on {self.device} becomes no NumPy array by itself: copy it with t.numpy()")
            return np.array(self._data, dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        """The memory, for another library's ``from_dlpack``. Raises BufferError where a gradient would be lost."""
        if self._node is not None:
            raise BufferError("a tensor that requires a gradient is not handed over; give t.detach()")
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        """DLPack's type and number of the device."""
        return self._data.__dlpack_device__()  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A leaf or constant with values of its own, and no gradient yet."""
        if isinstance(self._node, Node):
            raise RuntimeError("copy, deepcopy: only leaves can be copied; use detach() first")
        memo[id(self)] = copy = _leaf(self._data.copy(), self.requires_grad, is_parameter(self))
        return copy

    def __copy__(self) -> Tensor:
        """The same: an optimiser changes its parameters' arrays in place."""
        return self.__deepcopy__({})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickling gives a leaf or constant of its own, without a gradient or a graph."""
        if isinstance(self._node, Node):
            raise RuntimeError("pickle: only leaves can be copied; use detach() first")
        return _leaf, (self._data, self.requires_grad, is_parameter(self))

    def __init_subclass__(cls) -> None:
        raise TypeError("Tensor can't be subclassed; hold a tensor as an attribute instead")

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="tensor(")
        if isinstance(self._node, Node):
            origin = f", op={self._node.op.name}"
        else:
            origin = ", requires_grad=True" if self.requires_grad else ""
        return f"tensor({values}, dtype={self.dtype}{origin})"

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Operand) -> bool:
        found: Any = self == value
        return bool(found.any()) if isinstance(found, Tensor) else bool(found)

    def __bool__(self) -> bool:
        if self._data.size != 1:
            raise ValueError(
                f"the truth value of a tensor of shape {self.shape} is ambiguous: use (...).all() or (...).any()"
            )
        return bool(self._data)

    def __format__(self, spec: str) -> str:
        if not spec:
            return repr(self)
        if self._data.size != 1:
            raise TypeError(f"format {spec!r} needs a tensor of one element, got shape {self.shape}")
        return format(self.item(), spec)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())


def is_parameter(tensor: Tensor) -> bool:
    """Whether it is a leaf that requires a gradient, or did until that was turned off."""
    return isinstance(tensor._node, Leaf) or hasattr(tensor, "_frozen")


def _leaf(data: Any, requires_grad: bool, is_parameter: bool) -> Tensor:
    """A copy of a leaf or constant, as it is made again from a pickle."""
    tensor = Tensor(data, requires_grad=is_parameter)
    if not requires_grad:
        tensor.requires_grad = False
    return tensor


def _added(gradients: dict[Leaf, Any]) -> dict[Leaf, Any]:
    """Each leaf's gradient so far plus its new one, as arrays or tensors; nothing is changed."""
    totals = {leaf: g if leaf.grad is None else leaf.grad + g for leaf, g in gradients.items()}
    return {leaf: np.asarray(g) if issubclass(type(g), np.generic) else g for leaf, g in totals.items()}  # of 0-d ones


def replace(tensor: Tensor, array: Any) -> None:
    """Give a leaf or constant another array."""
    tensor._data = array
    if tensor._node is not None:
        tensor._node.assigned = next_order()  # type: ignore[union-attr]


def constant(array: Any) -> Tensor:
    """A tensor around the result of an array function, without a gradient. Tensors stay as they are."""
    if array.__class__ is Tensor:
        return array
    tensor = new(Tensor)
    tensor._data = array if array.__class__ in NAMESPACES else as_array(array)
    tensor._node = None
    return tensor


def tensor(
    data: Operand, dtype: npt.DTypeLike | None = None, requires_grad: bool = False, device: Device | None = None
) -> Tensor:
    """A tensor of ``data``: see :class:`Tensor`.

    >>> x = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    tensor([2., 4., 6.], dtype=float64)
    """
    return Tensor(data, dtype, requires_grad, device)
