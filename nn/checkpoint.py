"""Checkpoints: all that training needs to go on, in one safetensors file.

The file holds the arrays as tensors, and everything else as JSON in its metadata, together with a SHA-256 digest of
it all: there is no pickle in it, any reader of safetensors can open it, and damage does not go unnoticed. Needs the
package ``safetensors`` (``pip install 'microgradnd[checkpoints]'``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import numpy as np

from microgradnd import Tensor
from microgradnd.dtypes import BFLOAT16, as_dtype, is_numeric

from .module import Module

FORMAT = "microgradnd checkpoint 1"


def save_checkpoint(path: str | os.PathLike[str], **parts: Any) -> None:
    """Write ``parts`` to ``path``, whole or not at all.

    >>> nn.save_checkpoint("run.safetensors", model=model, optimizer=optimizer, schedule=schedule, rng=rng, step=step)

    The file is written beside ``path``, synced to the disk and renamed: when the process is killed at any moment,
    ``path`` is the old file or the new one, whole.

    Args:
        path: of the file; an old one is replaced.
        parts: by name: modules (with the generators of their dropout layers), anything else that has ``state_dict``
            and ``load_state_dict``, as optimisers and schedules, ``numpy.random.Generator`` objects, arrays, tensors,
            numbers, strings, None, and lists and dicts (with strings for keys) of these.

    Raises:
        TypeError: for values of other types, naming them.
        ValueError: for two arrays that would have the same name.
        ImportError: where the package safetensors is not installed.
        OSError: where the file can't be written; the old one is still there then.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = {}
    for name, part in parts.items():
        kind, state = _state(part)
        tree[name] = {"kind": kind, "state": _packed(state, name, arrays)}
    metadata = {"format": FORMAT, "parts": json.dumps(tree)}
    safetensors = safetensors_numpy()
    digest = _digest(safetensors.save(arrays, metadata))
    replace_file(path, safetensors.save(arrays, metadata | {"sha256": digest}))


def load_checkpoint(path: str | os.PathLike[str], **parts: Any) -> dict[str, Any]:
    """Put what :func:`save_checkpoint` wrote back into ``parts``.

    >>> values = nn.load_checkpoint("run.safetensors", model=model, optimizer=optimizer, schedule=schedule, rng=rng)
    >>> step = values["step"]

    Args:
        path: of the file.
        parts: objects like those saved under the same names; those left out stay as they are.

    Returns:
        All parts that are no objects with a state: arrays, numbers, strings, lists and dicts, by name.

    Raises:
        ValueError: naming the file, where it is damaged, no checkpoint, or does not fit ``parts``; nothing has changed.
        ImportError: where the package safetensors is not installed.
        OSError: where it can't be read.
    """
    tree, arrays = _read(path)
    missing = [name for name in parts if name not in tree]
    if missing:
        raise ValueError(f"load_checkpoint: {os.fspath(path)}: there is no {', '.join(missing)}, but {', '.join(tree)}")
    before: list[tuple[Any, Any]] = []
    try:
        for name, part in parts.items():
            kind, state = _state(part)
            if kind != tree[name]["kind"]:
                raise ValueError(f"it is the state of a {tree[name]['kind']}, not of a {kind}")
            if kind == VALUE:
                raise TypeError(f"a {type(part).__name__} can't be changed in place; leave it out, values are returned")
            before.append((part, state))
            _restore(part, _unpacked(tree[name]["state"], arrays))
    except BaseException as error:
        for part, state in reversed(before):
            with contextlib.suppress(Exception):  # of a part that refuses its own state; the others follow
                _restore(part, state)
        if isinstance(error, ValueError | TypeError | LookupError | RuntimeError):
            raise ValueError(
                f"load_checkpoint: {os.fspath(path)}: {name} does not fit, and nothing was loaded: {error}"
            ) from error
        raise
    return {name: _unpacked(saved["state"], arrays) for name, saved in tree.items() if saved["kind"] == VALUE}


MODULE, STATEFUL, GENERATOR, VALUE = "module", "stateful object", "generator", "value"  # kinds of parts


def _state(part: Any) -> tuple[str, Any]:
    if isinstance(part, Module):
        generators = {name: g.bit_generator.state for name, g in part.named_generators()}
        return MODULE, {"tensors": part.state_dict(), "generators": generators}
    if hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
        return STATEFUL, part.state_dict()
    if isinstance(part, np.random.Generator):
        return GENERATOR, part.bit_generator.state
    return VALUE, part


