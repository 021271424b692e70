"""Devices by name: ``"cpu"``, where NumPy computes, and ``"cuda"``, a GPU through CuPy. Arrays go from one to another.

CuPy is imported when a GPU is asked for, or when a CuPy array is handed over, and not before.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from typing import Any, TypeAlias

import numpy as np

from .backends import NAMESPACES, as_array, register_cupy

EXTRAS = "pip install 'microgradnd[cuda12]' (or [cuda13], for drivers of CUDA 13)"


class device:
    """Where arrays lie; in a ``with`` block, where new tensors and layers are made.

    >>> with mg.device("cuda"):
    ...     model = nn.Linear(784, 10)

    Within the block :func:`tensor`, and so every layer, puts host data on that device; CuPy arrays stay where they
    are. It holds for the current thread. For a GPU the block also makes it CuPy's current device, which operations on
    arrays of a second GPU need.

    Args:
        name: ``"cpu"``, ``"cuda"`` (the GPU that is CuPy's current one) or ``"cuda:1"`` (the second one).

    Attributes:
        type: ``"cpu"`` or ``"cuda"``.
        index: the number of the GPU; None for the CPU and for the current GPU.

    Equal to another device, and to its name. Raises ValueError for other names; what uses a GPU raises ImportError
    without CuPy, and RuntimeError where CuPy finds no such GPU.
    """

    __slots__ = ("index", "type")

    def __init__(self, name: Device) -> None:
        kind, colon, number = str(name).partition(":")
        if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
            raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got {name!r}")
        self.type = kind
        self.index = int(number) if colon else None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"device({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, device | str) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __enter__(self) -> device:
        gpu = None
        if self.type == "cuda":
            gpu = _gpu(self)
            gpu.__enter__()
        default.outer.append((default.current, gpu))
        default.current = self
        return self

    def __exit__(self, *exception: Any) -> None:
        default.current, gpu = default.outer.pop()
        if gpu is not None:
            gpu.__exit__(*exception)


Device: TypeAlias = device | str


class _Default(threading.local):
    current: device | None = None

    def __init__(self) -> None:
        self.outer: list[tuple[device | None, Any]] = []  # of the blocks that this thread is in


default = _Default()


def cuda_is_available() -> bool:
    """Whether CuPy is installed and finds a GPU."""
    try:
        return bool(_cupy().cuda.runtime.getDeviceCount())
    except (ImportError, RuntimeError):
        return False


def device_of(array: Any) -> device:
    """Where an array lies."""
    return device("cpu") if array.__class__ is np.ndarray else device(f"cuda:{array.device.id}")


def resolved(where: Device) -> device:
    """The device of that name, with the number of the GPU that is current where the name has none."""
    where = where if isinstance(where, device) else device(where)
    return where if where.type == "cpu" else device(f"cuda:{_gpu(where).id}")


def placed(array: Any, where: Device) -> Any:
    """The array on that device: itself, if it is there already, or a copy."""
    where = where if isinstance(where, device) else device(where)
    if where.type == "cpu":
        return array if array.__class__ is np.ndarray else array.get()
    with _gpu(where):
        register_cupy()
        return NAMESPACES[_cupy().ndarray].asarray(array)


def beside(array: Any, like: Any) -> Any:
    """The array on the device of ``like``."""
    same = array.__class__ is like.__class__ and (array.__class__ is np.ndarray or array.device == like.device)
    return array if same else placed(array, device_of(like))


def refuse_several_devices(operation: str, **arguments: Any) -> None:
    """Raise TypeError, with the names of the devices, where the arrays among the arguments lie on several."""
    arrays: dict[str, Any] = {}
    for name, value in arguments.items():
        for i, x in enumerate(value if isinstance(value, tuple) else (value,)):
            if x.__class__ in NAMESPACES:
                arrays[f"{name}[{i}]" if isinstance(value, tuple) else name] = x
    if all(x.__class__ is np.ndarray for x in arrays.values()):
        return
    if len({device_of(x) for x in arrays.values()}) > 1:
        found = ", ".join(f"{name} on {device_of(x)}" for name, x in arrays.items())
        raise TypeError(f"{operation}: arrays on different devices, {found}; bring them together with .to(...)")


def _cupy() -> Any:
    if importlib.util.find_spec("cupy") is None:
        raise ImportError(f"a GPU is used through CuPy, which is not installed: {EXTRAS}", name="cupy")
    return importlib.import_module("cupy")


def _gpu(where: device) -> Any:
    """CuPy's object for a GPU that is there."""
    cupy = _cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise RuntimeError(
            f"device {str(where)!r}: CuPy {cupy.__version__} finds no GPU: {error}; see cupy.show_config()"
        ) from None
    if (where.index or 0) >= count:
        raise RuntimeError(f"device {str(where)!r}: CuPy finds {count} GPUs, numbered from 0")
    return cupy.cuda.Device(where.index)


def from_dlpack(x: Any) -> Any:
    """A constant tensor in the memory of an array of another library: PyTorch, JAX, CuPy or NumPy.

    ``x`` has the methods ``__dlpack__`` and ``__dlpack_device__``; on the host the memory becomes a NumPy array, on a
    GPU a CuPy array. Nothing is copied. In the other direction other libraries' ``from_dlpack`` take a tensor that
    requires no gradient: ``torch.from_dlpack(t.detach())``.

    Raises TypeError for objects without these methods, and for devices that are neither (BufferError, where the other
    library refuses).
    """
    from .tensor import constant

    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: expected an array with __dlpack__, got a {type(x).__name__}")
    kind = int(x.__dlpack_device__()[0])
    if kind == 1:  # kDLCPU of DLPack's header
        return constant(as_array(np.from_dlpack(x)))
    if kind in (2, 13):  # kDLCUDA, kDLCUDAManaged
        return constant(as_array(_cupy().from_dlpack(x)))
    raise TypeError(f"from_dlpack: expected memory of the host or of a CUDA GPU, got DLPack's device type {kind}")
