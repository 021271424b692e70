"""Steps of random operations, views and changes in place: replays give the bits of the step, and hold what is given."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from microgradnd.backends import numpy_backend
from microgradnd.kernels import array_kernels
from microgradnd.recording import chains, program
from tests.training_steps import bits, replays

SHAPE = ROWS, WIDTH = 12, 64  # a product of this with a square matrix fills the tiles of the kernel
LENGTHS, SEEDS, CALLS = (10, 30), 120, 5


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, np.float32)


W = normal(np.random.default_rng(0), WIDTH, WIDTH) / 8

# Of two arrays of the shape, and a number below 1, what decides among variants.
NEW: list[Callable[[Any, Any, float], Any]] = [
    lambda x, y, u: x + y,
    lambda x, y, u: x * y,
    lambda x, y, u: x - y,
    lambda x, y, u: x * 0.5 + 1,
    lambda x, y, u: np.tanh(x),
    lambda x, y, u: np.maximum(x, y) if u < 0.5 else np.where(x > 0, x, y),
    lambda x, y, u: x * y[0] + y[:, :1],
    lambda x, y, u: x.astype(np.float64) if u < 0.5 else x.astype(np.float64).astype(np.float32),
    lambda x, y, u: np.concatenate([x[:6], y[6:]]) if u < 0.5 else np.concatenate([x, y]),
    lambda x, y, u: x.copy(),
    lambda x, y, u: np.zeros(SHAPE, np.float32, like=x),
    lambda x, y, u: x.T if u < 0.5 else x[::-1],
    lambda x, y, u: x[1:, ::2] if u < 0.5 else x[2:5],
    lambda x, y, u: x.reshape(-1) if u < 0.5 else x.reshape(4, 3, WIDTH),
    lambda x, y, u: x.sum(axis=0) if u < 0.5 else x.max(axis=1, keepdims=True),
    lambda x, y, u: (mg.tensor(x) @ mg.tensor(W)).data,
    lambda x, y, u: (mg.tensor(x) @ mg.tensor(W)).data,
    lambda x, y, u: y + (mg.tensor(x) @ mg.tensor(W)).data,
    lambda x, y, u: mg.linear(mg.tensor(x), mg.tensor(W), mg.tensor(W[0])).data + y,
    lambda x, y, u: (mg.relu if u < 0.3 else mg.gelu if u < 0.6 else mg.softmax)(mg.tensor(x)).data,
    lambda x, y, u: mg.layer_norm(mg.tensor(x)).data,
]


def add(x: Any, y: Any) -> None:
    x += y


def double_rows(x: Any, y: Any) -> None:
    x[2:6] *= 2


def set_row(x: Any, y: Any) -> None:
    x[3] = y[ROWS // 2]


IN_PLACE: list[Callable[[Any, Any], None]] = [add, double_rows, set_row]


def random_step(seed: int, state: list[mg.Tensor]) -> Callable[[Any, Any], list[Any]]:
    """A step that gives out some of what it makes, and gives tensors other arrays; the same for the same seed."""
    plan = np.random.default_rng(seed)
    operations = plan.random((plan.integers(*LENGTHS), 5)).tolist()
    given = plan.random(plan.integers(1, 8)).tolist()

    def chosen(among: list[Any], u: float) -> Any:
        return among[int(u * len(among))]

    def step(x: Any, y: Any) -> list[Any]:
        arrays, made = [x, y], [x + 0]
        for kind, which, u, v, w in operations:
            whole = [a for a in arrays if a.shape == SHAPE and a.dtype == np.float32]
            a, b = chosen(whole, u), chosen(whole, v)
            changeable = [m for m in made if m.shape == SHAPE]
            if kind < 0.7:
                made.append(chosen(NEW, which)(a, b, w))
                arrays.append(made[-1])
            elif kind < 0.9:
                chosen(IN_PLACE, which)(chosen(changeable, w), a)
            else:
                tensor = chosen(state, which)
                tensor.data = tensor.data * 0.5 + a if w < 0.5 else tensor.data - a * 0.1
        return [mg.tensor(chosen(made, u)) for u in given]

    return step


@pytest.fixture(params=["numpy", "numba"])
def everything_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Small arrays are treated as large ones are."""
    monkeypatch.setattr(program, "LARGE_RESULT", 5 << 10)  # of float64 alone, and of two arrays together
    monkeypatch.setattr(chains, "LARGE", 64)
    monkeypatch.setattr(chains, "BLOCK", 256)
    if request.param == "numba":
        if importlib.util.find_spec("numba") is None:
            pytest.skip("Numba is not installed")
        request.getfixturevalue("numba_products")
        monkeypatch.setattr(array_kernels, "LARGE_PRODUCT", 1)
        monkeypatch.setattr(numpy_backend, "LARGE_PRODUCT", 1)
    with mg.kernels(request.param), np.errstate(all="ignore"):
        yield


def adds_residual(x: Any) -> bool:
    return x.kind == "kernel" and x.name == "matmul" and 0 not in x.args[-2].shape


@pytest.mark.usefixtures("everything_large")
def test_random_steps() -> None:
    recordings: list[Any] = []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        start = [normal(rng, *SHAPE) for _ in range(2)]
        states = [[mg.tensor(x.copy()) for x in start] for _ in range(2)]
        plain, captured = random_step(seed, states[0]), mg.capture(random_step(seed, states[1]))
        held: list[tuple[Any, Any]] = []
        for call in range(CALLS):
            data = [normal(rng, *SHAPE) for _ in range(2)]
            arguments = [[x.copy() for x in data] for _ in range(2)]
            expected, found = plain(*arguments[0]), captured(*arguments[1])
            assert [x.data.dtype for x in found] == [x.data.dtype for x in expected]
            assert bits(*found, *states[1], *arguments[1]) == bits(*expected, *states[0], *arguments[0]), (seed, call)
            assert all(bits(x) == bits(copy) for x, copy in held), (seed, call)
            own = [*arguments[1], *(x.data for x in states[1])]  # a step may give out these
            held += [(x, x.data.copy()) for x in found if not any(np.shares_memory(x.data, y) for y in own)]
        assert replays(captured) >= CALLS - 3, seed  # a kernel is compiled in the first call that needs it
        recordings += captured.recordings
    bodies = [x.program.body for x in recordings]
    assert sum(bool(x.program.chains) for x in recordings) > SEEDS / 4
    assert mg.kernels.current == "numpy" or sum(any(map(adds_residual, body)) for body in bodies) > SEEDS / 8
