"""Attention's CUDA kernels, run on host memory, against its definition and gradient formulas in float64 NumPy."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.kernels import chunked_attention
from microgradnd.kernels.cuda_attention import FORWARD
from microgradnd.kernels.cuda_attention_gradient import GRADIENTS

SOURCE = FORWARD + GRADIENTS

pytestmark = pytest.mark.usefixtures("cupy")
cupy = kernels = None  # modules: CuPy is imported when a test runs


@pytest.fixture(autouse=True)
def modules() -> None:
    global cupy, kernels
    import cupy

    from microgradnd.kernels import cupy_attention as kernels


SIZES = (1, 15, 16, 17, 31, 33, 63, 64, 65, 100)  # around the borders of tiles
WIDTHS = ((1, 1), (8, 3), (16, 16), (24, 32), (32, 5), (64, 64), (80, 17), (128, 128))
TOLERANCES = {"float16": 2e-3, "float32": 3e-6, "float64": 1e-14}


def reference(q: Any, k: Any, v: Any, mask: Any, is_causal: bool, scale: float, g: Any) -> list[Any]:
    """The result and the gradients of query, key and value, in float64."""
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, g))
    s = scale * (q @ np.swapaxes(k, -1, -2))
    if mask is not None:
        s = np.where(mask, s, -np.inf) if mask.dtype == bool else s + mask
    if is_causal:
        s = np.where(np.tri(*s.shape[-2:], dtype=bool), s, -np.inf)
    largest = s.max(axis=-1, keepdims=True)
    weights = np.exp(s - np.where(largest == -np.inf, 0, largest))
    total = weights.sum(axis=-1, keepdims=True)
    weights /= np.where(total == 0, 1, total)
    out = weights @ v
    ds = weights * (g @ np.swapaxes(v, -1, -2) - (g * out).sum(axis=-1, keepdims=True))
    gradients = [scale * (ds @ k), scale * (np.swapaxes(ds, -1, -2) @ q), np.swapaxes(weights, -1, -2) @ g]
    for i, x in ((1, k), (2, v)):
        shared = tuple(a for a in range(x.ndim) if x.shape[a] < gradients[i].shape[a])
        gradients[i] = gradients[i].sum(axis=shared, keepdims=True)
    return [out, *gradients]


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(lead: tuple[int, ...], T: int, S: int, D: int, E: int, dtype: Any = np.float32, kv: Any = None) -> list[Any]:
    """Query, key, value and the gradient of the result."""
    kv = lead if kv is None else kv
    shapes = ((*lead, T, D), (*kv, S, D), (*kv, S, E), (*lead, T, E))
    return [draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def ours(arrays: Any, mask: Any = None, is_causal: bool = False, scale: float = 0.3) -> list[Any]:
    """Result and gradients by the kernels, for host arrays or CuPy's; the dtype is that of the arrays."""
    q, k, v, g = map(cupy.asarray, arrays)
    found = kernels.attention(q, k, v, None if mask is None else cupy.asarray(mask), is_causal, scale)
    assert found is not None
    out, pullback = found
    results = [out, *pullback(g)]
    for x, like in zip(results, (g, q, k, v), strict=True):
        assert x.dtype == q.dtype
        assert x.shape == like.shape
    return [x.view(np.uint16).get().view(x.dtype) if x.dtype.kind == "V" else x.get() for x in results]


def check(arrays: Any, mask: Any = None, is_causal: bool = False, scale: float = 0.3) -> None:
    """The result and every gradient within the tolerance of its largest element."""
    host = [x.get() if hasattr(x, "get") else x for x in arrays]
    expected = reference(*host[:3], mask, is_causal, scale, host[3])
    tolerance = TOLERANCES[host[0].dtype.name]
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours(arrays, mask, is_causal, scale), expected, strict=True):
        # With a single key every weight is 1, and dq and dk, differences of equal numbers, are rounding alone.
        size = max(np.abs(b).max(), np.abs(expected[0]).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=name)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n", SIZES)
def test_numbers_of_queries_and_keys(n: int, is_causal: bool) -> None:
    for T, S in {(n, n), (n, 40), (40, n)}:
        check(inputs((2,), T, S, 12, 12), None, is_causal)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_widths_and_dtypes(widths: tuple[int, int], dtype: str) -> None:
    for D, E in {widths, widths[::-1]}:
        check(inputs((2,), 70, 50, D, E, dtype), None, True, D**-0.5)


