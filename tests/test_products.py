"""The compiled product of matrices against NumPy's in float64, at sizes around its tiles and blocks, in any layout."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.kernels import array_kernels

if importlib.util.find_spec("numba") is None:
    pytest.skip("Numba is not installed", allow_module_level=True)
# The first one imports Numba, and makes settings if nobody else has done so before.
from microgradnd.kernels import numba_compiler, numba_matmul, numba_parts, numba_threads  # isort: split

import numba

from microgradnd.kernels.numba_matmul import DEPTH, HEIGHT, TILE_COLUMNS, TILE_ROWS, matmul

ROWS = [1, TILE_ROWS - 1, TILE_ROWS, HEIGHT - 1, HEIGHT, HEIGHT + 1, 2 * HEIGHT + 2]
COLUMNS = [1, 15, TILE_COLUMNS - 1, TILE_COLUMNS, TILE_COLUMNS + 1, 3 * TILE_COLUMNS + 17]
DEPTHS = [1, 2, 15, 17, DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 3]
# All pairs of rows and columns, each with one depth, and every depth several times.
SHAPES = [(m, n, DEPTHS[(3 * i + 5 * j) % len(DEPTHS)]) for i, m in enumerate(ROWS) for j, n in enumerate(COLUMNS)]


pytestmark = pytest.mark.usefixtures("numba_products")


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def in_columns(x: Any) -> Any:
    """The same matrix, with columns that are contiguous."""
    return np.ascontiguousarray(x.T).T


def spaced(x: Any) -> Any:
    """The same matrix, as a part of a wider one."""
    return np.pad(x, ((1, 2), (3, 5)))[1:-2, 3:-5]


def backwards(x: Any) -> Any:
    """The same matrix, with its last row first in memory."""
    return x[::-1].copy()[::-1]


LAYOUTS = [np.asarray, in_columns, spaced, lambda x: spaced(x.T).T, backwards, lambda x: backwards(x.T).T]
NO_BIAS, NO_RESIDUAL = np.empty(0, np.float32), np.empty((0, 0), np.float32)


def assert_product(out: Any, a: Any, b: Any, bias: Any = NO_BIAS) -> None:
    exact, magnitude = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    if bias.size:
        exact, magnitude = exact + bias, magnitude + np.abs(bias)
    assert out.dtype == np.float32
    assert out.shape == exact.shape
    # Sums of DEPTH products each: |error| <= (DEPTH + K / DEPTH) eps sum |a b| (Higham 2002, section 3.1).
    bound = (DEPTH + a.shape[1] / DEPTH) * np.finfo(np.float32).eps * magnitude
    assert np.all(np.abs(out - exact) <= bound)


@functools.cache
def part() -> Any:
    """The kernel as a function of its own: (begin, end, ...)."""
    return numba.njit(matmul._signature, fastmath=numba_compiler.SUMS, error_model="numpy")(matmul._function)


def product(a: Any, b: Any, by_columns: bool, bias: Any = NO_BIAS, parts: int = 1, residual: Any = NO_RESIDUAL) -> Any:
    """By the kernel, in parts, into a matrix whose surroundings have to stay as they are."""
    m, n = a.shape[0], b.shape[1]
    around = np.full((m + 2, n + 7), np.nan, np.float32)
    out = around[1:-1, 3:-4]
    count = -(-n // TILE_COLUMNS) if by_columns else -(-m // TILE_ROWS)
    edges = [count * i // parts for i in range(parts + 1)]
    for begin, end in itertools.pairwise(edges):
        part()(begin, end, by_columns, a, b, bias, residual, out)
        outside = around.copy()
        last = min(n, end * TILE_COLUMNS) if by_columns else min(m, end * TILE_ROWS)
        outside[1 : m + 1 if by_columns else 1 + last, 3 : 3 + last if by_columns else 3 + n] = np.nan
        assert np.isnan(outside).all()
    return out


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_around_edges_of_tiles_and_blocks(shape: tuple[int, int, int], by_columns: bool) -> None:
    m, n, k = shape
    a, b, bias, residual = normal(m, k), normal(k, n, seed=1), normal(n, seed=2), normal(m, n, seed=3)
    for i, (layout_of_a, layout_of_b) in enumerate(itertools.product(LAYOUTS, LAYOUTS)):
        with_bias = bias if i % 2 else NO_BIAS
        x, y = layout_of_a(a), layout_of_b(b)
        out = product(x, y, by_columns, with_bias, parts=1 + i % 3)
        assert_product(out, a, b, with_bias)
        added = product(x, y, by_columns, with_bias, 1 + i % 3, residual)
        np.testing.assert_array_equal(added, out + residual)


def test_same_bits_in_any_parts() -> None:
    a, b = normal(2 * HEIGHT + 3, DEPTH + 1), normal(DEPTH + 1, 5 * TILE_COLUMNS + 2, seed=1)
    whole = product(a, b, by_columns=False)
    for by_columns, parts in [(False, 2), (False, 5), (True, 1), (True, 2), (True, 4)]:
        np.testing.assert_array_equal(product(a, b, by_columns, parts=parts), whole)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row_and_column(wrong: float) -> None:
    a, b = normal(TILE_ROWS + 1, 20), normal(20, TILE_COLUMNS + 1, seed=1)
    a[-1, 3] = b[7, -1] = wrong
    out = product(a, b, by_columns=False)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(np.isfinite(out), np.isfinite(a.astype(float) @ b))
    assert_product(out[:-1, :-1], a[:-1], b[:, :-1])


def test_nothing_beyond_the_matrices_is_read() -> None:
    """They end where memory that may not be read begins: a process that does so is ended."""
    if sys.platform != "linux":
        pytest.skip("needs mmap and mprotect of Linux")
    program = """
        import ctypes, mmap
        from microgradnd.kernels import numba_compiler
        from microgradnd.kernels.numba_matmul import TILE_COLUMNS, TILE_ROWS, matmul
        import numpy as np

        libc, PAGE = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE

        def at_the_end(m, n):
            size = m * n * 4
            pages = -(-size // PAGE)
            memory = mmap.mmap(-1, (pages + 1) * PAGE)
            start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            assert libc.mprotect(ctypes.c_void_p(start + pages * PAGE), PAGE, 0) == 0
            x = np.frombuffer(memory, np.float32, m * n, pages * PAGE - size).reshape(m, n)
            x[...] = 1
            return x

        for m, n, k in [(5, 3, 2), (7, 65, 17), (150, 70, 259)]:
            for by_columns in (False, True):
                for turned in range(4):
                    a = at_the_end(k, m).T if turned & 1 else at_the_end(m, k)
                    b = at_the_end(n, k).T if turned & 2 else at_the_end(k, n)
                    out = at_the_end(m, n)
                    count = -(-n // TILE_COLUMNS) if by_columns else -(-m // TILE_ROWS)
                    matmul(count, 1, by_columns, a, b, at_the_end(1, n)[0], at_the_end(m, n), out)
                    assert (out == k + 2).all()
        print("all of them")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all of them", done


@pytest.mark.parametrize("threads", ["one thread", "all threads"])
@pytest.mark.parametrize("leading", [(1200,), (3, 400)])
def test_linear_and_its_gradients(
    leading: tuple[int, ...], threads: str, monkeypatch: pytest.MonkeyPatch, four_threads: Any
) -> None:
    monkeypatch.setattr(numba_threads, "SHARE", 1 if threads == "all threads" else 1 << 40)
    calls = []
    run = numba_parts.Kernel.run
    monkeypatch.setattr(numba_parts.Kernel, "run", lambda self, *args: (calls.append(self.__name__), run(self, *args)))
    x, weight, bias, g = (
        normal(*leading, 64),
        normal(64, 128, seed=1),
        normal(128, seed=2),
        normal(*leading, 128, seed=3),
    )
    tensors = [mg.tensor(v, requires_grad=True) for v in (x, weight, bias)]
    out = mg.linear(*tensors)
    out.backward(mg.tensor(g))
    assert calls.count("matmul") == 3
    rows, g_rows = x.reshape(-1, 64), g.reshape(-1, 128)
    assert_product(out.data.reshape(-1, 128), rows, weight, bias)
    assert_product(tensors[0].grad.data.reshape(-1, 64), g_rows, weight.T)
    assert_product(tensors[1].grad.data, rows.T, g_rows)


@pytest.mark.parametrize(
    "x", [normal(1200, 128)[:, ::2], normal(1200, 64).astype(np.float64)], ids=["strided", "float64"]
)
def test_others_are_left_to_numpy(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(numba_matmul, "matmul", refuse)
    weight = normal(64, 128).astype(x.dtype)
    np.testing.assert_array_equal(mg.linear(mg.tensor(x), mg.tensor(weight)).data, x.dot(weight))
    assert x.size * 128 >= array_kernels.LARGE_PRODUCT


@pytest.mark.parametrize(("m", "n", "filled"), [(600, 64, True), (6, 1000, True), (600, 65, False), (1, 1000, False)])
def test_thin_results_are_left_to_numpy(m: int, n: int, filled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_matmul, "TILE_COLUMNS", 64)
    out = numba_matmul.product(np.ones((m, 3), np.float32), np.ones((3, n), np.float32), None)
    assert (out is not None) == filled


def test_layouts_that_are_read() -> None:
    x = normal(8, 8)
    packed = np.zeros((8, 8), np.dtype([("number", np.float32), ("flag", np.int16)]))["number"]
    repeated = np.broadcast_to(x[0], (8, 8)), np.broadcast_to(x[:, :1], (8, 8))
    assert all(map(numba_matmul.in_lines, (x, x.T, x[:, :5], x[::2], x[::-1], repeated[0])))
    assert not any(map(numba_matmul.in_lines, (x[:, ::2], x[::2, ::2], packed, packed.T, x[:, ::-1], repeated[1])))


def test_repeated_rows() -> None:
    a, b = np.broadcast_to(normal(20), (50, 20)), np.broadcast_to(normal(70, seed=1), (20, 70))
    assert_product(product(a, b, by_columns=False), a, b)


def test_more_columns_than_are_copied_at_a_time() -> None:
    a, b, bias = (
        normal(7, 5),
        normal(5, numba_matmul.WIDTH + TILE_COLUMNS + 1, seed=1),
        normal(numba_matmul.WIDTH + TILE_COLUMNS + 1),
    )
    b, residual = b[:, : bias.size], normal(7, bias.size, seed=2)
    for by_columns in (False, True):
        out = product(a, b, by_columns, bias)
        assert_product(out, a, b, bias)
        np.testing.assert_array_equal(product(a, b, by_columns, bias, 1, residual), out + residual)


def test_without_compiling_numpy_computes() -> None:
    program = """
        import microgradnd as mg, numpy as np
        x = mg.tensor(np.ones((600, 64), np.float32))
        print((x @ mg.tensor(np.ones((64, 320), np.float32))).data[0, 0])
        mg.show_config()
    """
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("64.0\n")
    assert "'auto': NumPy" in done.stdout


@pytest.mark.parametrize(
    ("features", "threads", "faster"),
    [
        ("+avx2,+fma", 2, True),
        ("+avx2,+fma", 4, True),
        ("+avx2,+fma", 5, False),
        ("+avx2", 2, False),
        ("+fma", 2, False),
        ("+avx512f", 2, True),
        ("+avx2,+fma,-avx", 2, False),
        ("+avx512f,-avx2", 2, False),
    ],
)
def test_where_it_is_the_faster_one(features: str, threads: int, faster: bool) -> None:
    """The choice that the others override: AVX2 with FMA or AVX-512, few cores, and NumPy's own wheel."""
    program = "from microgradnd.kernels import numba_compiler, numba_matmul as m; print(m.FASTER)"
    settings = {"NUMBA_NUM_THREADS": str(threads), "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    command, environment = [sys.executable, "-c", program], {**os.environ, **settings}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    blas: Any = np.show_config(mode="dicts")
    openblas = "openblas" in blas["Build Dependencies"]["blas"]["name"]
    assert done.stdout.strip() == str(faster and openblas)


def test_captured_step_is_the_eager_one() -> None:
    model, data = nn.Sequential(nn.Linear(64, 256, rng=0), nn.ReLU(), nn.Linear(256, 64, rng=1)), normal(600, 64)
    optimiser = nn.SGD(model.parameters(), lr=0.1)

    def step(x: mg.Tensor) -> mg.Tensor:
        optimiser.zero_grad()
        loss = ((model(x) - x) ** 2).mean()
        loss.backward()
        optimiser.step()
        return loss

    start = {name: p.data.copy() for name, p in model.named_parameters()}
    eager = [float(step(mg.tensor(data)).data) for _ in range(4)]
    for name, p in model.named_parameters():
        p.data[...] = start[name]
    captured = mg.capture(step)
    assert [float(captured(mg.tensor(data)).data) for _ in range(4)] == eager
    assert len(re.findall(r"^ +matmul\(", captured.source, re.MULTILINE)) == 5
