"""Compiled kernels against NumPy in float64: values and gradients, at sizes around the thresholds, in any layout."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd import kernels as choice
from microgradnd.kernels import SMALL as THRESHOLDS

if importlib.util.find_spec("numba") is None:
    pytest.skip("Numba is not installed", allow_module_level=True)
# The first one imports Numba, and makes settings if nobody else has done so before.
from microgradnd.kernels import numba_compiler, numba_fused, numba_norms, numba_parts, numba_threads  # isort: split

ROOT = Path(__file__).parents[1]
SMALL, LARGE = THRESHOLDS["numba"], THRESHOLDS["auto"]
ROWWISE = ["softmax", "log_softmax", "layer_norm", "rms_norm"]
ELEMENTWISE = ["gelu", "gelu_tanh", "silu"]
operations: dict[str, Callable[..., mg.Tensor]] = {
    **{name: getattr(mg, name) for name in ["gelu", "silu", *ROWWISE]},
    "gelu_tanh": lambda x: mg.gelu(x, "tanh"),
}


@pytest.fixture(params=["one thread", "all threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, four_threads: None) -> str:
    """Kernels on one thread, then on four whatever the size and the number of cores."""
    monkeypatch.setattr(numba_threads, "SHARE", 1 if request.param == "all threads" else 1 << 40)
    return str(request.param)


@pytest.fixture(autouse=True)
def numba_kernels() -> Iterator[None]:
    with mg.kernels("numba"):
        yield


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def both(f: Callable[..., mg.Tensor], *arrays: Any) -> tuple[list[Any], list[Any]]:
    """Result and gradients by kernels in float32, and by NumPy in float64."""
    found = []
    for kernels, dtype in (("numba", np.float32), ("numpy", np.float64)):
        with mg.kernels(kernels):
            xs = [mg.tensor(x if x.dtype == dtype else x.astype(dtype), requires_grad=True) for x in arrays]
            out = f(*xs)
            weights = np.random.default_rng(1).uniform(0.5, 1.5, out.shape).astype(dtype)
            (out * weights).sum().backward()
            assert out.dtype == dtype
            found.append([out.data, *(x.grad.data for x in xs)])  # type: ignore[union-attr]
    return found[0], found[1]


def close(ours: list[Any], reference: list[Any], tolerance: float = 2e-6) -> None:
    """Within ``tolerance`` of the largest element."""
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


SHAPES = [(1, SMALL + 1), (SMALL + 1, 1), (SMALL // 2 + 1, 2), (33, 9)]
SHAPES += [(1, LARGE + 1), (LARGE + 1, 1), (LARGE // 2 + 1, 2), (97, 131), (3, 5, 7, 103), (11, 1024)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", operations)
def test_values_and_gradients(name: str, shape: tuple[int, ...], threads: str) -> None:
    ours, reference = both(operations[name], normal(*shape))
    if shape[-1] == 1 and name in ("layer_norm", "log_softmax"):  # exactly 0, and no gradient
        assert np.abs([*ours, *reference]).max() < 1e-6
    else:  # of rows of two that are nearly equal, 1 / deviation is large and takes what rounding left with it
        alone = shape == (SMALL + 1, 1)  # so few, and of each row nothing is left but rounding
        close(ours, reference, 2e-4 if shape[-1] == 2 and name == "layer_norm" else 3e-6 if alone else 2e-6)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_relative_errors_far_from_zero(name: str) -> None:
    """The relative error of e^(-u) is that of its argument, which grows with u. See numba_math.normal_tail for gelu."""
    x = np.linspace(-6 if name == "gelu" else -13, 13, 4 * LARGE + 3).astype(np.float32)
    z = x.astype(float)
    u = 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3) if name == "gelu_tanh" else z
    phi = np.vectorize(math.erfc)(-z / math.sqrt(2)) / 2 if name == "gelu" else 1 / (1 + np.exp(-u))
    exponent = z**2 if name == "gelu" else (3 if name == "gelu_tanh" else 1) * np.abs(u)
    error = np.abs(operations[name](x).data - z * phi)
    assert (error <= 2**-23 * (2 + exponent * (x < 0)) * np.abs(z * phi) + 1e-37).all()


def test_exp() -> None:
    """Within 1 unit in the last place, or 1.2 where products and sums are not fused."""
    from numba import njit

    from microgradnd.kernels import numba_math

    @njit
    def exp(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = numba_math.exp(x[i])

    x = np.linspace(-87.33, 88, 1 << 20).astype(np.float32)
    out, exact = np.empty_like(x), np.exp(x.astype(np.float64))
    exp(x, out)
    error = np.abs(out - exact) / np.spacing(exact.astype(np.float32))
    assert error.max() < (0.95 if numba_compiler.AVX2 else 1.25)
    special = np.array([0, -87.7, -88, -1e30, -np.inf, np.nan], np.float32)
    exp(special, special)
    np.testing.assert_array_equal(special, [1, 0, 0, 0, 0, np.nan])


def test_gelu_where_it_is_nearly_nothing() -> None:
    x = np.linspace(-20, -6, 4 * LARGE).astype(np.float32)
    expected = x * np.vectorize(math.erfc)(-x.astype(float) / math.sqrt(2)) / 2
    np.testing.assert_allclose(mg.gelu(x).data, expected, rtol=0.01, atol=1e-36)


@pytest.mark.parametrize("name", operations)
def test_layout_in_memory_does_not_matter(name: str) -> None:
    x = normal(130, 128)
    read_only = x.copy()
    read_only.flags.writeable = False
    expected = operations[name](x).data
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1, ::-1].copy()[::-1, ::-1], read_only):
        np.testing.assert_array_equal(operations[name](same).data, expected)


@pytest.mark.parametrize("name", operations)
def test_nan_and_infinity_stay_in_their_place(name: str, threads: str) -> None:
    x = normal(100, 128)
    x[3, 5], x[7, 127], x[50, 0], x[60] = np.nan, np.inf, -np.inf, np.nan
    with np.errstate(all="ignore"):
        ours, reference = (operations[name](y).data for y in (x, x.astype(np.float64)))
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(reference))
        finite = np.isfinite(reference)
        np.testing.assert_array_equal(np.isfinite(ours), finite)
        np.testing.assert_allclose(ours[finite], reference[finite], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(ours[np.isinf(reference)], reference[np.isinf(reference)])


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_with_parameters(name: str, threads: str) -> None:
    arguments = [normal(5, 41, 70), *(normal(70, seed=i) for i in (1, 2))][: 3 if name == "layer_norm" else 2]
    close(*both(getattr(mg, name), *arguments), 1e-5)


def test_layer_norm_of_equal_numbers_is_nearly_zero() -> None:
    for value in (100.1, 10000.1):
        assert np.abs(mg.layer_norm(np.full((20, 768), value, np.float32)).data).max() < 1e-6 * value


@pytest.mark.parametrize("shape", [(SMALL // 2, 3), (300, 40), (4, 30, 101)], ids=str)
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_cross_entropy(shape: tuple[int, ...], dtype: Any, threads: str) -> None:
    labels = np.random.default_rng(3).integers(0, shape[-1], shape[:-1]).astype(dtype)
    close(*both(lambda x: mg.cross_entropy(x, labels), normal(*shape)))
    labels[(0,) * labels.ndim] = shape[-1]
    with pytest.raises(IndexError, match="class indices must lie in 0 to"):
        mg.cross_entropy(normal(*shape), labels)


@pytest.mark.parametrize("mask", ["none", "causal", "padding", "added", "causal and padding"])
@pytest.mark.parametrize("chunk", [1 << 18, 3000])
def test_attention(mask: str, chunk: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from microgradnd.kernels import attention

    monkeypatch.setattr(attention, "CHUNK", chunk)
    monkeypatch.setattr(attention, "FEWEST_QUERIES", 1 << 40)  # in chunks without a mask too
    q, k, v = (normal(2, 3, 45, 8, seed=i) for i in range(3))
    attn_mask = None
    if "padding" in mask:
        attn_mask = np.random.default_rng(0).random((2, 1, 45, 45)) < 0.7
        attn_mask[1, 0, 5] = False  # a query that sees nothing
    elif mask == "added":
        attn_mask = normal(3, 45, 45)
    options = {"is_causal": "causal" in mask}
    close(*both(lambda *x: mg.scaled_dot_product_attention(*x, attn_mask, **options), q, k, v), 2e-5)


def test_attention_with_dropout_drops_the_same_with_either_kernels() -> None:
    x = normal(2, 60, 60, seed=4)
    close(*both(lambda q: mg.scaled_dot_product_attention(q, q, q, dropout_p=0.3, rng=5), x), 5e-5)


def test_gradient_of_repeated_rows(threads: str) -> None:
    tokens = np.random.default_rng(0).integers(-7, 7, 300)
    close(*both(lambda w: w[tokens] * normal(300, 70, seed=2).astype(w.dtype), normal(7, 70)), 1e-5)


OPTIMIZERS: list[Any] = [
    lambda p: nn.SGD(p, 0.1),
    lambda p: nn.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    lambda p: nn.SGD(p, 0.1, weight_decay=0.1),
    lambda p: nn.Adam(p, 0.01, weight_decay=0.1),
    lambda p: nn.AdamW(p, 0.01, weight_decay=0.1),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimisers_step_like_numpy(optimizer: Any, threads: str) -> None:
    """For a large parameter and small ones beside it: the kernel takes all of them at once, in parts across them."""
    shapes: list[tuple[int, ...]] = [(130, 70), (70,), (), (0, 3)]
    weights = []
    for kernels, dtype in (("numba", np.float32), ("numpy", np.float64)):
        with mg.kernels(kernels):
            tensors = [mg.tensor(normal(*shape).astype(dtype), requires_grad=True) for shape in shapes]
            steps = optimizer(tensors)
            for i in range(5):
                for w in tensors:
                    w.grad = mg.tensor(np.array(normal(*w.shape, seed=i), dtype, order="F"))
                steps.step()
            weights.append([w.data for w in tensors])
    for ours, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("through", ["a leaf", "a sum", "float16"])
def test_gradients_of_norms_are_added_to_those_of_residual_connections(norm: Any, through: str, threads: str) -> None:
    """In the kernel; y = x + 2 norm(x) and more, where x gets its first gradient before, and after, the norm's."""

    def f(x: mg.Tensor, weight: mg.Tensor) -> mg.Tensor:
        h = x + 1 if through == "a sum" else x.astype(np.float16) if through == "float16" else x
        early = h * h  # its gradient comes last
        with mg.autocast(np.float16 if through == "float16" else None):
            scaled = norm(h, weight) * 2
        return (early + scaled + h * 3).astype(x.dtype)

    close(*both(f, normal(131, 70), normal(70, seed=1)), 2e-3 if through == "float16" else 1e-5)


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_norms_of_sums(norm: Any, shape: tuple[int, ...], threads: str) -> None:
    """In one kernel, with the bits of the norm of a sum, and the gradient for both summands, which are used again."""
    arrays = [normal(*shape), normal(*shape, seed=3, scale=0.5), normal(shape[-1], seed=2)]

    def f(x: mg.Tensor, residual: mg.Tensor, weight: mg.Tensor, fused: bool = True) -> mg.Tensor:
        y = norm(x, weight, residual=residual) if fused else norm(x + residual, weight)
        return y * y + x * 3 + residual

    ours, reference = both(f, *arrays)
    apart, _ = both(lambda *xs: f(*xs, fused=False), *arrays)
    assert ours[0].tobytes() == apart[0].tobytes()
    if shape[-1] > 2:  # see test_values_and_gradients
        close(ours, reference, 1e-5)
    strided = np.repeat(arrays[0], 2, axis=-1)[..., ::2]
    np.testing.assert_array_equal(
        norm(strided, arrays[2], residual=arrays[1]).data, norm(*arrays[::2], residual=arrays[1]).data
    )


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
def test_sums_of_narrow_floats_are_computed_in_float32(norm: Any) -> None:
    x = np.array([[60000, 1, 2, 3]], np.float16)
    out = norm(x, residual=x)
    assert out.dtype == np.float16
    np.testing.assert_array_equal(out.data, norm(x.astype(np.float32) * 2).data.astype(np.float16))


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_gradients_of_sums_of_narrow_floats(norm: Any, name: str) -> None:
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it comes with the extra bfloat16")
    dtype = np.dtype(name)
    x, residual, g = (normal(97, 128, seed=i).astype(dtype) for i in range(3))
    gradients = []
    for wide in (False, True):
        tensors = [mg.tensor(a.astype(np.float32) if wide else a, requires_grad=True) for a in (x, residual)]
        norm(tensors[0], residual=tensors[1]).backward(g.astype(np.float32) if wide else g)
        gradients.append([t.grad.data.astype(np.float32) for t in tensors])  # type: ignore[union-attr]
        assert [t.grad.dtype for t in tensors] == [t.dtype for t in tensors]  # type: ignore[union-attr]
    np.testing.assert_allclose(*gradients, rtol=2**-7 if name == "bfloat16" else 2**-10, atol=1e-3)


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
@pytest.mark.parametrize("shape", [(96, 128), (128,), (1, 96, 128), (96, 1)])
def test_norms_of_sums_refuse_other_shapes(norm: Any, shape: tuple[int, ...]) -> None:
    x, residual = normal(97, 128), normal(*shape)
    with pytest.raises(ValueError, match="residual must have the shape of x"):
        norm(x, residual=residual)


