"""Sums of a compiled product and another array: a replay's product adds it, with the bits of the eager sum."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import bits, replays

if importlib.util.find_spec("numba") is None:
    pytest.skip("Numba is not installed", allow_module_level=True)
from microgradnd.kernels import numba_compiler, numba_threads  # noqa: F401 (in the order of loading)

pytestmark = pytest.mark.usefixtures("numba_products")
ROWS, WIDTH = 516, 128  # so large that the kernel computes products with a square matrix


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


W, V = mg.tensor(normal(WIDTH, WIDTH, seed=1) / 8), mg.tensor(normal(WIDTH, WIDTH, seed=2) / 8)
BIAS, ROW = mg.tensor(normal(WIDTH, seed=3)), mg.tensor(normal(WIDTH, seed=4))
FIXED = mg.tensor(normal(ROWS, WIDTH, seed=5))


def sublayers(x: mg.Tensor) -> mg.Tensor:
    for weight in (W, V):
        x = x + mg.linear(mg.layer_norm(x, ROW, BIAS), weight, BIAS)
    return x


def used_before(x: mg.Tensor) -> mg.Tensor:
    y = x @ W
    z = y.sum()
    return (x + y) * z


def written_between(x: mg.Tensor) -> mg.Tensor:
    factor = x.data * 2
    y = mg.tensor(factor) @ W
    factor[:] = 1
    return y + mg.tensor(factor)


# Steps, and how many of their products add an array.
STEPS: dict[str, tuple[Callable[[mg.Tensor], Any], int]] = {
    "before the product": (lambda x: x + x @ W, 1),
    "after it": (lambda x: mg.linear(x, W, BIAS) + x, 1),
    "an array that is there": (lambda x: x @ W + FIXED, 1),
    "a result": (lambda x: (x - 1) + mg.linear(x, W), 1),
    "one after another": (sublayers, 2),
    "leading axes": (lambda x: x.reshape(4, -1, WIDTH) + mg.linear(x.reshape(4, -1, WIDTH), W), 1),
    "goes on": (lambda x: mg.relu(x + x @ W) * 2 + 1, 1),
    "two products": (lambda x: x @ W + x @ V, 1),
    "handed out twice": (lambda x: [y := x + x @ W, y[1:]], 1),
    "the product is handed out": (lambda x: [y := x @ W, x + y], 0),
    "the product is used before": (used_before, 0),
    "and after": (lambda x: (y := x @ W) + x + y * 2, 0),
    "to itself": (lambda x: (y := x @ W) + y, 0),
    "a part of it": (lambda x: (x @ W)[1:] + x[1:], 0),
    "a row": (lambda x: x @ W + ROW, 0),
    "a number": (lambda x: x @ W + 1.0, 0),
    "a larger array": (lambda x: x @ W + x.reshape(1, ROWS, WIDTH) * np.ones((2, 1, 1), np.float32), 0),
    "transposed": (lambda x: x @ W + FIXED.reshape(WIDTH, ROWS).T, 0),
    "float64": (lambda x: x @ W + FIXED.astype(np.float64), 0),
    "a factor is changed between": (written_between, 0),
}


WITH_NAN = normal(ROWS, WIDTH, seed=6)
WITH_NAN[3, :5] = [np.nan, -np.nan, np.inf, -np.inf, -0.0]
WITH_NAN[4:6] = [[np.inf], [-np.nan]]


def products_with_residuals(captured: Any) -> int:
    (recording,) = captured.recordings
    found = [x for x in recording.program.body if x.kind == "kernel" and x.name == "matmul"]
    assert found
    return sum(x.args[-2].shape != (0, 0) for x in found)


@pytest.mark.parametrize("name", STEPS)
def test_sums_of_products(name: str) -> None:
    step, count = STEPS[name]
    captured = mg.capture(step)
    for seed in range(5):
        x = mg.tensor(normal(ROWS, WIDTH, seed=seed))
        results, expected = ([r] if type(r := f(x)) is mg.Tensor else r for f in (captured, step))
        assert bits(*results) == bits(*expected)
    assert replays(captured) == 3
    assert products_with_residuals(captured) == count


@pytest.mark.parametrize("name", ["before the product", "after it", "an array that is there"])
def test_nan_and_infinity(name: str) -> None:
    """Of two NaN a sum is either: its sign is no part of the result."""
    step, _ = STEPS[name]
    captured = mg.capture(step)
    with np.errstate(invalid="ignore"):
        for _ in range(5):
            np.testing.assert_array_equal(captured(mg.tensor(WITH_NAN)).data, step(mg.tensor(WITH_NAN)).data)
    assert replays(captured) == 3


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_any_number_of_threads(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    team = numba_threads.Team(parts)
    monkeypatch.setattr(numba_threads, "team", team)
    captured = mg.capture(sublayers)
    for seed in range(4):
        x = mg.tensor(normal(ROWS, WIDTH, seed=seed))
        assert bits(captured(x)) == bits(sublayers(x))
    assert products_with_residuals(captured) == 2
    team.end()


def test_saved_by_numpy_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = mg.tensor(normal(ROWS, WIDTH))
    captured = mg.capture(sublayers)
    for _ in range(3):
        captured(x)
    captured.save(tmp_path / "step_with_residuals.py", x)
    monkeypatch.syspath_prepend(tmp_path)
    step = importlib.import_module("step_with_residuals").step
    np.testing.assert_allclose(step(x.data), sublayers(x).data, rtol=1e-4, atol=1e-5)


def test_training_with_a_residual_connection() -> None:
    results = []
    for wrap in (lambda step: step, mg.capture):
        x, model = mg.tensor(FIXED, requires_grad=True), nn.Linear(WIDTH, WIDTH, rng=0)
        optimizer = nn.SGD([x, *model.parameters()], 0.1)

        def step(target: mg.Tensor, x: mg.Tensor = x, model: nn.Module = model, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = ((x + model(x) - target) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss

        step = wrap(step)
        results.append([step(mg.tensor(normal(ROWS, WIDTH, seed=seed))) for seed in range(5)])
        results[-1] += [x, x.grad, *model.parameters()]
    assert products_with_residuals(step) == 2  # of the sum and of its gradient, which has a buffer of its own
    assert bits(*results[0]) == bits(*results[1])
