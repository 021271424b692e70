"""Weights from PyTorch and to PyTorch, as safetensors files of state dicts.

    nn.Linear                weight transposed: (in, out) here, (out, in) there; bias
    nn.Sequential            layers.0.weight here, 0.weight there
    nn.LayerNorm, RMSNorm    the same
    nn.Embedding             the same
    nn.MultiHeadAttention    torch.nn.MultiheadAttention: in_proj.weight here, in_proj_weight there, transposed;
                             in_proj.bias, in_proj_bias; out_proj (with as many heads for keys as for queries)
    nn.TransformerBlock      torch.nn.TransformerEncoderLayer: self_attn, norm1, norm2; feed_forward.linear1 and
                             feed_forward.linear2 here, linear1 and linear2 there

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


def save_pytorch(path: str | os.PathLike[str], module: Module) -> None:
    """Write the parameters of ``module`` under PyTorch's names and in its layouts, whole or not at all.

    ``torch_module.load_state_dict(safetensors.torch.load_file(path))`` reads them there.
    """
    if not isinstance(module, Module):
        raise TypeError(f"save_pytorch: expected a module, got {module!r}")
    arrays = {}
    for _, theirs, tensor, transposed in _counterparts(module):
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
    try:
        state = safetensors_numpy().load(Path(path).read_bytes())
    except (OSError, ImportError, MemoryError):
        raise
    except KeyError as error:  # a dtype that NumPy lacks
        raise ValueError(
            f"load_pytorch: {os.fspath(path)} holds values of dtype {error}, which NumPy lacks; save "
            "torch_module.float().state_dict()"
        ) from error
    except Exception as error:
        raise ValueError(f"load_pytorch: {os.fspath(path)} can't be read: {type(error).__name__}: {error}") from error
    ours: dict[str, Any] = {}
    known = []
    for name, theirs, _, transposed in _counterparts(module):
        known.append(theirs)
        if theirs in state:
            array = state.pop(theirs)
            ours[name] = array.T if transposed and array.ndim == 2 else array
    try:
        if state:
            raise ValueError(f"unexpected {', '.join(state)}; {type(module).__name__} has {', '.join(known) or 'none'}")
        module.load_state_dict(ours)
    except (ValueError, TypeError) as error:
        raise type(error)(f"load_pytorch: {os.fspath(path)}: {error}") from None


def _counterparts(module: Module) -> Iterator[tuple[str, str, Tensor, bool]]:
    """Each tensor's name here, its name in PyTorch, the tensor, and whether PyTorch holds its transpose."""
    listed = dict(module.named_tensors())
    names = {id(tensor): name for name, tensor in listed.items()}
    for theirs, tensor, transposed in _named_there(module, frozenset()):
        if id(tensor) in names:
            yield names.pop(id(tensor)), theirs, tensor, transposed


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
