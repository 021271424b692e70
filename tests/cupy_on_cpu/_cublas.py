"""The cuBLAS functions that CuPy's matmul, dot, tensordot and einsum call, computed by NumPy.

They have the names and parameters of `cupy_backends.cuda.libs.cublas`, whose arrays are column-major.
"""

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tests.cupy_on_cpu._host_memory import column_major_view, flat_view, vector_view
from tests.cupy_on_cpu._profiling import unseen

MODULE = "cupy_backends.cuda.libs.cublas"

_CONSTANTS = {
    "CUBLAS_OP_N": 0,
    "CUBLAS_OP_T": 1,
    "CUBLAS_OP_C": 2,
    "CUBLAS_POINTER_MODE_HOST": 0,
    "CUBLAS_POINTER_MODE_DEVICE": 1,
    "CUBLAS_SIDE_LEFT": 0,
    "CUBLAS_SIDE_RIGHT": 1,
    "CUBLAS_DEFAULT_MATH": 0,
    "CUBLAS_TENSOR_OP_MATH": 1,
    "CUBLAS_TF32_TENSOR_OP_MATH": 3,
    "CUBLAS_GEMM_DEFAULT": -1,
    "CUBLAS_GEMM_DEFAULT_TENSOR_OP": 99,
    "CUBLAS_COMPUTE_16F": 64,
    "CUBLAS_COMPUTE_32F": 68,
    "CUBLAS_COMPUTE_32F_PEDANTIC": 69,
    "CUBLAS_COMPUTE_64F": 70,
    "CUBLAS_COMPUTE_64F_PEDANTIC": 71,
    "CUBLAS_COMPUTE_32F_FAST_16F": 74,
    "CUBLAS_COMPUTE_32F_FAST_16BF": 75,
    "CUBLAS_COMPUTE_32F_FAST_TF32": 77,
}

# cudaDataType
_DTYPES: dict[int, type[Any]] = {
    0: np.float32,
    1: np.float64,
    2: np.float16,
    4: np.complex64,
    5: np.complex128,
}
_BFLOAT16 = 14  # NumPy knows it by name where ml_dtypes is imported, as it is by whoever has such an array
_REAL_COMPUTE_TYPES: dict[int, type[Any]] = {
    0: np.float32,  # the older interface names a data type
    1: np.float64,
    64: np.float32,  # float16, but cuBLAS accumulates no worse than that
    68: np.float32,
    69: np.float32,
    70: np.float64,
    71: np.float64,
    74: np.float32,
    75: np.float32,
    77: np.float32,
}

# The letter of a function's name: its cudaDataType and its compute type.
_TYPED = {"s": (0, 68), "d": (1, 70), "c": (4, 68), "z": (5, 70)}

_GEMM = "handle transa transb m n k alpha a lda b ldb beta c ldc"
_GEMM_EX = "handle transa transb m n k alpha a a_type lda b b_type ldb beta c c_type ldc"
_GEMM_STRIDED_BATCHED_EX = (
    "handle transa transb m n k alpha a a_type lda stride_a b b_type ldb stride_b "
    "beta c c_type ldc stride_c count compute algorithm"
)


class CUBLASError(RuntimeError):
    """CuPy's error of the same name, which its callers may catch."""


def make_module(count_call: Callable[[], None]) -> ModuleType:
    """Return a module to take the place of CuPy's; `count_call` is called for each operation."""
    module = ModuleType(MODULE)
    handles = {name: unseen(function) for name, function in _handle_functions().items()}
    vars(module).update(_CONSTANTS, CUBLASError=CUBLASError, **handles)
    for name, function in _operations().items():
        setattr(module, name, unseen(_counted(function, count_call)))
    module.__getattr__ = _missing
    return module


