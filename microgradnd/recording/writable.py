"""Which instructions can put their result into memory that is there, and what their results' shapes depend on."""

from __future__ import annotations

import math

from ..dtypes import is_narrow
from .instructions import Instruction, Variable, bare
from .operators import OPERATORS

ELEMENTWISE = ("ufunc", "operator")  # kinds whose result may take the memory of an argument
WITH_OUT = frozenset(
    ["dot", "matmul", "concatenate", "sum", "mean", "max", "min", "amax", "amin", "prod",
     "clip", "take", "cumsum", "ascontiguousarray", "asarray", "array"]
)  # fmt: skip
METHODS_WITH_OUT = frozenset(["dot", "sum", "mean", "max", "min", "prod", "astype", "copy", "clip"])
SHAPING = frozenset(["reshape", "ravel", "flatten"])
# Functions whose results have shapes that do not depend on values.
FIXED_SHAPE = WITH_OUT | {
    "argpartition", "array_equal", "atleast_1d", "atleast_2d", "average", "corrcoef", "count_nonzero", "digitize",
    "fft.fft", "fft.ifft", "fft.irfft", "fft.rfft", "fliplr", "flipud", "interp", "isclose", "isin", "linalg.eigh",
    "linalg.eigvalsh", "linalg.pinv", "linalg.qr", "linalg.svd", "moveaxis", "nan_to_num", "nanmax", "nanmean",
    "nanmin", "nanstd", "nansum", "nanvar", "partition", "ravel", "rot90", "round", "searchsorted", "take_along_axis",
    "trace", "where", "einsum", "vdot", "ravel_multi_index", "reshape", "transpose", "swapaxes",
    "broadcast_to", "expand_dims", "squeeze", "argmax", "argmin", "var", "std", "copyto",
    "column_stack", "cov", "cross", "cumprod", "diff", "dstack", "hstack", "inner", "kron", "linalg.cholesky",
    "linalg.det", "linalg.inv", "linalg.solve", "median", "percentile", "quantile", "roll", "tensordot", "vstack",
    "lib.stride_tricks.sliding_window_view", "tril", "triu", "outer", "stack", "flip", "argsort", "sort", "linalg.norm",
}  # fmt: skip
# Where functions, methods and draws take axes, lengths and shapes, by the positions of arguments and by keywords.
SHAPE_POSITIONS: dict[str, slice] = {
    **dict.fromkeys(["arange", "empty", "eye", "identity", "ones", "tri", "zeros"], slice(None)),
    **dict.fromkeys(
        ["all", "amax", "amin", "any", "argmax", "argmin", "argsort", "array_split", "broadcast_to", "concatenate",
         "cumprod", "cumsum", "diagonal", "expand_dims", "flip", "max", "mean", "median", "min", "moveaxis", "prod",
         "ptp", "repeat", "reshape", "resize", "sort", "split", "squeeze", "stack", "std", "sum", "swapaxes", "tile",
         "trace", "transpose", "var"],
        slice(1, None),
    ),
    **dict.fromkeys(["permutation", "random", "standard_exponential", "standard_normal"], slice(1, 2)),
    **dict.fromkeys(["choice", "chisquare", "exponential", "geometric", "poisson", "rayleigh"], slice(2, 3)),
    **dict.fromkeys(
        ["beta", "binomial", "gamma", "gumbel", "integers", "laplace", "logistic", "lognormal", "normal", "uniform"],
        slice(3, 4),
    ),
    "full": slice(0, 1),
    "take": slice(2, None),
}  # fmt: skip
SHAPE_KEYWORDS = frozenset([
    "N", "M", "axes", "axis", "axis1", "axis2", "destination", "indices_or_sections", "keepdims", "newshape", "offset",
    "reps", "shape", "size", "source",
])  # fmt: skip
CREATED = ("empty", "zeros", "ones", "full")


def fills_root(variable: Variable) -> bool:
    """Whether the array fills the memory that it is a view of, if it is one."""
    root = variable.root
    return variable is root or (variable.is_dense and math.prod(variable.shape) == math.prod(root.shape))


def can_write(x: Instruction, root: Variable) -> bool:
    """Whether the instruction can put its result into memory that is there."""
    if root.shape is None or root.shape == () or not root.is_dense or root.dtype.byteorder == ">":
        return False
    if root.is_on_device:
        return _can_write_on_device(x, root)
    if x.kind == "operator":
        return x.name in OPERATORS and (x.name != "pow" or _is_plain_power(x, root))
    if x.kind in ("reduce", "method", "function") and any(min(v.strides or (0,)) < 0 for v in x.reads()):
        return False  # NumPy 2.0 adds up what lies backwards in another order where it is told where to put the sum
    if x.kind in ("ufunc", "reduce"):
        return "where" not in x.kwargs
    if x.kind == "create":
        return bare(x.name) in CREATED
    if x.kind in ("method", "function") and (is_narrow(root.dtype) or {"where", "order"} & set(x.kwargs)):
        return False  # sums in float16 have a wider sum within, unless they are told where to put it
    if x.kind in ("method", "function") and any(isinstance(arg, str) for arg in x.args):
        return False  # an order
    if x.kind == "method" and x.name in ("flatten", "ravel", "copy") and len(x.args) > 1:
        return False
    if x.kind == "method":
        return (x.name in METHODS_WITH_OUT and "where" not in x.kwargs) or (x.name in SHAPING and root.is_c_contiguous)
    if x.kind == "draw":
        return x.name in ("random", "standard_normal") and root.dtype.kind == "f" and root.is_c_contiguous
    if bare(x.name) == "reshape":
        return root.is_c_contiguous
    if bare(x.name) in ("asarray", "array") and not isinstance(x.args[0], Variable):
        return False
    if bare(x.name) == "concatenate" and "dtype" in x.kwargs:
        return False  # it takes that or a place
    return x.kind == "function" and bare(x.name) in WITH_OUT and "where" not in x.kwargs


def _can_write_on_device(x: Instruction, root: Variable) -> bool:
    if x.kind in ELEMENTWISE:
        # The operator ** does not give the bits of cupy.power; cupy.matmul takes its time with a place for the result.
        return x.name not in ("matmul", "pow") and "where" not in x.kwargs
    if x.kind == "method" and x.name == "dot":
        return root.is_c_contiguous and all(type(v) is Variable and len(v.shape) == 2 for v in x.args)
    return x.kind == "create" and bare(x.name) == "empty"


def _is_plain_power(x: Instruction, root: Variable) -> bool:
    """Whether ** gives the dtype of its base, so that it is a function of NumPy for the exponent."""
    base = x.args[0]
    return type(base) is Variable and base.dtype == root.dtype and root.dtype.char in "fd"


def may_diverge(x: Instruction) -> bool:
    """Whether the shape of a result may be another one for other values."""
    if x.kind == "getitem":
        return any(v.dtype is not None and v.dtype.kind == "b" for v in x.reads()[1:])
    if bare(x.name) == "where" and len(x.args) + len(x.kwargs) < 3:  # as np.nonzero
        return True
    if x.kind == "function":
        return bool(x.results) and bare(x.name) not in FIXED_SHAPE
    return x.kind == "method" and x.name in ("nonzero", "repeat")
