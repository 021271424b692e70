"""mg.capture on CuPy arrays: no more launches, copies or waiting than in the step itself; kernels of one's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.backends import NAMESPACES
from microgradnd.noting import noted
from tests.capture_on_cupy import Pair, mlp, rows, tokens, transformer
from tests.training_steps import OPTIMIZERS, bits, replays

# Launches, copies, waiting


def _counts(found: SimpleNamespace) -> tuple[int, ...]:
    return found.launches, found.library_calls, found.copies, found.synchronizations


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_replay_copies_nothing_waits_for_nothing_and_launches_no_more_than_the_step(
    cupy: Any, counted: Any, optimizer: str, kind: str
) -> None:
    make = mlp if kind == "mlp" else lambda: nn.Sequential(transformer(), nn.Dropout(0.1, 0))
    pair = Pair(make, optimizer, max_norm=0.5)
    batches = rows(cupy, 5) if kind == "mlp" else tokens(cupy, 5)
    for batch in batches[:4]:
        pair.call(*batch)
    with counted() as plain:
        pair.plain(*batches[4])
    with counted() as found:
        pair.captured(*batches[4])
    assert replays(pair.captured) >= 2
    assert found.launches <= plain.launches
    assert found.library_calls <= plain.library_calls
    assert found.copies == found.synchronizations == 0


def test_an_argument_on_the_host_is_copied_once_in_each_replay(cupy: Any, counted: Any) -> None:
    model = mlp()
    step = mg.capture(lambda X: model(mg.tensor(X, device="cuda")))
    rng = np.random.default_rng(0)
    for _ in range(4):
        X = rng.standard_normal((5, 6), np.float32)
        assert bits(step(X)) == bits(model(mg.tensor(X, device="cuda")))
    with counted() as found:
        out = step(X)
    assert (found.copies, found.synchronizations) == (1, 0)
    assert type(out.data) is cupy.ndarray
    assert replays(step) == 3


def test_dropout_draws_its_seed_anew(cupy: Any, counted: Any) -> None:
    layers = [nn.Dropout(0.5, 0) for _ in range(2)]
    step = mg.capture(lambda x: layers[1](mg.tensor(x)))
    x, seen = cupy.ones(100), set()
    for _ in range(6):
        found = bits(step(x))
        assert found == bits(layers[0](mg.tensor(x)))
        seen.update(found)
    assert len(seen) == 6
    with counted() as found:
        step(x)
    assert _counts(found)[2:] == (0, 0)
    assert "= dropout(x, None, 0.5, 2.0, integers)" in step.source


# Kernels


def test_functions_that_launch_kernels_are_noted_as_a_whole(cupy: Any, counted: Any) -> None:
    code = r"""
    extern "C" __global__ void scaled(const float* x, float factor, float* out, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) out[i] = x[i] * factor;
    }"""
    kernel = cupy.RawKernel(code, "scaled")

    def launch(x: Any, factor: float, out: Any) -> None:
        kernel((1,), (64,), (x, np.float32(factor), out, np.int32(x.size)))

    @noted
    def scaled(x: Any, factor: float) -> Any:
        out = NAMESPACES[x.__class__].empty_like(x)  # within, arrays and functions are CuPy's own
        launch(x, factor, out)
        return out

    @noted
    def aligned(x: Any) -> int:
        return 2 if x.data.ptr % 16 == 0 else 3

    @noted(writes=lambda pairs, factor: [x for x, _ in pairs])
    def scale_all(pairs: list[Any], factor: float) -> None:
        for x, y in pairs:
            launch(y, factor, x)

    def forward(x: Any) -> tuple[Any, Callable[[Any], Any]]:
        return scaled(x, 2.0), lambda g: scaled(g, 2.0)

    kept, settings = cupy.zeros(4, np.float32), {"rate": 0.5}

    def step(x: Any, rate: float) -> Any:
        out, pullback = forward(x)
        scale_all([(kept, out)], rate)
        return pullback(out + x) * aligned(x)

    captured = mg.capture(step)
    for i in range(6):
        x, rate = (cupy.arange(5, dtype=np.float32) + i)[i % 2 : 4 + i % 2], i / 4
        assert bits(captured(x, rate), kept) == bits(6 * (2 + i % 2) * x, 2 * x * np.float32(rate))
    with counted() as found:
        captured(x, rate)
    assert (found.launches, found.copies, found.synchronizations) == (5, 0, 0)
    assert replays(captured) >= 4
    assert all(name in captured.source for name in ("scaled(x, 2.0)", "scale_all([(kept, "))
    assert settings == {"rate": 0.5}


def test_a_kernel_that_nobody_notes_is_refused(cupy: Any) -> None:
    kernel = cupy.RawKernel('extern "C" __global__ void f(const double* x, double* y) { *y = *x; }', "f")

    def step(x: Any) -> Any:
        out = cupy.zeros(1)
        kernel((1,), (1,), (x, out))
        return out

    captured = mg.capture(step)
    assert bits(captured(cupy.ones(1))) == bits(np.ones(1))
    with pytest.raises(mg.CaptureError, match="kernel of your own"):
        captured(cupy.ones(1))
