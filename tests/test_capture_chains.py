"""Elementwise operations in a row, done block by block in replays: the same bits, with less memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.recording import chains

LOOP = "# rows that stay in the cache"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of arrays of 1024 elements and more, in blocks of 512 at most."""
    monkeypatch.setattr(chains, "LARGE", 1024)
    monkeypatch.setattr(chains, "BLOCK", 512)


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def activation(y: mg.Tensor) -> mg.Tensor:
    return y * 0.5 * (mg.tanh(1.5 * y) + 1) + mg.exp(-y * y) - mg.sqrt(y * y + 1) / 3


def scaled_rows(y: mg.Tensor) -> mg.Tensor:
    """Rows, columns and a number that are broadcast."""
    row, column = y.data[:1] * 2, y.data[:, :1]
    return (y * row + column) * column - y / (1 + abs(row[0])) + column.sum() * y


def in_float64(y: mg.Tensor) -> mg.Tensor:
    return (y.astype(np.float64) * 3.0 - 1.0) * y


def through_masks(y: mg.Tensor) -> mg.Tensor:
    return mg.relu(y) * y + mg.maximum(y, -y) * (y > 0.3)


STEPS: dict[str, Callable[[mg.Tensor], mg.Tensor]] = {
    "activation": activation,
    "rows and columns": scaled_rows,
    "two dtypes": in_float64,
    "masks": through_masks,
}


