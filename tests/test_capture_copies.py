"""Copies in a captured step: those that nobody needs are left out, all others stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn


def copies(step: Any) -> int:
    """How many a replay makes."""
    return sum(x.kind == "method" and x.name == "copy" for x in step.recordings[0].program.body)


def block_step() -> tuple[Callable[..., Any], nn.Module, mg.Tensor]:
    model = nn.TransformerBlock(8, 2, causal=True, rng=0)
    inputs = mg.tensor(np.random.default_rng(1).standard_normal((2, 5, 8), np.float32), requires_grad=True)
    optimizer = nn.SGD(model.parameters(), lr=0.1)

    def step(g: Any) -> None:
        optimizer.zero_grad()
        inputs.zero_grad()
        model(inputs).backward(g)
        optimizer.step()

    return step, model, inputs


def test_backward_copies_no_gradients() -> None:
    results = []
    for decorate in (mg.capture, lambda step: step):
        step, model, inputs = block_step()
        step = decorate(step)
        g = np.random.default_rng(2).standard_normal((2, 5, 8), np.float32)
        for _ in range(5):
            step(g)
            g += 1  # an argument that is read anew
        assert inputs.grad is not None
        results.append([inputs.grad.numpy().tobytes(), *(p.numpy().tobytes() for p in model.parameters())])
        if decorate is mg.capture:
            assert copies(step) == 0
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        (lambda w, x, copy: w.data.__imul__(0.5), True),
        (lambda w, x, copy: copy.__iadd__(1), True),
        (lambda w, x, copy: x.data.__iadd__(0.25), True),  # may be the array of w for all that is known
        (lambda w, x, copy: None, False),
    ],
)
def test_copies_of_what_changes_stay(changes: Callable[..., Any], stays: bool) -> None:
    def step(x: Any) -> mg.Tensor:
        copy = w.data.copy()
        changes(w, x, copy)
        return mg.tensor((copy * w.data + x.data).sum())

    found = []
    for decorate in (mg.capture, lambda step: step):
        w, x = mg.tensor(np.arange(6.0)), mg.tensor(np.ones(6))
        captured = decorate(step)
        found.append([float(captured(x).item()) for _ in range(4)] + w.numpy().tolist() + x.numpy().tolist())
        if decorate is mg.capture:
            assert captured.recordings[0].calls > 0
            assert copies(captured) == stays
    assert found[0] == found[1]


def test_arrays_made_anew_are_changed_when_the_step_changes_them() -> None:
    """Not before replays, since what is read in between is what was there."""

    def step(x: Any) -> mg.Tensor:
        made = np.zeros_like(w.data)
        before = made.copy()
        product = x.data * before
        made += 1
        return mg.tensor(product + made)

    w, captured = mg.tensor(np.zeros(3)), mg.capture(step)
    for value in (0.0, 0.0, 0.0, 1.0, 2.0):
        np.testing.assert_array_equal(captured(mg.tensor(np.full(3, value))).numpy(), np.ones(3))


@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int) -> None:
    """Of copies, views and changes in place, in any order: all that a step returns and leaves behind, bit for bit.

    Every second one sees zeros until it is verified, for which much goes unnoticed.
    """
    rng = np.random.default_rng(seed)
    program = tuple(zip(*(map(int, rng.integers(0, n, 25)) for n in (7, 97, 97, 2)), strict=True))

    def step(x: Any, y: Any) -> list[mg.Tensor]:
        arrays = [w.data, x.data, y.data]
        for action, a, b, way in program:
            one, other = (arrays[i % len(arrays)] for i in (a, b))
            if action <= 1:
                arrays.append(one.copy())
            elif action == 2:
                one *= 0.75 if way else -0.5
            elif action == 3:
                one += other
            elif action == 4:
                arrays.append(one.reshape(4, 3).T.T.reshape(3, 4) if way else one[::-1])
            elif action == 5:
                arrays.append(one * other)
            else:
                arrays.append(np.zeros_like(w.data) if way else np.ones_like(w.data))
        return [mg.tensor(array.copy()) for array in arrays[-4:]]

    found = []
    for decorate in (mg.capture, lambda step: step):
        w = mg.tensor(np.random.default_rng(seed).standard_normal((3, 4)))
        x, y = (mg.tensor(np.random.default_rng(seed + i).standard_normal((3, 4))) for i in (1, 2))
        captured = decorate(step)
        zero = mg.tensor(np.zeros((3, 4)))
        results = [captured(zero, zero) if seed % 2 else captured(x, y) for _ in range(3)]
        results += [captured(x, y), captured(x, x), captured(w, y)]
        found.append([t.numpy().tobytes() for result in results for t in result])
        found[-1] += [t.numpy().tobytes() for t in (w, x, y)]
        if decorate is mg.capture:
            assert captured.recordings[0].calls > 0
    assert found[0] == found[1]