@pytest.mark.parametrize("axes", range(16))
def test_masks_of_every_broadcast_shape(axes: int) -> None:
    full = (2, 3, 45, 37)
    shape = tuple(n if axes >> i & 1 else 1 for i, n in enumerate(full))
    visible = np.random.default_rng(7).random(shape) < 0.7
    arrays = inputs(full[:2], *full[2:], 9, 9)
    for is_causal in (False, True):
        check(arrays, visible, is_causal)
        check(arrays, np.where(visible, draw(*shape, seed=9), -np.inf).astype(np.float32), is_causal)


@pytest.mark.parametrize(
    ("dtype", "mask"), [("float16", "float16"), ("float16", "float32"), ("float32", "float64"), ("float64", "float64")]
)
def test_masks_of_other_dtypes(dtype: str, mask: str) -> None:
    check(inputs((2,), 20, 33, 8, 8, dtype), draw(1, 20, 33, dtype=mask))
    transposed = np.swapaxes(draw(2, 33, 20, dtype=mask), 1, 2)
    check(inputs((2,), 20, 33, 8, 8, dtype), transposed, True)


@pytest.mark.parametrize(
    ("lead", "kv"),
    [
        *(((3,), (3,)), ((3,), (1,)), ((2, 3), (2, 3)), ((2, 3), (2, 1))),
        *(((2, 3, 2), (2, 3, 2)), ((2, 3, 2), (2, 3, 1)), ((2, 1, 4), (2, 1, 1))),
    ],
    ids=str,
)
def test_heads_and_groups(lead: tuple[int, ...], kv: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random((*lead, 35, 40)) < 0.8
    for is_causal in (False, True):
        check(inputs(lead, 35, 40, 7, 10, kv=kv), mask, is_causal)
    check(inputs(lead, 35, 40, 7, 10, kv=kv))


def test_layout_in_memory_does_not_matter() -> None:
    host = inputs((2, 3), 35, 40, 8, 8)
    expected = ours(host)
    x = cupy.asarray
    layouts = [
        lambda a: x(a).swapaxes(1, 2).copy().swapaxes(1, 2),  # heads as nn.MultiHeadAttention makes them
        lambda a: cupy.stack([x(a), x(a)], axis=-1)[..., 1],
        lambda a: x(a)[::-1, :, ::-1].copy()[::-1, :, ::-1],
        lambda a: cupy.asfortranarray(x(a)),
    ]
    for layout in layouts:
        for a, b in zip(ours([layout(a) for a in host]), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    broadcast = [cupy.broadcast_to(x(a[:1, :1]), a.shape) for a in host]
    check(broadcast)


def test_results_lie_as_heads_are_joined() -> None:
    """(batch, heads, T, width) with the heads of a position side by side: joining them copies nothing."""
    for lead in ((2, 3), (2, 3, 4)):
        q, k, v, g = map(cupy.asarray, inputs(lead, 5, 6, 8, 8))
        out, pullback = kernels.attention(q, k, v, None, False, 1.0)
        for result in (out, *pullback(g)):
            assert cupy.moveaxis(result, -2, 1).flags.c_contiguous


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_queries_that_see_nothing_get_zeros(dtype: str) -> None:
    visible = np.random.default_rng(0).random((1, 50, 40)) < 0.5
    visible[:, [0, 17, 49]] = False
    hidden = np.where(visible, 0, -np.inf).astype(dtype)
    for mask in (visible, hidden, np.zeros_like(visible)):
        arrays = inputs((2,), 50, 40, 8, 8, dtype)
        check(arrays, mask)
        out, dq, *_ = ours(arrays, mask)
        np.testing.assert_array_equal(out[:, [0, 17, 49]], 0)
        np.testing.assert_array_equal(dq[:, [0, 17, 49]], 0)


def test_the_smallest_number_as_a_mask_still_weighs_equally() -> None:
    for number in (-1e9, np.finfo(np.float32).min):
        check(inputs((1,), 20, 30, 8, 8), np.full((1, 20, 1), number, np.float32), scale=0.0)


def test_huge_scores() -> None:
    arrays = inputs((2,), 40, 70, 8, 8)
    expected = reference(*arrays[:3], None, True, 1e4, arrays[3])[0]
    np.testing.assert_allclose(ours(arrays, None, True, 1e4)[0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("is_causal", [False, True])
def test_scores_that_are_all_beyond_the_range_give_nan(is_causal: bool) -> None:
    """As the definition does: a query that sees nothing, and gets zeros, there is with a mask alone."""
    arrays = inputs((2,), 40, 70, 8, 8)
    arrays[0][:] = -1e30
    arrays[1][:] = 1e30
    arrays[0][:, 1] = 0
    out, dq, _, dv = ours(arrays, None, is_causal)
    for x in (out, dq):
        assert np.isnan(x).all(axis=-1)[0].tolist() == [i != 1 for i in range(40)]
    assert np.isnan(dv[:, 0]).all()


def test_nan_and_infinity_stay_with_the_queries_that_see_them() -> None:
    arrays = inputs((2,), 70, 70, 8, 8)
    q, k, v, _ = arrays
    q[0, 3, 1], q[1, 40, 2], k[1, 50, 0], v[0, 45, 3] = np.nan, np.inf, np.nan, np.nan
    with np.errstate(invalid="ignore"):
        expected = reference(q, k, v, None, False, 0.3, arrays[3])
    for a, b in zip(ours(arrays), expected, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    arrays = inputs((2,), 70, 70, 8, 8)
    expected = ours(arrays, None, True)[0]
    arrays[1][:, 50] = arrays[0][0, 5] = np.nan
    out = ours(arrays, None, True)[0]
    np.testing.assert_array_equal(out[:, 6:50], expected[:, 6:50])  # keys that come later do not matter
    assert np.isnan(out[0, 5]).all()
    assert np.isnan(out[:, 50:]).all()


def test_what_is_left_to_the_array_form() -> None:
    def x(*shape: int, dtype: Any = np.float32) -> Any:
        return cupy.zeros(shape, dtype)

    for arrays, mask in (
        ([x(2, 2, 2, 2, 3, 4)] * 3, None),  # axes
        ([x(2, 3, 5, 4), x(1, 3, 5, 4), x(1, 3, 5, 4)], None),  # a batch that shares keys
        ([x(1, 3, 4), x(2, 3, 4), x(2, 3, 4)], None),
        ([x(2, 3, 4), x(2, 3, 4), x(1, 3, 4)], None),
        ([x(1, 3, 4)] * 3, x(2, 3, 3)),  # a mask with more heads
        ([x(2, 3, 4), x(2, 3, 4), x(2, 3, 4, dtype=np.float64)], None),
        ([x(1, 3, 4)] * 3, np.ones((1, 1, 1), bool)),  # a mask on the host
        ([x(1, 1, 1), np.ones((1, 1, 1), np.float32), x(1, 1, 1)], None),
        ([x(2, 3, 257)] * 3, None),
        ([x(2, 3, 129, dtype=np.float64)] * 3, None),
        ([x(2, 0, 4), x(2, 3, 4), x(2, 3, 4)], None),
        ([x(2, 3, 4), x(2, 0, 4), x(2, 0, 4)], None),
    ):
        assert kernels.attention(*arrays, mask, False, 1.0) is None
    check(inputs((1,), 20, 20, 256, 200))


def test_launches_copies_and_synchronizations(counted: Any) -> None:
    q, k, v, g = map(cupy.asarray, inputs((2, 3), 70, 70, 16, 16))
    mask = cupy.ones((1, 1, 1, 70), bool)
    kernels.attention(q, k, v, mask, True, 1.0)[1](g)
    with counted() as forward:
        _, pullback = kernels.attention(q, k, v, mask, True, 1.0)
    with counted() as backward:
        pullback(g)
    assert (forward.launches, backward.launches) == (1, 2)
    for cost in (forward, backward):
        assert cost.is_quiet()
        assert cost.library_calls == 0


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"attn_mask": np.tri(30) > 0}, {"attn_mask": np.ones(30)}]
)
def test_the_array_form_neither_copies_nor_waits(options: dict[str, Any], monkeypatch: Any, counted: Any) -> None:
    monkeypatch.setattr(chunked_attention, "CHUNK", 500)
    options = {name: cupy.asarray(x) if name == "attn_mask" else x for name, x in options.items()}
    tensors = [mg.tensor(cupy.asarray(x), requires_grad=True) for x in inputs((2, 3), 30, 30, 8, 8)]
    for dropout in (0.0, 0.5):
        with mg.kernels("numpy"), counted() as cost:
            mg.scaled_dot_product_attention(*tensors[:3], dropout_p=dropout, rng=0, **options).backward(tensors[3].data)
        chunks = len(list(chunked_attention.chunks((2, 3, 30, 30), options.get("is_causal", False))))
        assert chunks > 1
        assert cost.is_quiet()


def test_no_allocation_is_quadratic() -> None:
    """For 512 queries and keys nothing has as many elements as one head's scores, nor has all of it together."""
    T, requested = 512, []
    pool = cupy.cuda.MemoryPool()

    def allocate(size: int) -> Any:
        requested.append(size)
        return pool.malloc(size)

    q, k, v, g = map(cupy.asarray, inputs((1, 1), T, T, 16, 16))
    with cupy.cuda.using_allocator(allocate):
        _, pullback = kernels.attention(q, k, v, None, True, 1.0)
        pullback(g)
    assert len(requested) == 7  # out, largest, share; dq, dk, dv, delta
    assert sum(requested) < T * T * q.itemsize
    assert sum(requested) == 4 * q.nbytes + 3 * T * q.itemsize


# But one: here the threads take turns where they exchange the largest score too, and by then have read the keys.
BARRIERS = list(re.finditer(r"__sync(threads|warp)\(\);(?!  // all have read the keys)", SOURCE))


@pytest.mark.parametrize("fault", range(len(BARRIERS)))
def test_a_missing_barrier_shows(fault: int, monkeypatch: Any) -> None:
    """Every single barrier is needed, and the comparison notices that it is missing."""
    arrays = inputs((1,), 130, 130, 16, 16)
    expected = reference(*arrays[:3], None, False, 0.3, arrays[3])
    begin, end = BARRIERS[fault].span()
    monkeypatch.setattr(kernels, "SOURCE", kernels.SOURCE[:begin] + kernels.SOURCE[end:])
    monkeypatch.setattr(kernels, "_compiled", {})
    close = [
        np.allclose(a, b, rtol=0, atol=1e-3 * np.abs(b).max()) for a, b in zip(ours(arrays), expected, strict=True)
    ]
    assert not all(close)


@pytest.fixture
def launched(monkeypatch: Any) -> list[Any]:
    """The kernels that are launched, with the names of their dtypes."""
    found: list[Any] = []

    def launch(kernel: str, variant: tuple[Any, ...], *arguments: Any) -> None:
        found.append((kernel, variant[0]))
        run(kernel, variant, *arguments)

    run = kernels.launch
    monkeypatch.setattr(kernels, "launch", launch)
    return found


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_operation_uses_them(dtype: str, launched: list[Any]) -> None:
    arrays = inputs((2, 3), 33, 40, 8, 8, dtype)
    tensors = [mg.tensor(cupy.asarray(x), requires_grad=True) for x in arrays[:3]]
    out = mg.scaled_dot_product_attention(*tensors, is_causal=True)
    out.backward(cupy.asarray(arrays[3]))
    assert launched == [("forward", dtype), ("query_gradient", dtype), ("key_gradient", dtype)]
    results = [out.data, *(x.grad.data for x in tensors)]  # type: ignore[union-attr]
    for a, b in zip(results, reference(*arrays[:3], None, True, 8**-0.5, arrays[3]), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.get(), b, rtol=0, atol=TOLERANCES[dtype] * np.abs(b).max())
    with mg.kernels("numpy"):
        mg.scaled_dot_product_attention(*tensors, is_causal=True)
    mg.scaled_dot_product_attention(*tensors, dropout_p=0.5, rng=0)
    assert len(launched) == 3


def test_multi_head_attention_without_copies_of_heads(launched: list[Any]) -> None:
    x, padding = draw(2, 20, 24), np.arange(20) >= np.array([[20], [13]])
    results = []
    for to_device, name in ((np.asarray, "cpu"), (cupy.asarray, "cuda")):
        layer = nn.MultiHeadAttention(24, 6, num_kv_heads=2, rng=0).to(name)
        inner = mg.tensor(to_device(x), requires_grad=True)
        out = layer(inner, key_padding_mask=to_device(padding), is_causal=True)
        (out * out).sum().backward()
        results.append([out.data, inner.grad.data, *(p.grad.data for p in layer.parameters())])  # type: ignore[union-attr]
    assert [kernel for kernel, _ in launched] == list(kernels.KERNELS)
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b.get(), a, rtol=0, atol=1e-5 * np.abs(a).max())


def test_sources_name_every_instance() -> None:
    names = {name for _, code, names, _ in kernels.sources() for name in names if code == kernels.SOURCE}
    for dtype in TOLERANCES:
        for mask in (None, "bool", dtype):
            for width in (16, 128):
                for is_causal in (False, True):
                    for kernel in kernels.KERNELS:
                        assert kernels.expression(kernel, dtype, width, mask, is_causal) in names


if importlib.util.find_spec("ml_dtypes") is not None:  # without it there are no arrays of this dtype

    def test_bfloat16() -> None:
        import ml_dtypes

        arrays = inputs((2,), 70, 70, 8, 8, ml_dtypes.bfloat16)
        expected = reference(*arrays[:3], None, True, 0.3, arrays[3])
        on_device = [cupy.asarray(x.view(np.uint16)).view(ml_dtypes.bfloat16) for x in arrays]
        for a, b in zip(ours(on_device, None, True), expected, strict=True):
            np.testing.assert_allclose(a.astype(np.float64), b, rtol=0, atol=0.02 * np.abs(b).max())


def test_the_import_does_not_load_cupy() -> None:
    code = (
        "import sys, numpy as np, microgradnd as mg\n"
        "mg.scaled_dot_product_attention(np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3)))\n"
        "assert 'cupy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