def training(operation: Callable[[mg.Tensor], mg.Tensor], shape: tuple[int, ...]) -> tuple[Any, Any]:
    w = mg.tensor(normal(*shape), requires_grad=True)
    optimizer = nn.SGD([w], lr=0.01)

    def step(x: Any) -> mg.Tensor:
        optimizer.zero_grad()
        loss = operation(w * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    return w, step


@pytest.mark.parametrize("shape", [(64, 16), (300, 7), (37, 64), (1300, 1), (16, 8, 16), (9, 2, 64)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_training_is_the_same_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    (w, plain), (v, step) = (training(STEPS[name], shape) for _ in range(2))
    captured = mg.capture(step)
    for seed in range(6):
        x = normal(*shape, seed=seed)
        assert plain(x).data.tobytes() == captured(x).data.tobytes()
        assert w.data.tobytes() == v.data.tobytes()
        assert w.grad.data.tobytes() == v.grad.data.tobytes()
    assert captured.recordings[0].calls == 4
    assert captured.source.count(LOOP) >= 2


def test_vectors_and_arrays_whose_rows_are_too_long() -> None:
    for shape, loops in (((1030,), True), ((20, 100), False), ((200, 3, 7), False), ((1, 1 << 11), False)):
        step = mg.capture(lambda x: (x * 2 + 1) * x - 3)
        for seed in range(4):
            x = normal(*shape, seed=seed)
            np.testing.assert_array_equal(step(mg.tensor(x)).data, (x * 2 + 1) * x - 3)
        assert (LOOP in step.source) is loops


def test_temporaries_take_the_memory_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(1 << 10, 64)
    sizes = {}
    for large in (1 << 10, 1 << 30):
        monkeypatch.setattr(chains, "LARGE", large)
        step = mg.capture(lambda x: ((x * 2 + 1) * x - 3) / (x * x + 1) * (x - 1))
        for _ in range(4):
            step(mg.tensor(x))
        sizes[large] = step.recordings[0].program.memory
        if large == 1 << 10:
            assert sizes[large] == 0
            assert f"    multiply_3 = np.empty({x.shape}, np.float32)\n    for i in range" in step.source  # handed out
    assert sizes[1 << 30] >= 2 * x.nbytes
    assert step.source.count("block") == 0


def test_what_the_first_operations_read_is_not_written_over_by_a_later_one() -> None:
    """A result of 8 bytes an element would fit into the place of two of 4, of which later blocks have not been read."""
    weights = normal(64, 64), normal(64, 64, seed=1)

    def step(x: Any) -> mg.Tensor:
        a, b = mg.tensor(x) @ weights[0], mg.tensor(x) @ weights[1]
        return (a + b).astype(np.float64)

    captured = mg.capture(step)
    for seed in range(5):
        x = normal(64, 64, seed=seed)
        assert captured(x).data.tobytes() == step(x).data.tobytes()
    assert captured.source.count(LOOP) == 1


def test_views_between_the_operations_of_a_result_that_is_handed_out() -> None:
    """In a step that has changed something before, and could not be repeated if its replay failed."""
    calls = mg.tensor(np.zeros(1))

    def step(x: Any) -> list[Any]:
        calls.data[...] += 1
        y = x * 2
        views = y.T, y[1:], y.reshape(-1), y[::-1], y.view(np.int32)
        z = (y + 1) * 3 - views[3]
        return [y, z, *[v.sum(axis=0) for v in views]]

    captured = mg.capture(step)
    for seed in range(5):
        x = normal(1 << 11, 64, seed=seed)
        assert [a.tobytes() for a in captured(x)] == [a.tobytes() for a in step(x)]
    assert captured.recordings[0].calls == 3
    assert captured.source.count(LOOP) == 1


def test_a_result_does_not_take_the_place_of_what_is_read_in_another_order() -> None:
    weight = normal(64, 64)

    def step(x: Any) -> tuple[mg.Tensor, mg.Tensor]:
        a = mg.tensor(x) @ weight
        backwards = a[::-1] * 2
        tripled = a * 3
        return backwards + tripled, tripled

    captured = mg.capture(step)
    for seed in range(5):
        x = normal(64, 64, seed=seed)
        assert [y.data.tobytes() for y in captured(x)] == [y.data.tobytes() for y in step(x)]
    assert captured.source.count(LOOP) == 1


def test_what_is_changed_is_read_before_or_after_as_in_the_step() -> None:
    """Also where a block reads other rows than it changes."""

    def changing(w: mg.Tensor) -> Callable[[Any], mg.Tensor]:
        def step(x: Any) -> mg.Tensor:
            backwards = w[::-1] * 2  # of what is changed below
            w.data -= x
            w.data *= 0.5
            return backwards * 1.5 + w * w[::-1]

        return step

    w, v = mg.tensor(normal(256, 8)), mg.tensor(normal(256, 8))
    plain, captured = changing(w), mg.capture(changing(v))
    for seed in range(5):
        x = normal(256, 8, seed=seed)
        assert plain(x).data.tobytes() == captured(x).data.tobytes()
        assert w.data.tobytes() == v.data.tobytes()
    assert LOOP in captured.source


def reading_an_element() -> tuple[Any, Any]:
    w, a = mg.tensor(normal(256, 8)), mg.tensor(normal(256, 8, seed=1))

    def step(rate: float) -> mg.Tensor:
        y = a * w[0, 0, ...]  # a view of no axes
        w.data -= rate
        return y

    return w, step


def reading_an_element_of_a_result() -> tuple[Any, Any]:
    w = mg.tensor(normal(256, 8))

    def step(rate: float) -> tuple[mg.Tensor, mg.Tensor]:
        b = w * rate + 1
        return w * b[0, 0, ...] + 1, b + 2

    return w, step


def parameters_that_overlap(base: Callable[[Any], Any]) -> Callable[[], tuple[Any, Any]]:
    def make() -> tuple[Any, Any]:
        memory = normal(257, 8)
        p, q = mg.tensor(normal(256, 8)), mg.tensor(normal(256, 8))
        p.data, q.data = base(memory)[:256], base(memory)[1:]

        def step(rate: float) -> mg.Tensor:
            q.data -= p.data * rate
            p.data -= q.data * rate
            return q.sum()

        return q, step

    return make


@pytest.mark.parametrize(
    "make",
    [
        reading_an_element,
        reading_an_element_of_a_result,
        parameters_that_overlap(lambda x: x),
        parameters_that_overlap(lambda x: np.frombuffer(memoryview(x).cast("B"), np.float32).reshape(x.shape)),
    ],
)
def test_other_rows_are_seen_as_the_step_sees_them(make: Callable[[], tuple[Any, Any]]) -> None:
    """Also where the first replay, which is compared, would not show it."""
    (w, plain), (v, step) = make(), make()
    captured = mg.capture(step)
    for rate in (0.0, 0.0, 0.0, 0.0, 0.5, 0.25):
        expected, found = plain(rate), captured(rate)
        for x, y in zip(*(r if isinstance(r, tuple) else (r,) for r in (expected, found)), strict=True):
            assert x.data.tobytes() == y.data.tobytes()
        assert w.data.tobytes() == v.data.tobytes()
    assert captured.recordings[0].calls == 4


def test_parameters_that_come_to_overlap() -> None:
    """Recorded with arrays of their own: with others there is another recording."""
    weights = []
    for captured in (False, True):
        p, q = mg.tensor(normal(256, 8)), mg.tensor(normal(256, 8, seed=1))

        def step(rate: float, p: mg.Tensor = p, q: mg.Tensor = q) -> mg.Tensor:
            q.data -= p.data * rate
            p.data -= q.data * rate
            return q.sum()

        call: Any = mg.capture(step) if captured else step
        for _ in range(4):
            call(0.5)
        if captured:
            assert LOOP in call.source
        memory = normal(257, 8, seed=2)
        p.data, q.data = memory[:256], memory[1:]
        for _ in range(4):
            call(0.5)
        weights.append(memory.tobytes())
    assert weights[0] == weights[1]


def test_what_can_be_no_member_ends_a_chain_and_not_those_after_it() -> None:
    w = mg.tensor(normal(256, 8))

    def step(x: Any) -> mg.Tensor:
        w.data -= w.data[::-1]
        return (mg.tensor(x) * 2 + 1) * w - 3

    captured = mg.capture(step)
    for _ in range(3):
        captured(normal(256, 8))
    assert captured.source.count(LOOP) == 1


def test_an_argument_may_be_a_part_of_what_is_changed() -> None:
    """A row is changed before the next block would read it."""

    def make() -> tuple[Any, Any]:
        memory = normal(280, 8)
        w = mg.tensor(memory[8:264])

        def step(x: Any) -> mg.Tensor:
            w.data *= 0.5
            return (w * 2 + x) * w

        return memory, step

    memory, plain = make()
    other, step = make()
    captured = mg.capture(step)
    for x, y in [(normal(256, 8), normal(256, 8))] * 3 + [(memory[:256], other[:256]), (memory[16:272], other[16:272])]:
        assert plain(x).data.tobytes() == captured(y).data.tobytes()
        assert memory.tobytes() == other.tobytes()


def test_an_error_in_a_later_block_says_that_something_has_changed() -> None:
    w = mg.tensor(np.ones((256, 8), np.float32))

    def step(x: Any) -> mg.Tensor:
        w.data -= np.exp(x)
        w.data *= 2
        return w.sum()

    captured = mg.capture(step)
    for _ in range(3):
        captured(np.zeros((256, 8), np.float32))
    assert LOOP in captured.source
    before, x = w.data.copy(), np.zeros((256, 8), np.float32)
    x[-1, -1] = 1000
    with np.errstate(over="raise"), pytest.raises(FloatingPointError) as caught:
        captured(x)
    assert (w.data != before).any() == any("had changed" in note for note in getattr(caught.value, "__notes__", []))


def test_a_saved_step_has_the_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, step = training(activation, (300, 7))
    captured = mg.capture(step)
    x = normal(300, 7)
    for _ in range(4):
        captured(x)
    captured.save(tmp_path / "step_with_loops.py")
    assert LOOP in (tmp_path / "step_with_loops.py").read_text()
    monkeypatch.syspath_prepend(tmp_path)
    saved = importlib.import_module("step_with_loops")
    for _ in range(3):
        assert saved.step(x).tobytes() == captured(x).data.tobytes()
    np.testing.assert_array_equal(saved.w, w.data)


def test_large_arrays_with_the_settings_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (w, plain), (v, step) = (training(activation, (515, 512)) for _ in range(2))
    captured = mg.capture(step)
    for seed in range(4):
        x = normal(515, 512, seed=seed)
        assert plain(x).data.tobytes() == captured(x).data.tobytes()
    assert w.data.tobytes() == v.data.tobytes()
    assert "for i in range(0, 515, 64):" in captured.source
