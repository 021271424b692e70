"""mg.capture: what research code does around a step, such as layers that are frozen in turns."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import replays

pytestmark = pytest.mark.usefixtures("numpy_kernels")

X = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
Y = np.arange(10) % 2


@contextlib.contextmanager
def frozen(layer: nn.Module) -> Iterator[None]:
    layer.requires_grad_(False)
    yield
    layer.requires_grad_(True)


@pytest.mark.parametrize("within_the_step", [True, False])
def test_a_discriminator_that_is_frozen_in_turns(within_the_step: bool) -> None:
    def train(capture: Any) -> list[Any]:
        generator, discriminator = nn.Linear(2, 3, rng=0), nn.Linear(3, 1, rng=1)
        first, second = nn.Adam(discriminator.parameters(), 0.1), nn.SGD(generator.parameters(), 0.1)

        def discriminate(x: Any, z: Any) -> mg.Tensor:
            with mg.no_grad():
                made = generator(z)
            loss = ((discriminator(x) - 1) ** 2).mean() + (discriminator(made) ** 2).mean()
            first.zero_grad()
            loss.backward()
            first.step()
            return loss

        def generate(z: Any) -> mg.Tensor:
            with frozen(discriminator) if within_the_step else contextlib.nullcontext():
                loss = ((discriminator(generator(z)) - 1) ** 2).mean()
                second.zero_grad()
                loss.backward()
                second.step()
                return loss

        steps = [capture(discriminate), capture(generate)]
        rng = np.random.default_rng(0)
        found: list[Any] = []
        for _ in range(14):
            x, z = rng.standard_normal((4, 3)).astype("f"), rng.standard_normal((4, 2)).astype("f")
            found.append(steps[0](x, z).item())
            with contextlib.nullcontext() if within_the_step else frozen(discriminator):
                found.append(steps[1](z).item())
                found += [p.grad is None for p in discriminator.parameters()]
            found += [p.numpy().tolist() for layer in (generator, discriminator) for p in layer.parameters()]
        if capture is mg.capture:
            assert min(map(replays, steps)) >= 10
        return found

    assert train(mg.capture) == train(lambda step: step)


def test_a_tensor_that_is_frozen_for_a_while() -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    w.requires_grad = False
    loss.backward(retain_graph=True)
    assert w.grad is None
    w.data = np.array([5.0, 6.0])
    w.requires_grad = True
    assert w.grad is None
    (3 * w).sum().backward()
    assert w.grad is not None
    assert w.grad.numpy().tolist() == [3, 3]


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_copies_of_frozen_parameters(again: Any) -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)
    w.requires_grad = False
    other = again(w)
    assert not other.requires_grad
    nn.SGD([other], 0.1)  # a parameter
    other.requires_grad = True
    (other * 2).sum().backward()
    assert other.grad.numpy().tolist() == [2, 2]
    assert w.grad is None
    with pytest.raises(TypeError, match="made with requires_grad=True"):
        nn.SGD([again(mg.tensor([1.0]))], 0.1)


def test_checkpoints_notice_other_values_of_a_tensor_that_was_frozen_meanwhile() -> None:
    w = mg.tensor([1.0, 2.0], requires_grad=True)
    loss = mg.checkpoint(lambda: (w * w).sum())()
    w.requires_grad = False
    w.data = np.array([5.0, 6.0])
    w.requires_grad = True
    with pytest.raises(RuntimeError, match="was given other values since"):
        loss.backward()


def test_shuffling_by_a_generator_of_the_steps_own_moves_nothing() -> None:
    buffer = np.arange(8.0).reshape(4, 2)

    @mg.capture
    def step(x: float) -> Any:
        np.random.default_rng(0).shuffle(buffer)
        return buffer.sum() + x

    assert step(1.0) == 29
    before = buffer.copy()
    for _ in range(3):
        with pytest.raises(mg.CaptureError, match="shuffle changes an array in place"):
            step(1.0)
        np.testing.assert_array_equal(buffer, before)


def test_batches_and_initialisers_draw_from_the_generator_of_a_step() -> None:
    def run(capture: Any) -> list[Any]:
        layer, rng = nn.Linear(3, 2, rng=0), np.random.default_rng(0)

        @capture
        def epoch(X: Any, y: Any) -> Any:
            total: Any = 0.0
            for rows, labels in nn.batches(X, y, 4, rng=rng):
                total = total + nn.cross_entropy(layer(rows), labels)
            return total + nn.init.he_normal((3, 3), rng).sum() + nn.init.glorot_uniform((3, 2), rng)[0, 0]

        found = [epoch(X, Y).item() for _ in range(5)]
        assert capture is not mg.capture or replays(epoch) == 3
        return [*found, rng.random()]

    assert run(mg.capture) == run(lambda step: step)


def test_float16_overflows_in_silence_in_replays_too() -> None:
    layer, scaler = nn.Linear(3, 2, rng=0), nn.GradScaler()

    @mg.capture
    def step(x: Any, y: Any) -> mg.Tensor:
        with mg.autocast("float16"):
            loss = nn.cross_entropy(layer(x), y)
        layer.zero_grad()
        scaler.scale(loss).backward()
        return loss

    for _ in range(4):
        step(X, Y)
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        step(X * 1e8, Y)
    assert replays(step) == 3
    assert not np.isfinite(layer.weight.grad.numpy()).all()  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # NumPy 2.5, on plain arrays
def test_what_is_asked_for_is_named() -> None:
    rng = np.random.default_rng(0)

    @mg.capture
    def drawn(x: Any) -> Any:
        k = int(rng.integers(0, 3))
        return x[k : k + 2].sum()

    @mg.capture
    def shaped(x: Any) -> Any:
        z = x * 2
        z.shape = (30,)
        return z.sum()

    @mg.capture
    def converted(x: Any) -> Any:
        return np.asarray(x * 2).sum()

    for step, message in (
        (drawn, "the value of a random number was asked for"),
        (shaped, "the shape of an array is assigned to, which is not recorded; use reshape"),
        (converted, "by a NumPy function that is not recorded .np.array and np.asarray"),
    ):
        step(X)
        with pytest.raises(mg.CaptureError, match=message):
            step(X)
