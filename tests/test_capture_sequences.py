"""Compiled kernels and products in a row, done by one call in replays: the same bits as one after another."""

from __future__ import annotations

import gc
import importlib.util
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import bits

if importlib.util.find_spec("numba") is None:
    pytest.skip("Numba is not installed", allow_module_level=True)
# The first one imports Numba, and makes settings if nobody else has done so before.
from microgradnd.kernels import numba_compiler  # isort: skip # noqa: F401
from microgradnd.kernels import numba_blas, numba_kernels, numba_matmul, numba_sequences

pytestmark = pytest.mark.usefixtures("numba_kernels")


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SHAPES = [(32, 64, 128), (2, 2, 2), (33, 7, 65), (128, 32, 10), (300, 3, 5)]


@pytest.mark.skipif(not numba_blas.SGEMM, reason="NumPy's BLAS library is not found")
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_have_the_bits_of_numpy(shape: tuple[int, int, int], transposed: tuple[bool, bool]) -> None:
    m, k, n = shape
    a = normal(k, m, seed=1).T if transposed[0] else normal(m, k, seed=1)
    b = normal(n, k, seed=2).T if transposed[1] else normal(k, n, seed=2)
    out, sums = np.full((m, n), np.nan, np.float32), np.full(n, np.nan, np.float32)
    rows = np.ascontiguousarray(b)
    calls = numba_sequences.in_one_call(
        (numba_blas.dot, 1, a, b, out), (numba_blas.vector_dot, 1, np.ones(k, np.float32), rows, sums)
    )
    calls()
    assert bits(out, sums) == bits(a.dot(b), np.ones(k, np.float32).dot(rows))
    b *= 2  # in place: the next time other numbers are read
    calls()
    assert bits(out) == bits(a.dot(b))


def test_numpys_blas_library_is_found_where_it_is_the_one_of_its_wheels() -> None:
    blas: Any = np.show_config(mode="dicts")
    if blas["Build Dependencies"]["blas"]["name"] == "scipy-openblas":
        assert numba_blas.SGEMM
        assert numba_blas.SGEMV


def test_calls_hold_their_arrays() -> None:
    x, bias = normal(40, 50), normal(50, seed=1)
    expected = np.maximum(x + bias, 0)
    numba_kernels.bias_relu(0, 1, x, bias)
    calls, alive = numba_sequences.in_one_call((numba_kernels.bias_relu.compiled, 40, x, bias)), weakref.ref(bias)
    del bias
    gc.collect()
    calls()
    np.testing.assert_array_equal(x, expected)
    assert alive() is not None
    del calls
    assert alive() is None


def classifier(hidden: int = 40) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, hidden, rng=0), nn.ReLU(), nn.LayerNorm(hidden), nn.Linear(hidden, 12, rng=1))


def training(model: Any, optimizer: Any) -> Callable[[Any, Any], mg.Tensor]:
    def step(x: Any, y: Any) -> mg.Tensor:
        optimizer.zero_grad()
        loss = mg.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("optimizer", [nn.SGD, nn.AdamW])
def test_a_training_step_has_the_bits_of_the_eager_one(optimizer: Any) -> None:
    models = [classifier() for _ in range(2)]
    plain, other = (training(model, optimizer(model.parameters(), 0.01)) for model in models)
    captured = mg.capture(other)
    kept = []
    for i in range(30):
        x, y = normal(48, 16, seed=i), np.random.default_rng(i).integers(0, 12, 48)
        expected, loss = plain(x, y), captured(x, y)
        kept.append((loss, bits(expected)))
        x[:] = y[:] = 0  # a copy of it is no view
        assert bits(*models[0].parameters()) == bits(*models[1].parameters())
    assert all(bits(loss) == was for loss, was in kept)
    assert captured.recordings[0].calls > 20
    source = captured.source
    assert "(bias_relu, 48, linear_relu, " in source
    if numba_blas.SGEMM:
        assert source.count(" = in_one_call(") == 2  # between them the gradient of a weight is copied
        assert source.count("    (dot, 1, ") == 5
        assert "x_copy[...] = x  # (48, 16)" in source
        assert "np.dot(" not in source
        assert "np.add(" not in source


