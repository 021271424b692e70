"""The recorder: what is done with handles becomes instructions."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..dtypes import is_narrow
from ..inplace import owner_of
from .active import CaptureError, active
from .arrays import HANDLES, RecordedArray, RecordedNumber, lies_alike
from .instructions import Instruction, Variable, bare, current_device, is_array, is_on_device, library_of
from .writable import SHAPE_KEYWORDS, SHAPE_POSITIONS

# What may stand in the text of a program besides variables.
LITERAL = (bool, int, float, complex, str, bytes, type(None), type(...), slice, type, np.dtype, np.generic)
FREQUENT = frozenset([bool, int, float, str, type(None)])  # looked for first


# Functions that may return their argument, and do not change it then.
UNCHANGING = ("array", "asarray", "ascontiguousarray", "atleast_1d", "atleast_2d", "broadcast_to", "squeeze")
# Those that meet large arrays in every step and change none, but for ``out``, which comes back as the result. Arguments
# of all other functions are copied, and compared afterwards.
PURE = frozenset([*UNCHANGING, "concatenate", "dot", "einsum", "matmul", "max", "mean", "min", "sum", "vdot", "where"])


class Recorder:
    """What a step did so far, instruction by instruction."""

    def __init__(self, note: Callable[[], str]) -> None:
        self.instructions: list[Instruction] = []
        self._errors: dict[str, Any] = dict(np.geterr())
        self.quiet: set[str] = set()  # kinds of NumPy's errors that the step ignores somewhere
        self._note = note
        self._thread = threading.get_ident()
        self._roots: dict[int, tuple[Any, Variable]] = {}  # id of an array that owns memory -> itself, its variable
        self._handles: dict[int, tuple[Any, RecordedArray]] = {}  # of inputs, arguments and constants
        self._known: dict[Any, Any] = {}  # variables of views, and what numbers alone give, by how they are made
        self.trouble: Exception | None = None  # an error in the step, which it may have caught
        self.once = False  # whether the step does something that the next call is not likely to do

    def note_once(self) -> None:
        self.once = True

    @property
    def uses_device(self) -> bool:
        """Whether arrays on a device are used."""
        return any(v.is_on_device for x in self.instructions for v in (*x.reads(), *x.results, *x.writes))

    @property
    def computes_narrowly(self) -> bool:
        """Whether there are arrays of float16 or bfloat16."""
        return any(v.shape is not None and is_narrow(v.dtype) for x in self.instructions for v in x.results)

    def is_this_thread(self) -> bool:
        return threading.get_ident() == self._thread

    def given(self, array: Any, kind: str, name: str) -> RecordedArray:
        """A handle for an array that was there before, the same one each time."""
        known = self._handles.get(id(array))
        if known is None:
            root = self._root(_on_current_device(array))
            if kind == "constant" and array.size and not is_on_device(array):
                name = {0: "zeros", 1: "ones"}.get(array.flat[0], name) if (array == array.flat[0]).all() else name
            variable = Variable(array, kind, name, root)
            variable.array = array
            if root is None:
                self._register(array, variable)
            known = self._handles[id(array)] = (array, RecordedArray(array, variable))
        return known[1]

    def argument(self, array: Any, name: str) -> RecordedArray:
        """A handle for an array that replays get anew: of its own, whoever else has the same array now."""
        variable = Variable(array, "argument", name)
        if self._root(_on_current_device(array)) is None:
            self._register(array, variable)
        return RecordedArray(array, variable)

    def number(self, value: Any, name: str) -> RecordedNumber:
        """A handle for a number that is read anew in each replay."""
        return RecordedNumber(value, Variable(value, "number", name))

    def _root(self, array: Any) -> Variable | None:
        owner = owner_of(array)
        found = self._roots.get(id(owner))
        return found[1] if found is not None and found[0]() is owner else None

    def _register(self, array: Any, variable: Variable) -> None:
        owner = owner_of(array)
        self._roots[id(owner)] = (weakref.ref(owner), variable)

    def unwrapped(self, value: Any) -> tuple[Any, Any]:
        """A nested argument with arrays for handles, and with variables for them."""
        kind = type(value)
        if kind in HANDLES:
            return value.value, value.variable
        if kind in FREQUENT:
            return value, value
        if kind is np.ndarray or is_on_device(value):
            return value, self.given(value, "constant", "constant").variable
        if isinstance(value, np.ndarray):
            raise CaptureError(f"capture: an array of the class {kind.__name__} is used, which is not recorded")
        if kind in (tuple, list):
            real, noted = zip(*[self.unwrapped(part) for part in value], strict=True) if value else ((), ())
            return kind(real), kind(noted)
        if kind is dict:
            real, noted = self.unwrapped(tuple(value.values()))
            return dict(zip(value, real, strict=True)), dict(zip(value, noted, strict=True))
        if not isinstance(value, LITERAL) and value is not np:  # as an argument, where np itself is handed on
            raise CaptureError(
                f"capture: a {type(value).__name__} is handed to a function of arrays, which is not recorded"
            )
        return value, value

    def call(
        self,
        kind: str,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        out: Any = None,
        writes: tuple[Any, ...] = (),
    ) -> Any:
        """The result of a call, noted. ``out`` or ``writes`` are those of its arguments that it changes."""
        if not self.is_this_thread():
            raise CaptureError("capture: another thread uses the tensors of a step while the step is recorded")
        if (errors := dict(np.geterr())) != self._errors:
            self._note_errors(errors)
        kwargs = kwargs or {}
        if kind not in ("operator", "ufunc"):
            args, kwargs = self._agreed_arguments(kind, name, args, kwargs)
        if out is not None:
            kwargs, writes = {**kwargs, "out": out}, (out,)
        real_args, noted_args = self.unwrapped(args)
        real_kwargs, noted_kwargs = self.unwrapped(kwargs)
        instruction = Instruction(kind, name, function, noted_args, noted_kwargs, self._note())
        given = [x for x in flat([*writes, *args, *kwargs.values()]) if type(x) is RecordedArray]
        watched = kind == "function" and not writes and bare(name) not in PURE
        before = [(x, x.value.copy()) for x in given if is_array(x.value)] if watched else []
        result = self._tried(function, real_args, real_kwargs)
        changed = any(bytes_of(x.value) != bytes_of(copy) for x, copy in before if x.value is not result)
        if changed or real_kwargs.get("overwrite_input"):
            raise CaptureError(f"capture: {name} changes its argument, which is not recorded")
        instruction.writes = [x.variable for x in writes]
        same = next((x for x in given if x.value is result), None) if is_array(result) else None
        if same is not None:  # what came is what went
            # As nan_to_num(copy=False) does; and x.max(0, w) gives back the place for its result.
            if kind == "method":
                in_place = any(x is same for x in args[1:])
            else:
                in_place = kind == "function" and bare(name) not in UNCHANGING
            if in_place and not writes:
                instruction.writes = [same.variable]
            if instruction.writes:
                self.instructions.append(instruction)
            return same
        of_numbers = kind == "operator" and not is_array(result) and not isinstance(result, np.generic)
        is_view = is_array(result) and not writes and self._root(result) is not None
        for x in given if is_view else ():
            if lies_alike(result, x.value):  # reshaped to the shape that it has
                return RecordedArray(result, x.variable)
        key = _key(instruction) if of_numbers or is_view else None
        if key in self._known:
            return self._known[key] if of_numbers else RecordedArray(result, self._known[key])
        self.instructions.append(instruction)
        handle = self._result(result, instruction)
        if key is not None:
            self._known[key] = handle if of_numbers else handle.variable  # without the view itself, which holds memory
        return handle

    def _note_errors(self, errors: dict[str, Any]) -> None:
        """What np.errstate says within the step."""
        different = {kind: how for kind, how in errors.items() if how != self._errors[kind]}
        if any(how != "ignore" for how in different.values()):
            self.trouble = CaptureError(
                f"capture: np.errstate within the step, {different}, is not recorded; put it around the call"
            )
        self.quiet |= different.keys()

    def _tried(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result; an error that the step itself may catch and go on from is remembered."""
        active.recorder = None  # what a function of ours does within is not noted
        try:
            return function(*args, **kwargs)
        except Exception as error:
            self.trouble = CaptureError(
                f"capture: the step catches an error and goes on ({error!r}); where there is none a replay would not "
                "know what to do"
            )
            raise
        finally:
            active.recorder = self

    def _result(self, result: Any, instruction: Instruction) -> Any:
        instruction.is_tuple = isinstance(result, tuple | list)
        return self._handle(result, instruction)

    def _handle(self, result: Any, instruction: Instruction) -> Any:
        if result is None:
            return None
        if isinstance(result, tuple) and hasattr(result, "_fields"):
            return type(result)(*[self._handle(part, instruction) for part in result])
        if isinstance(result, tuple | list):
            parts = [self._handle(part, instruction) for part in result]
            return parts if isinstance(result, list) else tuple(parts)
        if isinstance(result, bool | int | float | complex) and not isinstance(result, np.generic):
            variable = Variable(result, "number", instruction.name)
            instruction.results.append(variable)
            return RecordedNumber(result, variable)
        if not is_array(result) and not isinstance(result, np.generic):
            raise CaptureError(f"capture: {instruction.name} gave {result!r}, which is not recorded")
        _on_current_device(result)
        root = self._root(result) if is_array(result) else None
        variable = Variable(result, "made", instruction.name, root)
        if root is None and is_array(result):
            self._register(result, variable)
        instruction.results.append(variable)
        return RecordedArray(result, variable)

    def _agreed_arguments(self, kind: str, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments with plain numbers for the integers and booleans among them that are axes, lengths or masks.

        Shapes depend on them, so that replays have to agree.
        """
        if kind == "getitem":
            return (args[0], self._agreed(args[1], (bool,))), kwargs
        if (at := SHAPE_POSITIONS.get(bare(name))) is not None:
            chosen = range(len(args))[at]
            args = tuple(self._agreed(x) if i in chosen else x for i, x in enumerate(args))
        return args, {key: self._agreed(x) if key in SHAPE_KEYWORDS else x for key, x in kwargs.items()}

    def _agreed(self, x: Any, kinds: tuple[type, ...] = (bool, int)) -> Any:
        if type(x) in (tuple, list):
            return type(x)([self._agreed(part, kinds) for part in x])
        if type(x) not in (RecordedArray, RecordedNumber) or is_on_device(x.value) or np.ndim(x.value):
            return x
        kind = {"b": bool, "i": int, "u": int}.get(np.asarray(x.value).dtype.kind)
        return self.branch(x, None if type(x) is RecordedNumber else kind) if kind in kinds else x

    def ask_shapes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Somebody looks at the shapes of these arguments."""
        for x in flat([*args, *kwargs.values()]):
            if type(x) is RecordedArray:
                x.variable.root.is_asked = True

    def created_like(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An array of the layout of another one, and of one value: noted without the other one."""
        self.ask_shapes(args, kwargs)
        result = function(*self.unwrapped(args)[0], **self.unwrapped(kwargs)[0])
        fill = (args[1] if len(args) > 1 else kwargs["fill_value"],) if bare(name) == "full" else ()
        noted = self.unwrapped((result.shape, *fill, result.dtype))[1]
        order = {"order": "F"} if result.flags.f_contiguous and not result.flags.c_contiguous else {}
        creator = getattr(library_of(result)[1], bare(name))
        instruction = Instruction("create", name, creator, noted, order, self._note())
        self.instructions.append(instruction)
        return self._result(result, instruction)

    def branch(self, handle: Any, kind: type | None = None) -> Any:
        """The value of ``handle``, converted by ``kind``: replays have to agree on it."""
        value = handle.value if kind is None else kind(handle.value)
        key = ("branch", id(handle.variable), kind)
        if key not in self._known:
            if type(handle) is RecordedNumber:  # an array may be another one when it is asked again
                self._known[key] = handle
            name = "branch" if kind is None else kind.__name__
            self.instructions.append(Instruction("branch", name, kind, (handle.variable, value), {}, self._note()))
        return value


def _key(x: Instruction) -> Any:
    """What two calls that compute the same have in common; arguments are compared by their type and text."""
    return (x.name, *((id(v) if type(v) is Variable else (type(v), repr(v))) for v in (*x.args, *x.kwargs.items())))


def _on_current_device(array: Any) -> Any:
    """The array; a replay runs on one GPU, the current one."""
    if is_on_device(array) and array.device.id != current_device():
        raise CaptureError(
            f"capture: the step uses an array on GPU {array.device.id}, and CuPy's current one is {current_device()}; "
            "call it in a block `with mg.device(...)`, with all arrays on that GPU"
        )
    return array


def flat(args: Iterable[Any]) -> list[Any]:
    """What is in nested tuples and lists."""
    found: list[Any] = []
    for part in args:
        if issubclass(type(part), (tuple, list)):  # isinstance would ask each handle for its __class__ too
            found += flat(part)
        else:
            found.append(part)
    return found


def bytes_of(array: Any) -> Any:
    """The bytes of an array, of one on a device too."""
    return (array.get() if is_on_device(array) else array).tobytes()
