"""CUDA kernels of operations against NumPy in float64: values, gradients, layouts, NaN, infinity; launches, copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd.kernels import kernels_for
from tests.against_numpy import both, close, normal

pytestmark = pytest.mark.usefixtures("cupy")

DTYPES = ["float16", "float32", "float64"]
LENGTHS = [1, 2, 31, 32, 33, 127, 256, 257, 1000, 1024, 1025, 2056, 4099]
ROWWISE: dict[str, Callable[..., mg.Tensor]] = {
    "softmax": mg.softmax,
    "log_softmax": mg.log_softmax,
    "layer_norm": mg.layer_norm,
    "layer_norm with parameters": mg.layer_norm,
    "rms_norm": mg.rms_norm,
    "rms_norm with weight": mg.rms_norm,
}
ELEMENTWISE: dict[str, Callable[..., mg.Tensor]] = {
    "gelu": mg.gelu,
    "gelu_tanh": lambda x: mg.gelu(x, "tanh"),
    "silu": mg.silu,
    "swiglu": mg.swiglu,
    "sigmoid": mg.sigmoid,
}


def arguments(name: str, *shape: int, dtype: Any = "float32") -> list[Any]:
    n = shape[-1]
    parameters = [normal(n, seed=i, dtype=dtype) for i in (1, 2)]
    count = {"layer_norm with parameters": 2, "rms_norm with weight": 1}.get(name, 0)
    others = [normal(*shape, seed=3, dtype=dtype)] if name == "swiglu" else []
    return [normal(*shape, dtype=dtype), *others, *parameters[:count]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", ROWWISE)
def test_rows(name: str, n: int, dtype: str) -> None:
    count = 300 if n <= 2 else 9 if n <= 128 else 2
    ours, reference = both(ROWWISE[name], *arguments(name, count, n, dtype=dtype))
    # Where a row is short, the gradient of its norm is a small difference of large numbers.
    close(ours, reference, {1: 1e3, 2: 1e3}.get(n, 4) if "norm" in name else 2)


@pytest.mark.parametrize("name", ROWWISE)
def test_long_rows(name: str) -> None:
    close(*both(ROWWISE[name], *arguments(name, 2, 50257)), 4)
    close(*both(ROWWISE[name], *arguments(name, 1, 100_000, dtype="float16")), 4)


@pytest.mark.parametrize("name", ROWWISE)
def test_more_rows_than_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from microgradnd.kernels import cupy_rows

    monkeypatch.setattr(cupy_rows, "BLOCKS", 2)
    for shape in ((3, 30, 5), (5, 2060)):  # several teams to a block; a block for each row
        close(*both(ROWWISE[name], *arguments(name, *shape)), 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 8, 255, 256, 257, 2048, 2056])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str, size: int, dtype: str) -> None:
    close(*both(ELEMENTWISE[name], *arguments(name, size, dtype=dtype)), 2)


def test_more_elements_than_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from microgradnd.kernels import cupy_compiler

    monkeypatch.setattr(cupy_compiler, "BLOCKS", 2)
    for size in (1025, 8200):
        close(*both(mg.silu, normal(size)))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_relative_errors_far_from_zero(name: str) -> None:
    """The relative error of e^(-u) is that of its argument, which grows with u."""
    import cupy

    x = np.linspace(-13, 13, 3001).astype(np.float32)
    z = x.astype(float)
    u = 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3) if name == "gelu_tanh" else z
    phi = np.vectorize(math.erfc)(-z / math.sqrt(2)) / 2 if name == "gelu" else 1 / (1 + np.exp(-u))
    exponent = z**2 if name == "gelu" else (3 if name == "gelu_tanh" else 1) * np.abs(u)
    error = np.abs(ELEMENTWISE[name](cupy.asarray(x)).data.get() - z * phi)
    assert (error <= 2**-23 * (2 + exponent * (x < 0)) * np.abs(z * phi) + 1e-37).all()


@pytest.mark.parametrize("name", [*ROWWISE, *ELEMENTWISE])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_layout_in_memory_does_not_matter(name: str, dtype: str) -> None:
    import cupy

    f = {**ROWWISE, **ELEMENTWISE}[name]
    given = [cupy.asarray(x) for x in arguments(name, 13, 24, dtype=dtype)]
    g = cupy.asarray(normal(13, 24, seed=5, dtype=dtype))

    def outcome(*changes: Callable[[Any], Any]) -> list[Any]:
        xs = [mg.tensor(x, requires_grad=True) for x in given]
        for x, change in zip(xs, changes, strict=False):
            x.data = change(x.data)
        out = f(*xs)
        out.backward(changes[0](g) if changes else g)
        return [out.data.get(), *(x.grad.data.get() for x in xs)]  # type: ignore[union-attr]

    def shifted(x: Any) -> Any:  # not at a multiple of 16 bytes
        memory = cupy.empty(x.size + 1, x.dtype)
        memory[1:] = x.reshape(-1)
        return memory[1:].reshape(x.shape)

    expected = outcome()
    layouts: list[Callable[[Any], Any]] = [
        lambda x: x.T.copy().T,
        lambda x: cupy.repeat(x, 2, axis=-1)[..., ::2],
        lambda x: x[::-1].copy()[::-1],
        shifted,
    ]
    for layout in layouts:  # of rows and of their parameters
        for a, b in zip(outcome(*[layout] * len(given)), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=8 * np.finfo(dtype).eps * np.abs(b).max())


@pytest.mark.parametrize("name", [*ROWWISE, *ELEMENTWISE])
@pytest.mark.parametrize("n", [5, 32, 264])
def test_nan_and_infinity_stay_in_their_place(name: str, n: int) -> None:
    inf, nan = np.inf, np.nan
    f = {**ROWWISE, **ELEMENTWISE}[name]
    given = arguments(name, 12, n)
    x = given[0]
    x[1, 3], x[2, n - 1], x[3, 0], x[4], x[5], x[6, :4] = nan, inf, -inf, nan, -inf, -inf
    x[7, :2], x[8, :2], x[9], x[10, 1:] = (nan, -inf), (-inf, inf), inf, -inf
    with np.errstate(all="ignore"):
        ours, reference = both(f, *given)
    for a, b in zip(ours[:2], reference[:2], strict=True):  # sums over all rows are NaN
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        finite = np.isfinite(b)
        np.testing.assert_allclose(a[finite], b[finite], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(a[np.isinf(b)], b[np.isinf(b)])


def test_layer_norm_of_equal_numbers_is_zero() -> None:
    import cupy

    for value in (100.1, 10000.1):
        assert not mg.layer_norm(cupy.full((5, 768), value, np.float32)).data.any()


def test_layer_norm_far_from_zero() -> None:
    """The mean is not rounded to the distance of neighbouring numbers at 1e5."""
    x = (1e5 + normal(3, 1024, dtype="float64", scale=0.1)).astype(np.float32)
    close(*both(mg.layer_norm, x), 20)


LAUNCHES = {  # of the kernels forward and backward, for two axes and 400 rows: sums over rows take two
    "softmax": (1, 1),
    "log_softmax": (1, 1),
    "layer_norm": (1, 1),
    "layer_norm with parameters": (1, 3),
    "rms_norm": (1, 1),
    "rms_norm with weight": (1, 3),
    "gelu": (1, 1),
    "gelu_tanh": (1, 1),
    "silu": (1, 1),
    "swiglu": (1, 1),
    "sigmoid": (1, 3),  # its gradient is no kernel
    "cross_entropy": (2, 1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(name: str, dtype: str, counted: Any) -> None:
    import cupy

    labels = cupy.zeros(400, np.int64)
    f = {**ROWWISE, **ELEMENTWISE, "cross_entropy": lambda x: mg.cross_entropy(x, labels)}[name]
    xs = [mg.tensor(cupy.asarray(x), requires_grad=True) for x in arguments(name, 400, 16, dtype=dtype)]
    f(*xs).backward(cupy.ones(() if name == "cross_entropy" else (400, 16), dtype))  # compiles
    for x in xs:
        x.grad = None
    g = cupy.ones(() if name == "cross_entropy" else (400, 16), dtype)
    with counted() as forward:
        out = f(*xs)
    with counted() as backward:
        out.backward(g)
    assert forward.is_quiet()
    assert backward.is_quiet()
    assert (forward.launches, backward.launches - 1) == LAUNCHES[name]  # 1: backward copies what it is given
    assert forward.library_calls == backward.library_calls == 0


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm", "gelu", "silu", "swiglu"])
def test_bfloat16(name: str) -> None:
    """What tensors do not hold yet, kernels compute: within a rounding of float32's results."""
    import cupy

    bfloat16 = pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes").bfloat16
    others: dict[str, list[Any]] = {"layer_norm": [None, None, 1e-5], "rms_norm": [None, 1e-6], "gelu": ["none"]}
    for n in (5, 512):
        given = [normal(7, n, seed=i).astype(bfloat16) for i in (0, 1, 2)]
        x, g = given[:2] if name == "swiglu" else given[:1], given[2]
        found = []
        for dtype in (bfloat16, np.float32):
            arrays = [cupy.asarray(a.astype(dtype)) for a in x]
            out, pullback = getattr(kernels_for(*arrays), name)(*arrays, *others.get(name, []))
            parts = [out, *pullback(cupy.asarray(g.astype(dtype)))[: len(x)]]
            found.append([(part() if callable(part) else part).get() for part in parts])
        for ours, wide in zip(*found, strict=True):
            assert ours.dtype == bfloat16
            np.testing.assert_allclose(ours.astype(np.float32), wide, rtol=2**-8, atol=2**-8 * np.abs(wide).max())


def test_choice_of_kernels(counted: Any) -> None:
    import cupy

    x = cupy.ones((3, 4), np.float32)
    assert kernels_for(x).softmax
    assert kernels_for(x, None, x) is kernels_for(x)
    for other in (x.astype(int), x.astype(bool), x.astype(np.complex64)):
        assert kernels_for(other) is None
    assert kernels_for(x, x.astype(np.float64)) is None
    assert kernels_for(x, np.ones(3, np.float32)) is None
    with mg.kernels("numpy"), counted() as cost:
        mg.softmax(x)
    assert cost.launches > 1


def test_each_device_has_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second device that is only said to be current: a kernel is loaded anew for it."""
    import cupy

    from microgradnd.kernels.cupy_rows import rows_family

    here = rows_family.kernel("softmax<T, V>", "f")
    assert rows_family.kernel("softmax<T, V>", "f") is here
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: 1)
    monkeypatch.setattr(rows_family, "_kernels", dict(rows_family._kernels))
    before = len(rows_family._kernels)
    rows_family.kernel("softmax<T, V>", "f")
    assert len(rows_family._kernels) == before + 1