def test_wrong_class_indices_leave_all_as_it_was() -> None:
    model = classifier()
    captured = mg.capture(training(model, nn.SGD(model.parameters(), 0.1)))
    x, y = normal(48, 16), np.zeros(48, np.int64)
    for _ in range(4):
        captured(x, y)
    before = bits(*model.parameters())
    y[3] = 12
    with pytest.raises(IndexError, match="to 11"):
        captured(x, y)
    assert bits(*model.parameters()) == before


def test_parameters_in_other_memory_are_taken_up() -> None:
    models = [classifier() for _ in range(2)]
    plain, other = (training(model, nn.SGD(model.parameters(), 0.1)) for model in models)
    captured = mg.capture(other)
    x, y = normal(48, 16), np.arange(48) % 12
    for i in range(8):
        if i == 5:
            for model in models:
                for p in model.parameters():
                    p.data = p.data + np.float32(0.25)
            gc.collect()
        assert bits(plain(x, y)) == bits(captured(x, y))
    assert bits(*models[0].parameters()) == bits(*models[1].parameters())
    assert captured.recordings[0].calls > 1


def test_an_argument_that_is_read_after_a_change_is_read_then() -> None:
    """It may be a part of what has been changed, if not in the recorded call."""
    w, v = (mg.tensor(normal(32, 32), requires_grad=True) for _ in range(2))
    weight, bias = normal(32, 48, seed=1), normal(48, seed=2)

    def step_of(w: mg.Tensor) -> Callable[[Any], mg.Tensor]:
        def step(x: Any) -> mg.Tensor:
            first = mg.softmax(mg.linear_relu(x, weight, bias))
            w.data -= np.float32(0.5)
            return first + mg.softmax(mg.linear_relu(x, weight, bias))

        return step

    plain, captured = step_of(v), mg.capture(step_of(w))
    for i in range(8):
        x, alias = normal(32, 32, seed=i), i > 3 and i % 2 == 0
        assert bits(plain(v.data if alias else x)) == bits(captured(w.data if alias else x))
    assert captured.recordings[0].calls > 3
    assert bits(w) == bits(v)


def test_what_lies_between_is_done_between() -> None:
    """Functions of NumPy that no kernel stands for, a random number, and a branch."""
    models = [nn.Sequential(nn.Linear(16, 40, rng=0), nn.GELU(), nn.Dropout(0.3, rng=2)) for _ in range(2)]
    heads = [nn.Linear(40, 40, rng=1) for _ in range(2)]

    def step_of(model: Any, head: Any) -> Callable[[Any, Any], mg.Tensor]:
        def step(x: Any, target: Any) -> mg.Tensor:
            model.zero_grad()
            head.zero_grad()
            h = mg.log_softmax(head(mg.tanh(model(x))))
            if h.sum() < 0:
                h = h * 2
            loss = mg.mean((h - target) ** 2)
            loss.backward()
            return loss

        return step

    plain, captured = step_of(models[0], heads[0]), mg.capture(step_of(models[1], heads[1]))
    for i in range(6):
        x, target = normal(32, 16, seed=i), normal(32, 40, seed=i)
        assert bits(plain(x, target)) == bits(captured(x, target))
        for p, q in zip(
            [*models[0].parameters(), *heads[0].parameters()],
            [*models[1].parameters(), *heads[1].parameters()],
            strict=True,
        ):
            assert bits(p.grad) == bits(q.grad)
    assert captured.recordings[0].calls >= 3


