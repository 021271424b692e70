"""Replacing the functions that a Cython module exports to other Cython modules.

A Cython module keeps a capsule for each function in `__pyx_capi__`, and another Cython module takes the
function pointers from there when it is imported. A capsule that is replaced before that makes the importer
call the replacement. The capsule's name is the function's C signature, which the importer checks.
"""

import ctypes
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.cupy_on_cpu._profiling import unseen

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype = ctypes.c_char_p
_capsule_name.argtypes = [ctypes.py_object]

_C_TYPES: dict[str, Any] = {
    "intptr_t": ctypes.c_ssize_t,
    "uintmax_t": ctypes.c_size_t,
    "size_t": ctypes.c_size_t,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "float": ctypes.c_float,
    "cudaMemcpyKind": ctypes.c_int,
    "CUdevice": ctypes.c_int,
}

# A capsule does not copy its name.
_kept_names: list[Any] = []


def replace_functions(module: ModuleType, library: ctypes.PyDLL, prefix: str) -> None:
    """Put the library's functions, named by a prefix, in the place of the module's: for Cython and Python."""
    exported = module.__dict__["__pyx_capi__"]
    for name, capsule in list(exported.items()):
        replacement = getattr(library, prefix + name, None)
        if replacement is None:
            continue
        signature = _capsule_name(capsule)
        kept = ctypes.create_string_buffer(signature)
        _kept_names.append(kept)
        address = ctypes.cast(replacement, ctypes.c_void_p).value
        exported[name] = _new_capsule(address, kept, None)
        setattr(module, name, _python_function(library, prefix + name, signature.decode()))


def _python_function(library: ctypes.PyDLL, symbol: str, signature: str) -> Callable[..., Any]:
    """Return the Python function that a C function of some signature is.

    Cython's own arguments are not the caller's: the flag `__pyx_skip_dispatch`, which comes after the
    function's arguments, and the structure of the optional ones after it, which the library does not read.
    """
    match = re.fullmatch(r"(.*?)\s*\((.*)\)", signature)
    if match is None:
        raise RuntimeError(f"CuPy {symbol} has a signature that is not understood: {signature}")
    returns, declared = match.groups()
    arguments = [argument.strip() for argument in declared.split(",")]
    own = [argument for argument in arguments if "__pyx_skip_dispatch" not in argument and "__pyx_opt" not in argument]
    own = [argument for argument in own if argument != "void"]
    prototype = ctypes.PYFUNCTYPE(_c_type(returns), *map(_c_type, own), ctypes.c_int)
    function = prototype((symbol, library))
    count = len(own)
    return unseen(lambda *args: function(*args[:count], 0))


def _c_type(declaration: str) -> Any:
    return ctypes.py_object if declaration.endswith("*") else _C_TYPES[declaration]
