"""A recording as a module of its own, which needs NumPy alone."""

from __future__ import annotations

import inspect
import itertools
import os
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inplace import owner_of
from .active import CaptureError
from .literals import literal
from .scout import globals_in

if TYPE_CHECKING:
    from .recording import Recording

HEADER = '''"""A step recorded by microgradnd. The arrays are in {arrays} beside this file.

>>> from {module} import step
>>> step({arguments})
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

with np.load(Path(__file__).with_name({arrays!r})) as file:
    arrays = dict(file)
'''

# What a module's step asks of its arguments: arrays of other lengths might broadcast to those of the buffers.
CHECK = '''def check_argument(name, array, shape, dtype):
    """Refuse arrays for which the step was not recorded."""
    if getattr(array, "shape", None) != shape or array.dtype != dtype:
        found = f"{array.dtype} {array.shape}" if hasattr(array, "shape") else type(array).__name__
        raise ValueError(f"step: {name} must be an array of {dtype} {shape}, got {found}")'''

# What stands for functions that look for compiled kernels.
WITHOUT_KERNELS = {"kernels_for": "def kernels_for(*arrays):\n    return None", "small": "def small():\n    return 0"}


def save(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write ``path`` and, under the same name with the suffix .npz, its arrays."""
    path = Path(path)
    arrays_path = path.with_suffix(".npz")
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise ValueError(f"save: expected the path of a Python module, such as step.py, got {str(path)!r}")
    text = _text(recording, path.stem, arrays_path.name)
    for target, write in ((arrays_path, lambda file: np.savez(file, **recording.inputs())), (path, _writer(text))):
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                write(file)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _writer(text: str) -> Any:
    return lambda file: file.write(text.encode())


def _text(recording: Recording, module: str, arrays: str) -> str:
    if recording.device is not None:
        raise CaptureError("save: the recording computes on a device; only steps on arrays of NumPy can be saved")
    if recording.effects.loaded or recording.effects.assigned:
        raise CaptureError(
            "save: the step adds to gradients, or gives tensors new arrays (t.data = ...), and so has no arrays of its "
            "own; clear gradients in the step and change arrays in place (t.data -= ...)"
        )
    if "np.dtype('bfloat16')" in recording.source:
        raise CaptureError("save: the step computes in bfloat16, which NumPy alone has not")
    inputs = list(recording.inputs().values())
    owners = [id(owner_of(array)) for array in inputs]
    if len(set(owners)) < len(owners) or any(itertools.starmap(np.shares_memory, itertools.combinations(inputs, 2))):
        raise CaptureError("save: some of the arrays share memory, which those in a file do not")
    bits = [generator.bit_generator for generator in recording.generators_by_name().values()]
    if len(set(map(id, bits))) < len(bits):
        raise CaptureError("save: two random generators draw from one bit generator, which those of a module do not")
    if recording.kernels:
        raise CaptureError(
            f"save: the recording calls {recording.kernels[0]}, a compiled kernel; hand over the arguments of a call "
            f"too, save(path, {', '.join(recording.parameters)}), for one with NumPy's functions"
        )
    definitions: dict[str, str] = {}
    imports: set[str] = set()
    for name, function in recording.functions.items():
        _define(name, function, definitions, imports)
    used = definitions.keys() - recording.functions.keys() | {x.removeprefix("import ") for x in imports}
    if twice := used & {*recording.inputs(), *recording.numbers_by_name(), *recording.generators_by_name()}:
        raise CaptureError(
            f"save: {', '.join(sorted(twice))} is the name of an array, and of what the module's functions use; give "
            "the parameter or argument another name"
        )
    lines = [HEADER.format(arrays=arrays, module=module, arguments=", ".join(recording.parameters))]
    lines[0] = lines[0].replace("import numpy as np\n", "\n".join([*sorted(imports), "import numpy as np\n"]))
    lines += [f'{name} = arrays["{name}"]' for name in recording.inputs()]
    lines += [f"{name} = {values!r}" for name, values in recording.numbers_by_name().items()]
    for name, generator in recording.generators_by_name().items():
        state = generator.bit_generator.state
        lines.append(f"{name} = np.random.Generator(np.random.{state['bit_generator']}())")
        lines.append(f"{name}.bit_generator.state = {_state(state)}")
    if "raise Diverged" in recording.source:
        definitions["Diverged"] = (
            'class Diverged(Exception):\n    """The step goes another way than in the recording."""'
        )
    source, returned = recording.source, len(recording.effects.results)
    if recording.array_parameters:
        check = _unused("check_argument", source)
        definitions[check] = CHECK.replace("check_argument", check, 1)
        checks = [
            f"    {check}({name!r}, {name}, {literal(shape)}, {str(dtype)!r})\n"
            for name, (shape, dtype) in recording.array_parameters.items()
        ]
        end_of_title = '"""\n'
        source = source.replace(end_of_title, end_of_title + "".join(checks), 1)
    if recording.effects.given:  # gradients in arrays of their own: of a module nobody asks for them
        parameters = ", ".join(recording.parameters)
        name = _unused("step_and_gradients", source)
        source = source.replace("\ndef step(", f"\ndef {name}(", 1)
        call = f"{name}({parameters})"
        body = {0: call, 1: f"return {call}[0]"}.get(returned, f"return {call}[:{returned}]")
        source += f"\n\ndef step({parameters}):\n    {body}\n"
    return "\n".join([*lines, *(f"\n\n{text}" for text in definitions.values()), "", "", source])


def _unused(name: str, source: str) -> str:
    """The name, with underscores behind it as long as the text has it."""
    while name in source:
        name += "_"
    return name


def _state(state: Any) -> str:
    """The state of a bit generator as text."""
    if isinstance(state, dict):
        return "{" + ", ".join(f"{key!r}: {_state(value)}" for key, value in state.items()) + "}"
    if isinstance(state, np.ndarray):
        return f"np.array({state.tolist()!r}, np.{state.dtype.name})"
    return repr(state.item() if isinstance(state, np.generic) else state)


def _define(name: str, function: Any, definitions: dict[str, str], imports: set[str]) -> None:
    """The text of a function of ours, after that of what it uses."""
    if name in definitions:
        return
    function = inspect.unwrap(function)
    definitions[name] = ""  # its place, should it call itself
    for used in globals_in(function.__code__):
        value = function.__globals__.get(used)
        if used in WITHOUT_KERNELS:
            definitions[used] = WITHOUT_KERNELS[used]
        elif isinstance(value, ModuleType) and value is not np:
            imports.add(f"import {value.__name__}")
        elif isinstance(value, FunctionType):
            _define(used, value, definitions, imports)
        elif used in function.__globals__ and value is not np:
            definitions.setdefault(used, f"{used} = {value!r}")
    text = inspect.getsource(function)
    definitions.pop(name)
    definitions[name] = text[text.index("def ") :].rstrip()