def _counted(function: Callable[..., None], count_call: Callable[[], None]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        count_call()
        with np.errstate(all="ignore"):  # a device does not warn
            function(*args)

    return call


def _missing(name: str) -> Any:
    # Python asks a module for dunder names, and CuPy for constants that only some CUDA versions have.
    if name.startswith(("__", "CUBLAS_")):
        raise AttributeError(name)
    raise NotImplementedError(f"the CPU stand-in has no cuBLAS {name}")


def _handle_functions() -> dict[str, Callable[..., Any]]:
    pointer_mode = _CONSTANTS["CUBLAS_POINTER_MODE_HOST"]

    def set_pointer_mode(handle: int, mode: int) -> None:
        nonlocal pointer_mode
        pointer_mode = mode

    return {
        "create": lambda: 1,
        "destroy": lambda handle: None,
        "getVersion": lambda handle: 0,
        "setStream": lambda handle, stream: None,
        "setMathMode": lambda handle, mode: None,
        "getMathMode": lambda handle: _CONSTANTS["CUBLAS_DEFAULT_MATH"],
        "setPointerMode": set_pointer_mode,
        "getPointerMode": lambda handle: pointer_mode,
    }


def _operations() -> dict[str, Callable[..., None]]:
    operations = {
        "sgemmEx": _gemm(_GEMM_EX, compute=_CONSTANTS["CUBLAS_COMPUTE_32F"]),
        "gemmEx": _gemm(_GEMM_EX + " compute algorithm"),
        "gemmStridedBatchedEx": _gemm(_GEMM_STRIDED_BATCHED_EX),
    }
    for letter, (data_type, compute) in _TYPED.items():
        fixed = {"a_type": data_type, "b_type": data_type, "c_type": data_type, "compute": compute}
        operations[f"{letter}gemm"] = _gemm(_GEMM, **fixed)
        operations[f"{letter}gemmBatched"] = _gemm(_GEMM + " count", pointers_to_matrices=True, **fixed)
        operations[f"{letter}gemv"] = _gemv(_DTYPES[data_type])
    for name, dtype in {
        "sdot": np.float32,
        "ddot": np.float64,
        "cdotu": np.complex64,
        "zdotu": np.complex128,
    }.items():
        operations[name] = _dot(dtype, np.dot)
    for name, dtype in {"cdotc": np.complex64, "zdotc": np.complex128}.items():
        operations[name] = _dot(dtype, np.vdot)
    return operations


def _gemm(parameters: str, **fixed: Any) -> Callable[..., None]:
    """Return a function for C = alpha op(A) op(B) + beta C, with these parameters and the others fixed."""
    names = parameters.split()
    fixed = {"count": 1, "stride_a": 0, "stride_b": 0, "stride_c": 0, "pointers_to_matrices": False, **fixed}

    def gemm(*args: Any) -> None:
        call = SimpleNamespace(**{**fixed, **dict(zip(names, args, strict=True))})
        a_type, b_type, c_type = (_dtype(code) for code in (call.a_type, call.b_type, call.c_type))
        compute = _compute_dtype(call.compute, c_type)
        alpha, beta = _scalar(call.alpha, compute), _scalar(call.beta, compute)
        for a, b, c in _matrix_pointers(call, a_type, b_type, c_type):
            left = _operand(a, call.transa, call.m, call.k, call.lda, a_type).astype(compute)
            right = _operand(b, call.transb, call.k, call.n, call.ldb, b_type).astype(compute)
            out = column_major_view(c, call.m, call.n, call.ldc, c_type)
            _accumulate(out, alpha * (left @ right), beta, compute)

    return gemm


def _matrix_pointers(call: SimpleNamespace, *dtypes: np.dtype[Any]) -> Iterator[tuple[int, ...]]:
    """Yield the pointers to A, B and C of each multiplication of a batch."""
    matrices = call.a, call.b, call.c
    if call.pointers_to_matrices:
        yield from zip(*(flat_view(array, call.count, np.intp).tolist() for array in matrices), strict=True)
        return
    strides = call.stride_a, call.stride_b, call.stride_c
    steps = [stride * dtype.itemsize for stride, dtype in zip(strides, dtypes, strict=True)]
    for index in range(call.count):
        yield tuple(pointer + index * step for pointer, step in zip(matrices, steps, strict=True))


def _gemv(dtype: DTypeLike) -> Callable[..., None]:
    def gemv(handle, trans, m, n, alpha, a, lda, x, incx, beta, y, incy):
        rows, columns = (m, n) if trans == _CONSTANTS["CUBLAS_OP_N"] else (n, m)
        matrix = _operand(a, trans, rows, columns, lda, dtype)
        product = _scalar(alpha, dtype) * (matrix @ vector_view(x, columns, incx, dtype))
        _accumulate(vector_view(y, rows, incy, dtype), product, _scalar(beta, dtype), dtype)

    return gemv


def _dot(dtype: DTypeLike, multiply: Callable[[Any, Any], Any]) -> Callable[..., None]:
    def dot(handle, n, x, incx, y, incy, result):
        left, right = vector_view(x, n, incx, dtype), vector_view(y, n, incy, dtype)
        flat_view(result, 1, dtype)[0] = multiply(left, right)

    return dot


def _scalar(pointer: int, dtype: DTypeLike) -> Any:
    return flat_view(pointer, 1, dtype)[0]


def _operand(pointer: int, operation: int, rows: int, columns: int, leading: int, dtype: DTypeLike) -> Any:
    """Return op(A) of the given shape, where A lies in memory as it is or transposed."""
    if operation == _CONSTANTS["CUBLAS_OP_N"]:
        return column_major_view(pointer, rows, columns, leading, dtype)
    stored = column_major_view(pointer, columns, rows, leading, dtype)
    return stored.T if operation == _CONSTANTS["CUBLAS_OP_T"] else stored.conj().T


def _accumulate(out: Any, product: Any, beta: Any, compute: DTypeLike) -> None:
    """Write product + beta * out. A zero beta does not read `out`, which may hold a NaN."""
    out[...] = product if beta == 0 else product + beta * out.astype(compute)


def _dtype(cuda_type: int) -> np.dtype[Any]:
    if cuda_type == _BFLOAT16:
        return np.dtype("bfloat16")
    if cuda_type not in _DTYPES:
        raise NotImplementedError(f"the CPU stand-in has no cuBLAS for cudaDataType {cuda_type}")
    return np.dtype(_DTYPES[cuda_type])


def _compute_dtype(compute_type: int, result: np.dtype[Any]) -> DTypeLike:
    if result.kind == "c":
        return result
    if compute_type not in _REAL_COMPUTE_TYPES:
        raise NotImplementedError(f"the CPU stand-in has no cuBLAS for cublasComputeType {compute_type}")
    return _REAL_COMPUTE_TYPES[compute_type]
