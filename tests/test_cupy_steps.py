"""CUDA kernels over many arrays: optimisers, the norm of gradients, rows added at indices that repeat."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.against_numpy import both, close, normal

pytestmark = pytest.mark.usefixtures("cupy")

CHUNK = 4096
SIZES = [1, 3, 8, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 8]
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p: nn.SGD(p, 0.1),
    "SGD with decay": lambda p: nn.SGD(p, 0.1, weight_decay=0.1),
    "SGD with momentum": lambda p: nn.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: nn.Adam(p, 0.01),
    "Adam with decay": lambda p: nn.Adam(p, 0.01, weight_decay=0.1),
    "AdamW": lambda p: nn.AdamW(p, 0.01, weight_decay=0.1),
}
TOLERANCE = {"float16": 5e-3, "float32": 3e-6, "float64": 1e-14}


def steps(xp: Any, name: str, shapes: list[Any], dtypes: list[str], as_float64: bool, count: int = 3) -> list[Any]:
    """The parameters after some steps."""
    parameters = []
    for i, (shape, dtype) in enumerate(zip(shapes, itertools.cycle(dtypes), strict=False)):
        values = normal(*shape, seed=i, dtype=dtype)
        parameters.append(mg.tensor(xp.asarray(values.astype(float) if as_float64 else values), requires_grad=True))
    optimizer = OPTIMIZERS[name](parameters)
    for step in range(count):
        for i, p in enumerate(parameters):
            dtype = dtypes[i % len(dtypes)]
            gradient = normal(*p.shape, seed=100 * step + i, dtype=dtype)
            if step == 1 and i == 0:  # a parameter without a gradient: its numbers of steps differ from then on
                p.grad = None
            else:
                p.grad = mg.tensor(xp.asarray(gradient.astype(p.dtype)))
        optimizer.step()
    return [p.data for p in parameters]


@pytest.mark.parametrize("dtypes", [["float16"], ["float32"], ["float64"], ["float32", "float16"]], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_step_like_numpy(name: str, dtypes: list[str]) -> None:
    import cupy

    shapes: list[Any] = [(), (0,), (3, 5), *((n,) for n in SIZES)]
    ours = steps(cupy, name, shapes, dtypes, as_float64=False)
    with mg.kernels("numpy"):
        reference = steps(np, name, shapes, dtypes, as_float64=True)
    for a, b in zip(ours, reference, strict=True):
        tolerance = TOLERANCE[a.dtype.name]
        np.testing.assert_allclose(a.get().astype(float), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["SGD", "SGD with momentum", "AdamW"])
def test_more_parameters_than_a_launch_takes(name: str) -> None:
    import cupy

    shapes: list[Any] = [(i % 5 + 1,) for i in range(300)]
    ours = steps(cupy, name, shapes, ["float32"], as_float64=False)
    with mg.kernels("numpy"):
        reference = steps(np, name, shapes, ["float32"], as_float64=True)
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a.get(), b, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize(
    ("name", "count", "launches"),
    [
        ("SGD", 1, 1),
        ("SGD", 139, 1),
        ("SGD", 140, 2),
        ("SGD with momentum", 108, 1),
        ("AdamW", 88, 1),
        ("AdamW", 89, 2),
    ],
)
def test_a_step_takes_few_launches_and_copies_nothing(name: str, count: int, launches: int, counted: Any) -> None:
    import cupy

    parameters = [mg.tensor(cupy.ones((i % 7 + 1, 3), np.float32), requires_grad=True) for i in range(count)]
    optimizer = OPTIMIZERS[name](parameters)
    for step in range(3):
        for p in parameters:
            p.grad = mg.tensor(cupy.ones(p.shape, np.float32))
        with counted() as cost:
            optimizer.step()
        assert cost.is_quiet()
        if step:  # the first one makes arrays of its own
            assert (cost.launches, cost.library_calls) == (launches, 0)


def test_optimisers_of_array_expressions_copy_nothing(counted: Any) -> None:
    """What takes no kernels: RMSprop, and all of them where kernels are not wanted."""
    import cupy

    for name, choice in [(x, "numpy") for x in OPTIMIZERS] + [("RMSprop", "auto")]:
        p = mg.tensor(cupy.ones((5, 3), np.float32), requires_grad=True)
        optimizer = {**OPTIMIZERS, "RMSprop": nn.RMSprop}[name]([p])
        for _ in range(2):
            p.grad = mg.tensor(cupy.ones((5, 3), np.float32))
            with mg.kernels(choice), counted() as cost:
                optimizer.step()
            assert cost.is_quiet()


def test_gradients_in_any_layout_and_state_from_elsewhere() -> None:
    import cupy

    found = []
    for xp in (cupy, np):
        p = mg.tensor(xp.asarray(normal(6, 8)), requires_grad=True)
        optimizer = nn.AdamW([p], lr=0.01)
        for i in range(4):
            p.grad = mg.tensor(xp.asarray(normal(8, 6, seed=i)).T)
            optimizer.step()
            if i == 1:
                state = optimizer.state_dict()
                optimizer = nn.AdamW([p], lr=0.5)
                optimizer.load_state_dict(state)
        found.append(p.numpy())
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtypes", [["float16"], ["float32"], ["float64"], ["float32", "float64"]], ids=str)
@pytest.mark.parametrize("max_norm", [1.0, 1e9])
def test_clip_grad_norm(dtypes: list[str], max_norm: float) -> None:
    import cupy

    gradients = [normal(n, seed=n, dtype=dtype) for n, dtype in zip(SIZES, itertools.cycle(dtypes), strict=False)]
    gradients.append(normal(4, 5).T)
    parameters = [mg.tensor(cupy.zeros(g.shape, g.dtype), requires_grad=True) for g in gradients]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = mg.tensor(cupy.asarray(g))
    kept = parameters[0].grad.data  # type: ignore[union-attr]
    norm = nn.clip_grad_norm(parameters, max_norm)
    expected = np.sqrt(sum((g.astype(float) ** 2).sum() for g in gradients))
    assert norm.dtype == ("float64" if "float64" in dtypes else "float32")
    np.testing.assert_allclose(norm.data.get(), expected, rtol=1e-6)
    np.testing.assert_array_equal(kept.get(), gradients[0])  # not changed in place
    factor = min(1.0, max_norm / (expected + 1e-6))
    for p, g in zip(parameters, gradients, strict=True):
        assert p.grad.dtype == g.dtype  # type: ignore[union-attr]
        rtol = 2e-3 if g.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(p.grad.data.get(), g.astype(float) * factor, rtol=rtol, atol=1e-7)  # type: ignore[union-attr]


def test_clip_grad_norm_takes_three_launches(counted: Any) -> None:
    import cupy

    parameters = [mg.tensor(cupy.ones((n, 3), np.float32), requires_grad=True) for n in range(1, 60)]
    for _ in range(2):
        for p in parameters:
            p.grad = mg.tensor(cupy.ones(p.shape, np.float32))
        with counted() as cost:
            nn.clip_grad_norm(parameters, 1.0)
    assert cost.is_quiet()
    assert cost.launches == 3


def test_a_norm_that_is_not_finite() -> None:
    import cupy

    for value in (np.nan, np.inf):
        p, q = (mg.tensor(cupy.zeros(3, np.float32), requires_grad=True) for _ in range(2))
        p.grad, q.grad = cupy.asarray([1, value, 2], np.float32), cupy.ones(3, np.float32)
        with pytest.raises(RuntimeError, match="nothing was scaled"):
            nn.clip_grad_norm([p, q], 1.0, error_if_nonfinite=True)
        assert (q.grad.data == 1).all()  # type: ignore[union-attr]
        assert not np.isfinite(nn.clip_grad_norm([p, q], 1.0).data.get())
        expected = [np.nan] * 3 if np.isnan(value) else [0, 0, 0]
        np.testing.assert_array_equal(q.grad.data.get(), expected)  # type: ignore[union-attr]


@pytest.mark.parametrize("width", [1, 5, 8, 300, 1040])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 65, 300])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_rows_that_repeat(rows: int, count: int, width: int) -> None:
    import cupy

    if count * width > 60_000:
        count = 100
    tokens = np.random.default_rng(rows + count).integers(-rows, rows, (count,))
    tokens[: count // 2] = tokens[0]  # one row that fills several chunks

    def f(w: mg.Tensor) -> mg.Tensor:
        return w[tokens if type(w.data) is np.ndarray else cupy.asarray(tokens)]

    close(*both(f, normal(rows, width)), 4)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("index", ["int8", "int32", "uint16"])
def test_rows_of_other_dtypes_and_axes(dtype: str, index: str) -> None:
    import cupy

    tokens = np.random.default_rng(0).integers(0, 7, (5, 30)).astype(index)

    def f(w: mg.Tensor) -> mg.Tensor:
        return w[tokens if type(w.data) is np.ndarray else cupy.asarray(tokens)]

    close(*both(f, normal(7, 2, 8, dtype=dtype)), 2)
    close(*both(f, normal(7, dtype=dtype)), 2)


def test_a_sum_of_many_small_numbers_is_rounded_once() -> None:
    """In float16, 2048 + 1 is 2048: what is added up in it stops there."""
    import cupy

    w = mg.tensor(cupy.zeros((2, 8), np.float16), requires_grad=True)
    w[cupy.ones(5000, np.int64)].sum().backward()
    assert w.grad.data.get().tolist() == [[0.0] * 8, [5000.0] * 8]  # type: ignore[union-attr]


def test_repeated_rows_are_added_without_waiting(counted: Any) -> None:
    import cupy

    tokens = cupy.asarray(np.random.default_rng(0).integers(0, 7, 300))
    w, g = mg.tensor(cupy.ones((7, 16), np.float32), requires_grad=True), cupy.ones((300, 16), np.float32)
    for _ in range(2):
        out = w[tokens]
        with counted() as cost:
            out.backward(g)
    assert cost.is_quiet()
    assert (cost.launches, cost.library_calls) == (6, 1)  # g copied, zeros, keys, a copy of them to sort, two sums