def _restore(part: Any, state: Any) -> None:
    """The inverse of :func:`_state`. Raises where the state does not fit."""
    if isinstance(part, Module):
        generators, tensors = dict(part.named_generators()), dict(part.named_tensors())
        if set(state["generators"]) != set(generators):
            saved, own = (", ".join(names) or "none" for names in (state["generators"], generators))
            raise ValueError(f"the file has the generators {saved}, the module {own}")
        for name, array in state["tensors"].items():
            if name in tensors and tensors[name].dtype.newbyteorder("=") != array.dtype:
                raise ValueError(f"{name} is {array.dtype} in the file, {tensors[name].dtype} in the module")
        for name, generator in generators.items():
            generator.bit_generator.state = state["generators"][name]
        part.load_state_dict(state["tensors"])
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    else:
        part.load_state_dict(state)


def _packed(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` as JSON, arrays in it as references to ``arrays``, which takes them up under their paths."""
    if isinstance(value, Tensor):
        value = value.data
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic):
        known = is_numeric(value.dtype) and value.dtype.kind != "c" and value.dtype.itemsize <= 8
        if not known or isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"save_checkpoint: {path}: a {type(value).__name__} of {value.dtype} can't be saved")
        if path in arrays or path == "__metadata__":
            raise ValueError(f"save_checkpoint: {path} can't be the name of this array, it is taken; dots join names")
        arrays[path] = np.ascontiguousarray(value.get() if hasattr(value, "get") else value).reshape(value.shape)
        if value.dtype.char == BFLOAT16:  # which safetensors writes, but does not read into NumPy
            arrays[path] = arrays[path].view(np.uint16)
            return {"tensor": path, "dtype": "bfloat16"}
        return {"tensor": path}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"save_checkpoint: {path}: the keys of a dict must be strings, got {list(value)}")
        return {"dict": {key: _packed(part, f"{path}.{key}", arrays) for key, part in value.items()}}
    if isinstance(value, list | tuple):
        return [_packed(part, f"{path}.{i}", arrays) for i, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"save_checkpoint: {path}: a {type(value).__name__} can't be saved")


def _unpacked(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of :func:`_packed`; tuples have become lists."""
    if isinstance(value, dict):
        if "tensor" in value:
            array = arrays[value["tensor"]]
            return array.view(as_dtype(value["dtype"])) if "dtype" in value else array
        return {key: _unpacked(part, arrays) for key, part in value["dict"].items()}
    return [_unpacked(part, arrays) for part in value] if isinstance(value, list) else value


def safetensors_numpy() -> Any:
    """The module ``safetensors.numpy``, imported when it is needed. ImportError, saying what to install."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "checkpoints need the package safetensors: pip install safetensors", name="safetensors"
        ) from error
    return safetensors.numpy


def _header(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def _digest(blob: bytes) -> str:
    """SHA-256 of all that a safetensors file holds, but for the digest itself."""
    import hashlib  # OpenSSL takes longer to load than this whole module

    header, data = _header(blob)
    header["__metadata__"].pop("sha256", None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The tree and the arrays of a checkpoint. ValueError, naming the file, unless it is whole."""
    safetensors = safetensors_numpy()
    blob = Path(path).read_bytes()
    try:
        arrays = safetensors.load(blob)
        metadata = _header(blob)[0].get("__metadata__") or {}
        if not str(metadata.get("format", "")).startswith("microgradnd checkpoint"):
            raise ValueError("it is a safetensors file, but no checkpoint")
        if metadata["format"] != FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, and this version reads {FORMAT!r}")
        if metadata.get("sha256") != _digest(blob):
            raise ValueError("its digest does not fit its contents")
        return json.loads(metadata["parts"]), arrays
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # whatever safetensors raises for a damaged file, a panic of its own too
        raise ValueError(f"load_checkpoint: {os.fspath(path)} is damaged, or no checkpoint: {error}") from error


def replace_file(path: str | os.PathLike[str], blob: bytes) -> None:
    """Write a file that is there as a whole or not at all, even after a kill or a power failure.

    A killed process may leave a file ``.NAME.XXXXXXXX.tmp`` beside it. Raises OSError where the file can't be
    written, or is there already and no regular file.
    """
    target = Path(os.path.realpath(os.fsdecode(path)))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
    # A name of its own: two processes may write to one path at a time.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            error.filename, error.filename2 = os.fspath(path), None
        raise
    if os.name == "posix":  # elsewhere a directory can't be opened
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
