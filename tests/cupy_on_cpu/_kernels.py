"""From the CUDA source of a kernel to a shared object of host code: what NVRTC is to CuPy."""

import re
from collections.abc import Sequence

# What the device runs wrongly, as the text that shows it and the name of what is missing. Blocks of a
# cooperative launch wait for each other; CuPy's partition relies on the lanes of a warp running in step where
# there is no barrier.
_REFUSED = (
    (r"#\s*include\s*[<\"]cub/", "CUB"),
    (r"#\s*include\s*[<\"]curand", "cuRAND"),
    (r"#\s*include\s*[<\"]mma\.h", "tensor cores"),
    (r"cooperative_groups", "cooperative groups"),
    (r"\bbitonic_sort_step\b[\s\S]*\b(?:arg)?partition_kernel\b", "partition of long arrays"),
    (r"\basm\s*(volatile\s*)?\(", "PTX assembler"),
)

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\s*\(\s*\w+\s*\)\s*)?([\w:<> ]+?)\s+(\w+)\s*\[\s*\]\s*;"
)
_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"
_KERNEL = rf"__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\("
_BARRIER = re.compile(r"__sync|__shfl|__ballot|__any_|__all_")
# Already in the precompiled prelude: not to be looked for again.
_PRELUDE_INCLUDE = re.compile(
    r"#\s*include\s*<cupy/(?:complex|carray|atomics)\.cuh>|#\s*include\s*<cupy/math_constants\.h>"
)


def expression_symbol(index: int) -> str:
    """Return the name of a kernel that is asked for by a C++ expression, such as a template's instance."""
    return f"expression_{index}"


def host_code(source: str, options: Sequence[str] = (), expressions: Sequence[str] = ()) -> str:
    """Return C++ that g++ compiles, with an entry for every kernel.

    Raises NotImplementedError for what the device would run wrongly.
    """
    bare = _COMMENT.sub(" ", source)
    for pattern, missing in _REFUSED:
        if re.search(pattern, bare):
            raise NotImplementedError(f"the CPU stand-in has no {missing}")
    has_barriers = _BARRIER.search(bare) is not None
    # CuPy's elementwise loop runs over all elements in steps of the grid's size. One thread can do it all,
    # unless the kernel asks which thread it is.
    is_grid_stride = "CUPY_FOR" in bare and not has_barriers and not re.search(r"blockIdx|threadIdx", bare)
    flags = f"{int(has_barriers)}, {int(is_grid_stride)}"
    body = _PRELUDE_INCLUDE.sub("", source)
    body = _DYNAMIC_SHARED.sub(r"\1 *\2 = (\1 *)cpucupy_dynamic_shared;", body)
    entries = [f"CPUCUPY_KERNEL({name}, {flags}, {name})" for name in _kernel_names(bare)]
    entries += [
        f"CPUCUPY_KERNEL({expression_symbol(index)}, {flags}, {expression})"
        for index, expression in enumerate(expressions)
    ]
    return "\n".join([*_definitions(options), body, *entries, ""])


def _kernel_names(bare: str) -> list[str]:
    """Return the kernels that can be asked for by name: those with C linkage."""
    pattern = _KERNEL if re.search(r'extern\s+"C"\s*\{', bare) else r'extern\s+"C"\s+' + _KERNEL
    return list(dict.fromkeys(re.findall(pattern, bare)))


def _definitions(options: Sequence[str]) -> list[str]:
    """Return what -D options define. As options they would not fit the precompiled prelude."""
    lines = []
    for option in options:
        if option.startswith("-D"):
            name, _, value = option[2:].partition("=")
            lines.append(f"#define {name} {value or 1}")
    return lines
