"""Compiled updates and the clipping of gradients against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.numba_against_numpy import SMALL, normal

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_parts  # isort: skip

pytestmark = pytest.mark.usefixtures("numba_kernels")

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


@pytest.mark.parametrize("make", [nn.SGD, nn.Adam, nn.RMSprop])
def test_a_rate_that_is_an_array_of_one_number(make: Any) -> None:
    found = []
    for kernels in ("numpy", "numba"):
        with mg.kernels(kernels):
            p = mg.tensor(normal(SMALL + 1), requires_grad=True)
            optimizer = make([p], lr=1.0)
            optimizer.param_groups[0]["lr"] = np.array(0.1)
            p.grad = mg.tensor(normal(SMALL + 1, seed=1))
            optimizer.step()
            found.append(p.numpy())
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-7)


def test_no_decay_of_infinite_parameters() -> None:
    for make in OPTIMIZERS[:1]:
        w = mg.tensor(np.full(10_000, np.inf, np.float32), requires_grad=True)
        w.grad = mg.tensor(np.ones(10_000, np.float32))
        make([w]).step()
        assert (w.data == np.inf).all()


def test_state_saved_in_another_byte_order() -> None:
    def trained(steps: nn.Optimizer, w: mg.Tensor, count: int) -> nn.Optimizer:
        for i in range(count):
            w.grad = normal(40, 30, seed=i)
            steps.step()
        return steps

    w = mg.tensor(normal(40, 30), requires_grad=True)
    state = trained(nn.Adam([w], 0.01), w, 3).state_dict()
    found = []
    for order in "<>":
        copy = mg.tensor(w.data.copy(), requires_grad=True)
        other = nn.Adam([copy], 0.01)
        arrays = [
            {k: x.astype(f"{order}f4") if hasattr(x, "shape") else x for k, x in s.items()} for s in state["state"]
        ]
        other.load_state_dict(state | {"state": arrays})
        trained(other, copy, 2)
        found.append(copy.data)
    np.testing.assert_array_equal(*found)
