"""mg.capture: shapes that depend on values, and on integers and booleans of NumPy's; integers that decide none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import bits, replays

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.arange(1.0, 4.0)


def test_shapes_that_depend_on_values() -> None:
    def plain(x: Any) -> Any:
        chosen = x[x > 0]
        return chosen * 2, chosen.sum() / chosen.size, np.flatnonzero(x > 1), np.unique(x)

    step = mg.capture(plain)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.integers(-3, 4, 4).astype(float)
        x[0] = 1.0
        for found, expected in zip(step(x), plain(x), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "count",
    [
        lambda x: np.size(np.flatnonzero(x > 1)),
        lambda x: np.shape(x[x > 1])[0],
        lambda x: (x[x > 1] * 2).size,
        lambda x: len(mg.exp(mg.tensor(x)[x > 1]) + 1),
        lambda x: sum(1 for _ in x[x > 1] - 1),
        lambda x: np.concatenate([x[x > 1], x]).nbytes,
        lambda x: np.outer(x[x > 1], x).sum(axis=1).shape[0],
        lambda x: np.ones_like(x[x > 1]).sum(),
        lambda x: mg.zeros_like(mg.tensor(x[x > 1])).size,
        lambda x: np.full_like(x[x > 1], 2.0).shape[0],
        lambda x: np.squeeze(x[x > 1]).ndim,
        lambda x: np.ndim(x[x > 1].squeeze()),
        lambda x: np.outer(x[x > 1], x).strides[1] + np.outer(x, x[x > 1]).strides[0],
        lambda x: 1 if np.outer(x[x > 1], x).T.flags.c_contiguous else 2,
    ],
)
def test_shapes_that_depend_on_values_and_are_asked_for_alone(count: Any) -> None:
    """Where the values themselves are not used: of what is selected, of what is computed from it, in every way."""
    step = mg.capture(lambda x: x * count(x))
    for numbers in ((1, 2, 3), (0, 2, 4), (1, 5, 6), (1, 7, 8), (1, 1, 3), (2, 3, 4), (0, 0, 2), (0, 9, 9)):
        x = np.array(numbers, float)
        assert bits(step(x)) == bits(x * count(x)), numbers
    assert replays(step) >= 2


@pytest.mark.parametrize(
    "use",
    [
        lambda x, n: x.T.reshape(n, -1),
        lambda x, n: np.reshape(x, (n, -1)).shape[0] * x,
        lambda x, n: mg.tensor(x.T).reshape(n, -1).max(axis=0).sum(),
        lambda x, n: x.sum(axis=n - 2),
        lambda x, n: np.concatenate([x, x], n - 2).shape[0] * x,
        lambda x, n: np.broadcast_to(x, (n, 3, 4)).shape[0] * x,
        lambda x, n: x.transpose(n - 2, 3 - n).shape[0] * x,
        lambda x, n: mg.expand_dims(mg.tensor(x), n - 2).shape[0] * x,
        lambda x, n: np.eye(n, like=x),
        lambda x, n: np.full((n,), 2.0, like=x),
        lambda x, n: x.take([0, 1], n - 2).shape[0] * x,
        lambda x, n: x[n > 2].size * x,
        lambda x, n: x[np.array_equal(x[0, 0] + n, 2.0)].size * x,
    ],
)
def test_shapes_that_numbers_of_numpys_decide(use: Any) -> None:
    x = np.arange(12.0).reshape(3, 4)
    step = mg.capture(lambda x, n: use(x, n))
    for n in (2, 2, 2, 2, 3, 2, 3, 3):
        expected, found = (
            np.asarray(y.numpy() if isinstance(y, mg.Tensor) else y) for y in (use(x, n), step(x, np.int64(n)))
        )
        assert found.shape == expected.shape
        assert bits(found) == bits(expected), n


def test_lengths_of_draws_that_values_decide() -> None:
    rngs = [np.random.default_rng(0) for _ in range(2)]
    step = mg.capture(lambda x, rng: rng.random(x.argmax()).sum() + rng.choice(4, x.argmax()).size)
    for largest in (2, 2, 2, 2, 1, 3, 2, 2):
        x = np.eye(4)[largest]
        expected = rngs[0].random(x.argmax()).sum() + rngs[0].choice(4, x.argmax()).size
        assert step(x, rngs[1]) == expected


@pytest.mark.parametrize(
    "use",
    [
        lambda x, n, rng: x * rng.integers(0, n + 1),
        lambda x, n, rng: x * rng.integers(0, n + 1, 3),
        lambda x, n, rng: x + rng.poisson(n) + rng.normal(n, 1.0, 3),
        lambda x, n, rng: np.roll(x, rng.integers(0, 3), axis=0) + np.roll(x, n),
        lambda x, n, rng: np.dot(x.astype(np.float32), n.astype(np.int8)) + np.percentile(x, n),
        lambda x, n, rng: np.clip(x, a_min=0, a_max=n) + np.take(x, indices=n) + np.tril(x, n),
    ],
)
def test_integers_that_are_computed_with_stay_free(use: Any) -> None:
    rngs = [np.random.default_rng(0) for _ in range(2)]
    step = mg.capture(lambda x, n, rng: use(x, n, rng))
    for i in range(10):
        n = np.int64(i % 3)
        assert bits(step(X, n, rngs[0])) == bits(use(X, n, rngs[1])), i
    assert replays(step) == 8


def test_metrics_after_an_update_are_recorded() -> None:
    """Integers that are computed with are no shapes."""
    w = mg.tensor(np.zeros((3, 2)), requires_grad=True)
    optimizer = nn.SGD([w], 0.1)

    @mg.capture
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        logits = mg.tensor(x) @ w
        nn.cross_entropy(logits, y).backward()
        optimizer.step()
        correct = (logits.data.argmax(axis=1) == y).sum()
        return correct / 5, np.where(correct > 1, correct, 0), np.clip(correct, 0, 2), np.mean(correct)

    for i in range(6):
        step(np.random.default_rng(i).standard_normal((5, 3)), np.arange(5) % 2)
    assert replays(step) == 4


def test_a_selection_of_one_element_that_is_squeezed() -> None:
    for use in (lambda x: (np.squeeze(x[x > 1]) * 2).ndim, lambda x: mg.exp(mg.squeeze(mg.tensor(x)[x > 1])).ndim):
        step = mg.capture(lambda x, use=use: x * use(x))
        for x in (*[[0.0, 0, 2]] * 4, [0.0, 3, 2], [0.0, 0, 5]):
            assert bits(step(np.array(x))) == bits(np.array(x) * use(np.array(x)))


AFTER: dict[str, Any] = {
    "confusion matrix": lambda x, counts: np.add.at(counts, (x.argmax(axis=1), x.argmin(axis=1)), 1),
    "average": lambda x, counts: np.average(x, axis=0),
    "argpartition": lambda x, counts: np.argpartition(x, 1, axis=1),
    "corrcoef": lambda x, counts: np.corrcoef(x),
    "count_nonzero": lambda x, counts: np.count_nonzero(x > 0, axis=1),
    "digitize": lambda x, counts: np.digitize(x, [0.0]),
    "fft": lambda x, counts: np.fft.rfft(x),
    "interp": lambda x, counts: np.interp(x, [-1, 1], [0, 1]),
    "isclose": lambda x, counts: np.isclose(x, 0),
    "isin": lambda x, counts: np.isin(x.argmax(axis=1), [1, 2]),
    "nan_to_num": lambda x, counts: np.nan_to_num(x),
    "nanmean": lambda x, counts: np.nanmean(x, axis=0),
    "searchsorted": lambda x, counts: np.searchsorted(np.array([0.0, 1.0]), x.ravel()),
    "svd": lambda x, counts: np.linalg.svd(x, compute_uv=False),
}


@pytest.mark.parametrize("name", AFTER)
def test_metrics_of_fixed_shapes_after_an_update(name: str) -> None:
    def train(wrap: Any) -> tuple[list[Any], Any]:
        w, counts = mg.tensor(np.ones(3), requires_grad=True), np.zeros((3, 3), int)

        @wrap
        def step(x: Any) -> Any:
            (w * x).sum().backward()
            w.data -= 0.1 * w.grad.data  # type: ignore[union-attr]
            w.grad = None
            return AFTER[name](x * w.data, counts)

        rng = np.random.default_rng(0)
        return [(bits(step(rng.normal(size=(5, 3)))), counts.tolist()) for _ in range(6)], step

    found, step = train(mg.capture)
    assert found == train(lambda step: step)[0]
    assert replays(step) == 4


@pytest.mark.parametrize(
    ("select", "named"),
    [
        (lambda x: np.bincount(x.argmax(axis=1)), r"calls for np\.bincount,"),
        (lambda x: x[x > 0], r"calls for x\[mask\],"),
    ],
)
def test_other_shapes_after_an_update_are_refused_by_the_name_of_what_gives_them(select: Any, named: str) -> None:
    w = mg.tensor(np.ones(3), requires_grad=True)

    @mg.capture
    def step(x: Any) -> Any:
        w.data *= 0.9
        return select(x)

    step(np.eye(3))
    with pytest.raises(mg.CaptureError, match=named):
        step(np.eye(3))