@pytest.mark.parametrize("norm", [mg.layer_norm, mg.rms_norm])
def test_gradients_of_weights_alone(norm: Any, threads: str) -> None:
    x = normal(131, 70)
    close(*both(lambda weight: norm(x.astype(weight.dtype), weight), normal(70, seed=1)), 1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_like_by_numpy(max_norm: float, threads: str) -> None:
    shapes: list[tuple[int, ...]] = [(130, 70), (70,), (), (0, 3)]
    norms, gradients = [], []
    for kernels, dtype in (("numba", np.float32), ("numpy", np.float64)):
        with mg.kernels(kernels):
            tensors = [mg.tensor(np.zeros(shape, dtype), requires_grad=True) for shape in shapes]
            before = [mg.tensor(np.array(normal(*shape), dtype, order="F")) for shape in shapes]
            for w, g in zip(tensors, before, strict=True):
                w.grad = g
            norms.append(nn.clip_grad_norm(tensors, max_norm))
            gradients.append([w.grad.data for w in tensors])  # type: ignore[union-attr]
            assert all((w.grad.data is g.data) == (max_norm == 1e6) for w, g in zip(tensors, before, strict=True))
    assert norms[0].dtype == np.float32
    np.testing.assert_allclose(norms[0].item(), norms[1].item(), rtol=1e-6)
    for ours, expected in zip(*gradients, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("number", "norm"),
    [(np.inf, np.inf), (np.nan, np.nan), (1e38, np.inf), (1e30, 1e32), (1e-30, 1e-28), (0, 0)],
)
def test_norms_of_extreme_gradients(number: float, norm: float) -> None:
    """Squares that float32 can't hold are added up in float64."""
    w = mg.tensor(np.zeros((100, 100), np.float32), requires_grad=True)
    w.grad = np.full((100, 100), number, np.float32)
    assert nn.clip_grad_norm([w], 5.0).item() == pytest.approx(norm, rel=1e-6, nan_ok=True)
    expected = number * min(5 / (norm + 1e-6), 1) if np.isfinite(number) else np.nan  # an infinite norm: 0
    np.testing.assert_allclose(w.grad.data, expected, rtol=1e-5)


def test_clipping_in_a_captured_step() -> None:
    x, weights = normal(40, 130), []
    for captured in (False, True):
        model = nn.Sequential(nn.Linear(130, 70, rng=0), nn.GELU(), nn.Linear(70, 130, rng=1))
        optimizer = nn.Adam(model.parameters(), 0.01)

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> mg.Tensor:
            loss = ((model(x) - x) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.clip_grad_norm(model.parameters(), 0.01)
            optimizer.step()
            return norm

        run = mg.capture(step) if captured else step
        norms = [run(x).item() for _ in range(6)]
        weights.append([norms, *(p.data for p in model.parameters())])
    assert "gradient_norm([" in run.source  # type: ignore[union-attr]
    assert "scale_all([" in run.source  # type: ignore[union-attr]
    for ours, expected in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_number_as_a_parameter_beside_a_large_one() -> None:
    """Its gradient is a sum of numbers, no array."""
    weights = []
    for kernels in ("numba", "numpy"):
        with mg.kernels(kernels):
            w, s = (mg.tensor(np.ones(shape, np.float32), requires_grad=True) for shape in ((200, 200), ()))
            optimizer = nn.SGD([w, s], 0.1)
            for _ in range(3):
                optimizer.zero_grad()
                ((w * s).mean() + (s * 2)).backward()
                nn.clip_grad_norm([w, s], 0.5)
                optimizer.step()
            weights.append([w.data, s.data])
    for ours, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize(("size", "expected"), [(SMALL, 0), (SMALL + 1, len(OPTIMIZERS))])
def test_small_parameters_beside_a_large_one(size: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled kernel takes all three at once, or NumPy does."""
    calls = []
    monkeypatch.setattr(numba_parts.Kernel, "bind", lambda self, *args: lambda *settings: calls.append(args))
    parameters = [mg.tensor(normal(n), requires_grad=True) for n in (10, size, 1)]
    for p in parameters:
        p.grad = mg.tensor(p.data)
    for optimizer in OPTIMIZERS:
        optimizer(parameters).step()
    assert len(calls) == expected


def test_a_model_learns_the_same_with_either_kernels() -> None:
    losses = []
    tokens = np.random.default_rng(0).integers(0, 50, (8, 65))
    for kernels in ("numpy", "numba"):
        with mg.kernels(kernels):
            model = nn.Transformer(50, 64, 4, 2, 64, rng=0)
            optimizer = nn.AdamW(nn.decay_groups(model, 0.1), lr=1e-3)
            losses.append([])
            for _ in range(10):
                loss = nn.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[1][-1] < losses[1][0] - 0.1


def test_second_order_goes_through_the_definitions() -> None:
    x = normal(90, 100)
    for name, f in operations.items():
        results = []
        for kernels in ("numpy", "numba"):
            with mg.kernels(kernels):
                t = mg.tensor(x, requires_grad=True)
                (mg.grad(lambda t, f=f: (f(t) ** 3).sum())(t) * x).sum().backward()
                results.append(t.grad.data)  # type: ignore[union-attr]
        np.testing.assert_allclose(results[1], results[0], rtol=0, atol=2e-4 * np.abs(results[0]).max(), err_msg=name)


def test_small_arrays_and_float64_stay_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a compiled kernel was called")

    monkeypatch.setattr(numba_parts.Kernel, "__call__", refuse)
    for x in (normal(SMALL // 16, 16), normal(100, 100).astype(np.float64), normal(100, 100).astype(np.float16)):
        for f in operations.values():
            t = mg.tensor(x, requires_grad=True)
            f(t).sum().backward()
    with pytest.raises(AssertionError, match="was called"):
        mg.gelu(normal(100, 100))


def test_the_choice() -> None:
    assert choice.current == "numba"
    with mg.kernels("numpy"):
        assert choice.current == "numpy"
        with mg.kernels("auto"):
            assert choice.current == "auto"
        assert choice.current == "numpy"
    assert choice.current == "numba"
    with pytest.raises(ValueError, match="expected any of numpy, numba, auto, got 'cuda'"):
        mg.kernels("cuda")
    assert choice.current == "numba"


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(choice, "_compiled", None)
    with pytest.raises(ImportError, match=r"pip install 'numba"):
        mg.kernels("numba")
    with mg.kernels("auto"):
        x = normal(100, 100)
        found = mg.gelu(x).data
    with mg.kernels("numpy"):
        np.testing.assert_array_equal(found, mg.gelu(x).data)


@pytest.mark.parametrize("kind", [ImportError, SystemError])
def test_a_broken_numba_is_done_without(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise kind("Numba needs NumPy 1.0")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(choice, "_compiled", None)
    with mg.kernels("auto"), pytest.warns(RuntimeWarning, match="NumPy is used: Numba needs NumPy 1.0"):
        mg.gelu(normal(100, 100))
    mg.kernels("auto")
    mg.gelu(normal(100, 100))  # says it once
    monkeypatch.setattr(choice, "_compiled", None)
    with mg.kernels("numba"), pytest.raises(kind, match="Numba needs"):
        mg.gelu(normal(100, 100))


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, four_threads: None) -> None:
    monkeypatch.setattr(numba_threads, "SHARE", 1)
    x, results = normal(200, 130), []
    for count in (1, 2, 7):
        monkeypatch.setattr(numba_threads, "team", numba_threads.Team(count))
        w = mg.tensor(np.ones(130, np.float32), requires_grad=True)
        t = mg.tensor(x, requires_grad=True)
        (mg.layer_norm(mg.gelu(t), w) * x).sum().backward()
        results.append([t.grad.data, w.grad.data])  # type: ignore[union-attr]
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(a, b)


def python(code: str, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={name: x for name, x in os.environ.items() if name != "NUMBA_CPU_FEATURES"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_numba_is_not_imported_before_it_is_needed() -> None:
    python(
        "import sys, numpy as np, microgradnd as mg, nn\n"
        "model = nn.MLP([64, 128, 10], rng=0)\n"
        "optimizer = nn.Adam(model.parameters())\n"
        "nn.cross_entropy(model(np.ones((32, 64), np.float32)), np.zeros(32, int)).backward()\n"
        "optimizer.step()\n"
        "assert 'numba' not in sys.modules\n"
        "mg.gelu(np.ones(20000, np.float32))\n"
        "assert 'numba' in sys.modules\n"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_and_forks() -> None:
    python(
        "import os, threading, numpy as np, microgradnd as mg\n"
        "from microgradnd.kernels import numba_parts, numba_threads\n"
        "numba_threads.SHARE, numba_threads.team = 1, numba_threads.Team(4)\n"
        "x = np.linspace(-3, 3, 200_000).astype(np.float32)\n"
        "expected, failed = mg.gelu(x).data, []\n"
        "def work():\n"
        "    for _ in range(200):\n"
        "        if not (mg.gelu(x).data == expected).all(): failed.append(1)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
        "assert not failed\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if (mg.gelu(x).data == expected).all() else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )


def test_without_a_place_for_the_cache() -> None:
    scope: dict[str, Any] = {}
    code = "def double(begin, end, x):\n    for i in range(begin, end):\n        x[i] += x[i]\n"
    exec(compile(code, "<no file>", "exec"), scope)
    x = np.ones(5, np.float32)
    numba_parts.Kernel(scope["double"])(5, 1, x)
    np.testing.assert_array_equal(x, 2)


def test_the_source_of_what_is_compiled_is_the_kernels_own() -> None:
    """Numba reads it for what it keeps on disk; text of other places, that is no Python, it refuses (from 3.12 on)."""
    for kernel in (numba_fused.kernels.gelu, numba_fused.attention_kernels.attention):
        text = inspect.getsource(kernel.compiled.py_func)
        assert f"\ndef {kernel.__name__}(begin, end, " in text


def test_every_compiled_function_is_used() -> None:
    """Kernels that nothing calls would not be tested here."""
    from microgradnd.kernels import numba_attention, numba_kernels, numba_matmul, numba_optimisers, numba_updates

    count = 0
    for module, user, called in (
        (numba_kernels, numba_fused, "kernels"),
        (numba_norms, numba_fused, "norms"),
        (numba_optimisers, numba_updates, "kernels"),
    ):
        text = Path(user.__file__).read_text()
        kernels = {name: x for name, x in vars(module).items() if isinstance(x, numba_parts.Kernel)}
        assert [name for name in kernels if re.search(rf"\b{called}\.{name}\b", text) is None] == []
        count += len(kernels)
    assert count > 30
    # What a recording has to know; adam_all and the like are noted with the arrays themselves.
    everything = {**vars(numba_kernels), **vars(numba_norms), **vars(numba_attention), **vars(numba_matmul)}
    kernels = {name: x for name, x in everything.items() if isinstance(x, numba_parts.Kernel)}
    assert [name for name, kernel in kernels.items() if not kernel.writes] == []


def test_calls_from_several_threads_in_this_process() -> None:
    x = normal(300, 128)
    expected, found = mg.layer_norm(x).data, []
    workers = [threading.Thread(target=lambda: found.append(mg.layer_norm(x).data)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for result in found:
        np.testing.assert_array_equal(result, expected)


def test_what_is_in_use_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    mg.gelu(normal(100, 100))
    mg.show_config()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["microgradnd", "Python", "NumPy", "BLAS", "kernels", "CuPy"]
    assert lines["NumPy"] == np.__version__
    assert lines["kernels"] == f"'numba': Numba {numba_compiler.numba.__version__}, {numba_threads.THREADS} threads"
    with mg.kernels("numpy"):
        mg.show_config()
    assert "'numpy': NumPy\n" in capsys.readouterr().out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ((2, 3, 45, 8), (2, 3, 45, 8)),
        ((130, 7), (130, 7)),
        ((2, 66, 6), (2, 71, 6)),
        ((2, 2, 3, 50, 4), (2, 2, 1, 37, 4)),
        ((2, 70, 40), (2, 71, 40)),  # wider than a tile
        ((3, 64, 32), (3, 64, 32)),  # whole vectors
        ((2, 128, 48), (2, 83, 48)),
        ((1, 200, 70), (1, 130, 70)),
    ],
    ids=str,
)
def test_attention_without_scores_in_memory(
    queries: tuple[int, ...], keys: tuple[int, ...], causal: bool, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, fused = [], numba_fused.attention
    monkeypatch.setattr(numba_fused, "attention", lambda *x: called.append(1) or fused(*x))
    value_width = 5 if keys[-1] < 70 else 97
    q, k, v = normal(*queries), normal(*keys, seed=1), normal(*keys[:-1], value_width, seed=2)
    close(*both(lambda *x: mg.scaled_dot_product_attention(*x, is_causal=causal), q, k, v), 1e-5)
    assert called
    half = [mg.tensor(x.astype(np.float16), requires_grad=True) for x in (q, k, v)]
    out = mg.scaled_dot_product_attention(*half, is_causal=causal)
    out.sum().backward()
    assert out.dtype == half[0].grad.dtype == np.float16  # type: ignore[union-attr]
    strided = [mg.tensor(np.repeat(x, 2, axis=-1)[..., ::2]) for x in (q, k, v)]
    contiguous = [mg.tensor(x) for x in (q, k, v)]
    a, b = (mg.scaled_dot_product_attention(*x, is_causal=causal).data for x in (strided, contiguous))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_arrays_that_may_not_be_written(causal: bool) -> None:
    x = np.broadcast_to(normal(4, 1, 64), (4, 64, 64))
    found, expected = both(lambda t: mg.scaled_dot_product_attention(t, t, t, is_causal=causal), x)
    close(found, expected, 1e-4)  # equal keys: most of their gradients cancels
    with mg.kernels("numba"):
        t = mg.tensor(x)  # as it is: read-only, and its rows are one
        np.testing.assert_array_equal(mg.scaled_dot_product_attention(t, t, t, is_causal=causal).data, found[0])


@pytest.mark.parametrize("count", [255, 256, 257])
def test_linear_adds_a_large_bias_on_all_threads(count: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the threshold, the same bits: one sum per element."""
    calls, add_bias = [], numba_fused.add_bias
    monkeypatch.setattr(numba_fused, "add_bias", lambda *x: calls.append(1) or add_bias(*x))
    arrays = [normal(count, 3), normal(3, 512, seed=1), normal(1024, seed=2)[::2]]
    arrays[2][5:7] = np.nan, np.inf
    results = []
    for kernels in ("numpy", "numba"):
        with mg.kernels(kernels):
            tensors = [mg.tensor(x, requires_grad=True) for x in arrays]
            out = mg.linear(*tensors)
            out.sum().backward()
            results.append([out.numpy(), *(t.grad.numpy() for t in tensors)])  # type: ignore[union-attr]
    assert len(calls) == (count >= 256)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n", [700, 100_000])
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
def test_layer_norm_of_rows_far_from_zero(offset: float, n: int, threads: str) -> None:
    """Beside float64: as exact as the numbers themselves are; and constant rows give the bias alone."""
    x = (normal(16, n) + np.float32(offset)).astype(np.float32)
    x[3] = x[3, 0]
    x[4:] = np.float32(offset) + np.spacing(np.float32(offset)) * (x[4:] > offset)  # deviations of one digit
    wide = x.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5)
    with mg.kernels("numba"):
        out = mg.layer_norm(mg.tensor(x)).numpy()
    np.testing.assert_allclose(out, expected, atol=2e-6 if n < 1000 else 1e-3, rtol=1e-5 if n < 1000 else 1e-3)


@pytest.mark.parametrize(("first", "n"), [(0.01, 100_000), (0.1, 1000), (1e8, 1000), (1e18, 1000)])
def test_layer_norm_of_rows_whose_first_numbers_are_unlike_the_others(first: float, n: int, threads: str) -> None:
    """Their mean is a bad guess of the row's: by less than a deviation, by several, or in rows of few numbers.

    Many numbers that are all equal are added up inexactly, and of huge ones less a bad guess squares are infinite: then
    only a second guess is good enough.
    """
    x = normal(20, n)
    x[:, : numba_norms.FEW] += np.float32(first)
    x[7], x[8], x[8, : numba_norms.FEW] = first, 0, first
    close(*both(lambda x: mg.layer_norm(x) * normal(20, n, seed=1), x), 5e-6)


def test_layer_norm_of_huge_constant_rows(threads: str) -> None:
    """What rounding leaves of their mean is too large to be squared; the gradient is that of any constant row."""
    g = normal(200, 300)
    for value in (1.0, 1e24, 1e30):
        ours, reference = both(lambda x: mg.layer_norm(x) * g, np.full((200, 300), value, np.float32))
        assert np.abs(reference[1]).max() > 100
        close(ours, reference)


@pytest.mark.parametrize("rows", [(4,), (3, 50), (300,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["linear_gelu", "linear_relu"])
def test_linear_and_activation(name: str, bias: bool, rows: tuple[int, ...], threads: str) -> None:
    f = getattr(mg, name)
    arrays = [normal(*rows, 60), normal(60, 90, seed=1, scale=0.3), *([normal(90, seed=2)] if bias else [])]
    close(*both(f, *arrays), 5e-6)
    with pytest.raises(ValueError, match=f"{name}: weight must have two axes"):
        f(arrays[0], arrays[1], normal(1))


@pytest.mark.parametrize("name", ["linear_gelu", "linear_relu"])
def test_products_without_elements(name: str) -> None:
    for shapes in (((300, 32), (32, 0)), ((0, 5), (5, 4)), ((300, 0), (0, 400))):
        x, weight = (mg.tensor(np.ones(shape, np.float32), requires_grad=True) for shape in shapes)
        out = getattr(mg, name)(x, weight)
        out.sum().backward()
        assert out.shape == (shapes[0][0], shapes[1][1])
        for t in (x, weight):
            np.testing.assert_array_equal(t.grad.data, np.zeros(t.shape))  # type: ignore[union-attr]


def test_relu_of_infinity_and_nan() -> None:
    x = normal(300, 4)
    x[3], x[5], x[7] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        ours, reference = (mg.linear_relu(y, np.eye(4, dtype=y.dtype) * 0.5).data for y in (x, x.astype(np.float64)))
    np.testing.assert_allclose(ours, reference, rtol=1e-6)


def test_swiglu(threads: str) -> None:
    close(*both(mg.swiglu, normal(7, 11, 120), normal(7, 11, 120, seed=1)))


def test_rows_out_of_bounds_are_refused() -> None:
    for index in (10, -11, 10**8):
        with pytest.raises(IndexError, match="out of bounds for an axis of length 10"):
            mg.scatter_add(normal(200, 64), np.full(200, index), (10, 64))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("arrange", [lambda x: x.swapaxes(0, 1), np.asfortranarray, lambda x: x[:, ::-1]])
def test_attention_of_other_layouts(arrange: Any, causal: bool, threads: str) -> None:
    arrays = [arrange(normal(4, 4, 30, 8, seed=i)) for i in range(3)]
    mask = np.random.default_rng(0).random((30, 30)) < 0.8
    mask[:, 0] = True
    for attn_mask in (None, mask):
        ours, reference = both(
            lambda *x, m=attn_mask: mg.scaled_dot_product_attention(*x, attn_mask=m, is_causal=causal), *arrays
        )
        close(ours, reference, 5e-6)


@pytest.mark.parametrize(
    ("shape", "heads", "kv_heads"),
    [((2, 70, 96), 4, 4), ((3, 40, 160), 6, 2), ((130, 33 * 3), 1, 1), ((2, 100, 12), 4, 4), ((2, 2, 50, 24), 2, 2)],
)
def test_self_attention(
    shape: tuple[int, ...], heads: int, kv_heads: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any of the layouts; the kernel writes its gradients where they lie in that of the projection."""
    places: list[list[bool]] = []  # of each call, whether gradients are what was handed over for them
    fused = numba_fused.attention

    def watched(*args: Any) -> Any:
        if (found := fused(*args)) is None:
            return None
        out, pullback = found

        def watched_pullback(g: Any, into: Any = None) -> Any:
            found = pullback(g, into)
            places.append([into is not None and a is b for a, b in zip(found, into or found, strict=True)])
            return found

        return out, watched_pullback

    monkeypatch.setattr(numba_fused, "attention", watched)
    x = normal(*shape)
    for causal in (True, False):
        call = functools.partial(mg.self_attention, num_heads=heads, is_causal=causal, num_kv_heads=kv_heads)
        close(*both(call, x), 1e-5)
    assert places == [[True] * 3] * 2 * (len(shape) < 4)  # of so many axes it knows groups of heads alone
    allowed = np.random.default_rng(0).random((heads, shape[-2], shape[-2])) < 0.8
    options = {"attn_mask": allowed, "num_kv_heads": kv_heads, "dropout_p": 0.2, "rng": 3}
    close(*both(lambda x: mg.self_attention(x, num_heads=heads, **options), x), 5e-5)
    for dtype in (np.float16, ">f4", np.float64):  # the kernel's gradients are converted, or it is not asked
        other = mg.tensor(x.astype(dtype), requires_grad=True)
        with mg.kernels("numba"):
            mg.self_attention(other, num_heads=heads, num_kv_heads=kv_heads, is_causal=True).sum().backward()
        assert other.grad is not None
        assert other.grad.dtype == dtype


def test_momentum_of_gradients_in_another_order() -> None:
    results = []
    for kernels in ("numpy", "numba"):
        with mg.kernels(kernels):
            w = mg.tensor(np.ones((100, 100), np.float32), requires_grad=True)
            optimizer = nn.SGD([w], lr=0.1, momentum=0.9)
            for _ in range(5):
                w.grad = mg.tensor(np.asfortranarray(np.ones((100, 100), np.float32)))
                optimizer.step()
            results.append(w.data)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)


@pytest.mark.parametrize("beta2", [0.9999, 0.999999, 0.99999999])
def test_averages_of_nearly_all_steps(beta2: float) -> None:
    results = []
    for kernels in ("numpy", "numba"):
        with mg.kernels(kernels):
            w = mg.tensor(np.ones(10_000, np.float32), requires_grad=True)
            optimizer = nn.Adam([w], lr=0.1, betas=(0.9, beta2))
            for _ in range(3):
                w.grad = mg.tensor(np.full(10_000, 0.5, np.float32))
                optimizer.step()
            results.append(w.data)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)


def test_no_decay_of_infinite_parameters() -> None:
    for make in OPTIMIZERS[:1]:
        w = mg.tensor(np.full(10_000, np.inf, np.float32), requires_grad=True)
        w.grad = mg.tensor(np.ones(10_000, np.float32))
        make([w]).step()
        assert (w.data == np.inf).all()


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_layer_norm_far_from_zero(mean: float, threads: str) -> None:
    x = (normal(100, 256, scale=1) + np.float32(mean)).astype(np.float32)
    close(*both(mg.layer_norm, x), 3e-6)


def test_keys_that_nobody_sees_do_not_matter() -> None:
    arrays = [normal(2, 3, n, 8, seed=i) for i, n in enumerate((601, 604, 604))]
    for x in arrays[1:]:
        x[:, :, 601:] = np.nan
    tensors = [mg.tensor(x, requires_grad=True) for x in arrays]
    out = mg.scaled_dot_product_attention(*tensors, is_causal=True)
    out.sum().backward()
    for x in (out.data, *(t.grad.data for t in tensors)):  # type: ignore[union-attr]
        assert np.isfinite(x).all()


def test_a_damaged_cache_is_done_without(tmp_path: Path) -> None:
    code = "import numpy as np, microgradnd as mg; mg.softmax(np.ones((100, 100), np.float32))"
    python(code, NUMBA_CACHE_DIR=str(tmp_path))
    indices = list(tmp_path.rglob("*.nbi"))
    assert indices
    for index in indices:
        index.write_bytes(b"")
    python(code, NUMBA_CACHE_DIR=str(tmp_path))


def test_numba_used_by_others_keeps_its_settings() -> None:
    for first, changed in (("numba, ", "False"), ("", "'+avx512f' in features")):
        python(
            f"import {first}microgradnd as mg, numpy as np\n"
            "mg.gelu(np.ones(20000, np.float32))\n"
            "import numba\n"
            "from numba.core import codegen\n"
            "features = numba.config.CPU_FEATURES or codegen.get_host_cpu_features()\n"
            f"assert features.endswith(',-prefer-256-bit') == ({changed}), features\n"
        )


def test_labels_may_be_changed_after_the_loss() -> None:
    x, labels = mg.tensor(normal(1000, 16), requires_grad=True), np.zeros(1000, np.intp)
    loss = nn.cross_entropy(x, labels)
    labels[:] = 20
    loss.backward()
    with mg.kernels("numpy"):
        y = mg.tensor(x.data.copy(), requires_grad=True)
        nn.cross_entropy(y, np.zeros(1000, np.intp)).backward()
    np.testing.assert_allclose(x.grad.data, y.grad.data, rtol=0, atol=1e-8)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_gradients_of_norms_of_large_numbers(name: str) -> None:
    x, g = normal(100, 100) * np.float32(1e10), normal(100, 100, seed=1) * np.float32(1e30)
    gradients = []
    for dtype in (np.float32, np.float64):
        t = mg.tensor(x.astype(dtype), requires_grad=True)
        getattr(mg, name)(t).backward(g.astype(dtype))
        gradients.append(t.grad.data)  # type: ignore[union-attr]
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-5 * np.abs(gradients[1]).max())


def test_swiglu_whose_gate_broadcasts() -> None:
    close(*both(mg.swiglu, normal(SMALL + 1, 1), normal(1, 3, seed=1)), 1e-5)
