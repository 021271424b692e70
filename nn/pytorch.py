"""Weights from PyTorch and to PyTorch, as safetensors files of state dicts.

    nn.Linear                weight transposed: (in, out) here, (out, in) there; bias
    nn.Sequential            layers.0.weight here, 0.weight there
    nn.LayerNorm, RMSNorm    the same
    nn.Embedding             the same
    nn.MultiHeadAttention    torch.nn.MultiheadAttention: in_proj.weight here, in_proj_weight there, transposed;
                             in_proj.bias, in_proj_bias; out_proj (with as many heads for keys as for queries)
    nn.TransformerBlock      torch.nn.TransformerEncoderLayer: self_attn, norm1, norm2; feed_forward.linear1 and
                             feed_forward.linear2 here, linear1 and linear2 there; norm_first and activation are no
                             weights: give them as there (its defaults: norm_first=False, activation=nn.ReLU)

A module of one's own maps by its parts; where an attribute has another name there, the class says so in
``pytorch_names``: beginnings of names here, and what stands for them in PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from microgradnd import Tensor

from .checkpoint import replace_file, safetensors_numpy
from .linear import Linear
from .module import Module, children

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip


def save_pytorch(path: str | os.PathLike[str], module: Module) -> None:
    """Write the parameters of ``module`` under PyTorch's names and in its layouts, whole or not at all.

    ``torch_module.load_state_dict(safetensors.torch.load_file(path))`` reads them there. A tensor that is in two places
    is written twice, as PyTorch expects it. Raises ValueError where two tensors would have one name.
    """
    if not isinstance(module, Module):
        raise TypeError(f"save_pytorch: expected a module, got {module!r}")
    arrays: dict[str, Any] = {}
    for _, theirs, tensor, transposed in _counterparts(module):
        if theirs in arrays:
            raise ValueError(f"save_pytorch: two tensors of {type(module).__name__} would have the name {theirs}")
        array = tensor.numpy()
        arrays[theirs] = np.ascontiguousarray(array.T if transposed else array)
    replace_file(path, safetensors_numpy().save(arrays))


def load_pytorch(path: str | os.PathLike[str], module: Module) -> None:
    """Load a state dict that PyTorch saved with ``safetensors.torch.save_file(torch_module.state_dict(), path)``.

    Values are converted to the dtypes of the module's tensors. Raises ValueError, naming the file, for one that is
    damaged or does not fit, with the names that are missing, unexpected or mis-shaped; nothing has changed then.
    """
    if not isinstance(module, Module):
        raise TypeError(f"load_pytorch: expected a module, got {module!r}")
    state = _read(path)
    ours: dict[str, Any] = {}
    known: dict[str, str] = {}  # names there, and here
    for name, theirs, _, transposed in _counterparts(module):
        if theirs in state:
            array = state.pop(theirs)
            array = array.T if transposed and array.ndim == 2 else array
            if name in ours and not np.array_equal(ours[name], array, equal_nan=True):
                both = [other for other, ours_ in known.items() if ours_ == name]
                raise ValueError(
                    f"load_pytorch: {os.fspath(path)}: {both[0]} and {theirs} differ, which are one tensor here"
                )
            ours[name] = array
        known[theirs] = name
    try:
        if state:
            raise ValueError(f"unexpected {', '.join(state)}; {type(module).__name__} has {', '.join(known) or 'none'}")
        module.load_state_dict(ours)
    except (ValueError, TypeError) as error:
        raise type(error)(f"load_pytorch: {os.fspath(path)}: {error}") from None


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays of a safetensors file, those in bfloat16 as float32."""
    safetensors_numpy()  # says what to install
    from safetensors import deserialize

    state = {}
    try:
        for name, found in deserialize(Path(path).read_bytes()):
            if found["dtype"] not in DTYPES:
                raise ValueError(f"{name} has the dtype {found['dtype']}, which NumPy lacks")
            array = np.frombuffer(found["data"], DTYPES[found["dtype"]]).reshape(found["shape"])
            if found["dtype"] == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            state[name] = array
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"load_pytorch: {os.fspath(path)} can't be read: {type(error).__name__}: {error}") from error
    return state


def _counterparts(module: Module) -> Iterator[tuple[str, str, Tensor, bool]]:
    """Each tensor's name here, its name in PyTorch, the tensor, and whether PyTorch holds its transpose.

    A tensor in several places has several names there.
    """
    names = {id(tensor): name for name, tensor in module.named_tensors()}
    for theirs, tensor, transposed in _named_there(module, frozenset()):
        if id(tensor) in names:  # else the result of an operation
            yield names[id(tensor)], theirs, tensor, transposed


def _named_there(module: Module, outer: frozenset[int]) -> Iterator[tuple[str, Tensor, bool]]:
    outer |= {id(module)}  # a part may point back to what it is a part of
    renamed: dict[str, str] = getattr(module, "pytorch_names", {})
    for name, part in children(module):
        found = [(name, part, False)] if isinstance(part, Tensor) else []
        if isinstance(part, Module) and id(part) not in outer:
            inside = _named_there(part, outer)
            found = [(f"{name}.{inner}", tensor, transposed) for inner, tensor, transposed in inside]
        for path, tensor, transposed in found:
            for ours, theirs in renamed.items():
                if path.startswith(ours):
                    path = theirs + path.removeprefix(ours)
                    break
            yield path, tensor, transposed or (isinstance(module, Linear) and name == "weight")