def test_a_small_transformer_has_the_bits_of_the_eager_one() -> None:
    models = [nn.Transformer(20, 16, 2, 2, 12, rng=0) for _ in range(2)]
    plain, other = (training(model, nn.AdamW(model.parameters(), 1e-3)) for model in models)
    captured = mg.capture(other)
    for i in range(8):
        tokens = np.random.default_rng(i).integers(0, 20, (4, 13))
        assert bits(plain(tokens[:, :-1], tokens[:, 1:])) == bits(captured(tokens[:, :-1], tokens[:, 1:]))
    assert bits(*models[0].parameters()) == bits(*models[1].parameters())
    assert "in_one_call(" in captured.source


def replayed_like_eager(step: Callable[..., Any], calls: list[tuple[Any, ...]], most: int) -> None:
    """The same bits for the same arguments, and no more than so many calls that are no replays."""
    captured = mg.capture(step)
    for args in calls:
        expected, found = step(*args), captured(*args)
        assert bits(*expected) == bits(*found)
    assert sum(x.calls for x in captured.recordings) >= len(calls) - most
    assert "in_one_call(" in captured.source


def test_a_product_of_an_array_and_its_transpose() -> None:
    """NumPy computes a half of it, where the two arguments are one array; in the recorded call they are not."""

    def step(x: Any, y: Any) -> tuple[mg.Tensor, ...]:
        x, y = mg.tensor(x), mg.tensor(y)
        return mg.softmax(x @ y.T), mg.softmax(mg.gelu(x)), mg.gelu(mg.softmax(mg.gelu(y)))

    calls = [(normal(48, 32, seed=i), normal(48, 32, seed=i + 100)) for i in range(4)]
    replayed_like_eager(step, [*calls, *((x, x) for x, _ in calls)], 3)


def test_a_parameter_becomes_the_transpose_of_another_one() -> None:
    p = mg.tensor(normal(32, 32))
    q = mg.tensor(np.asfortranarray(normal(32, 32, seed=1)))

    def step() -> tuple[mg.Tensor, ...]:
        return (mg.softmax(mg.softmax(p @ q)),)

    captured = mg.capture(step)
    for i in range(8):
        if i == 5:
            q.data = p.data.T
        assert bits(*step()) == bits(*captured())
    assert captured.recordings[0].calls > 2


@pytest.mark.parametrize("overlap", ["shifted", "the same", "a part"])
def test_arguments_that_lie_across_one_another(overlap: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32, rng=0), nn.ReLU(), nn.LayerNorm(32))

    def step(x: Any, y: Any) -> tuple[mg.Tensor, ...]:
        h, t = mg.softmax(mg.tensor(x)), model(mg.tensor(y)[:40])
        return mg.softmax(h[:40] @ t.T), mg.gelu(mg.softmax(mg.tensor(y).T))

    series = [normal(100, 32, seed=i) for i in range(8)]
    others = {"shifted": slice(1, 49), "the same": slice(48), "a part": slice(4, 48)}
    replayed_like_eager(step, [(x[:48], x[others[overlap]]) for x in series], 2)


def test_a_row_is_added_to_the_matrix_that_it_is_of() -> None:
    w = normal(32, 32)

    def step(x: Any) -> tuple[mg.Tensor, ...]:
        h = mg.relu(mg.linear(mg.tensor(x), w, w[0])).data
        np.add(h, h[0], out=h)
        return (mg.softmax(mg.softmax(mg.tensor(h))),)

    replayed_like_eager(step, [(normal(48, 32, seed=i),) for i in range(5)], 2)


def test_what_may_fail_stays_behind_a_branch() -> None:
    w, v = normal(16, 32), normal(32, 12, seed=1)

    def step(x: Any, y: Any) -> tuple[mg.Tensor, ...]:
        h = mg.log_softmax(mg.relu(mg.linear(mg.tensor(x), w)))
        if mg.tensor(x).sum() < 0:
            return (h.sum(),)
        return (mg.cross_entropy(h @ v, y),)

    captured, good, bad = mg.capture(step), np.arange(48) % 12, np.full(48, 99)
    for i in range(12):
        x = abs(normal(48, 16, seed=i))
        for args in ((x, good), (x, good) if i < 2 else (-x, bad)):
            assert bits(*step(*args)) == bits(*captured(*args))
    assert captured.recordings[0].calls >= 10
    assert captured.recordings[0].diverged == 10


def test_arrays_that_are_changed_or_handed_out() -> None:
    w, index = normal(16, 32), np.arange(48)[::-1].copy()

    def step(x: Any, y: Any) -> tuple[Any, ...]:
        chosen = x[index]
        before = mg.softmax(mg.linear_relu(chosen, w))
        chosen += np.float32(1)
        part = y[:, :16]
        return before, mg.softmax(mg.linear_relu(chosen, w)), y, part, mg.softmax(mg.linear_relu(y, w))

    captured = mg.capture(step)
    for i in range(8):
        x, y = normal(48, 16, seed=i), normal(48, 16, seed=i + 50)
        expected, found = step(x, y), captured(x, y)
        assert bits(*expected) == bits(*found)
        assert found[2] is y
        assert np.shares_memory(found[3], y)
    assert captured.recordings[0].calls > 3
    assert "in_one_call(" in captured.source


def test_a_kernel_alone_is_called_with_the_argument_itself() -> None:
    captured = mg.capture(lambda x: mg.exp(mg.softmax(x)))
    for i in range(4):
        captured(normal(48, 16, seed=i))
    assert "_copy" not in captured.source
    assert "softmax(48, 1, 0, x, " in captured.source


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_block_that_normalises_sums(norm: Any) -> None:
    models = [nn.TransformerBlock(16, 2, norm_first=False, causal=True, norm=norm, rng=0) for _ in range(2)]
    heads = [nn.Sequential(model, nn.Linear(16, 12, rng=1)) for model in models]
    plain, other = (training(head, nn.SGD(head.parameters(), 0.1)) for head in heads)
    captured = mg.capture(other)
    for i in range(6):
        x, y = normal(4, 12, 16, seed=i), np.random.default_rng(i).integers(0, 12, (4, 12))
        assert bits(plain(x, y)) == bits(captured(x, y))
    assert bits(*heads[0].parameters()) == bits(*heads[1].parameters())
    assert "_norm_of_sum, 48, " in captured.source


def test_large_arrays_are_shared_among_threads_instead() -> None:
    def step(x: Any) -> tuple[mg.Tensor, ...]:
        return (mg.softmax(mg.gelu(mg.softmax(mg.tensor(x)))),)

    captured = mg.capture(step)
    for _ in range(4):
        captured(normal(200, 200))
    assert "in_one_call(" not in captured.source
    assert captured.source.count("softmax(200, 200, ") == 2


@pytest.mark.parametrize("by_kernel", [False, True])
def test_large_products_and_what_has_no_kernel_stay_calls(by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_matmul, "FASTER", by_kernel)  # else it depends on the machine
    weight, bias = normal(64, 256), normal(256)

    def step(x: Any) -> tuple[mg.Tensor, ...]:
        return (mg.linear(mg.linear(x, weight, bias), weight.T),)

    for rows in (32, 512):  # alone, and of more than 2^18 bytes
        captured = mg.capture(step)
        for i in range(4):
            x = normal(rows, 64, seed=i)
            assert bits(*step(x)) == bits(*captured(x))
        assert "in_one_call(" not in captured.source
        assert ("    matmul(" in captured.source) == (by_kernel and rows == 512)
    captured = mg.capture(lambda x: mg.softmax(mg.linear(x, weight, bias)[:40]))
    for i in range(4):
        captured(normal(512, 64, seed=i))
    assert ("    matmul(" if by_kernel else "    np.dot(x, ") in captured.source
    assert "in_one_call(" not in captured.source
