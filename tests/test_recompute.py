"""mg.checkpoint: the gradients of the function itself, with less memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.autograd import edges_of
from tests.op_gradients import assert_close

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 4))
WEIGHTS = [RNG.standard_normal((4, 4)) for _ in range(3)]


def leaves(device: Any = None) -> list[mg.Tensor]:
    return [mg.tensor(device.array(x) if device else x, requires_grad=True) for x in (X, *WEIGHTS)]


def gradients(f: Callable[[mg.Tensor], mg.Tensor], tensors: list[mg.Tensor]) -> list[Any]:
    loss = f(tensors[0])
    (loss * loss).sum().backward()
    return [tensor.grad.data for tensor in tensors if tensor.grad is not None]


def test_arguments_and_other_tensors_get_their_gradients(device: Any) -> None:
    def chain(wrapped: Callable[..., Any], x: mg.Tensor, w: list[mg.Tensor]) -> mg.Tensor:
        h = x * w[0].sum()  # no leaf, and used inside without being an argument
        return wrapped(lambda a: mg.tanh(a @ w[0]) @ w[1] + h)(wrapped(lambda a: mg.exp(mg.sin(a @ w[2])))(h))

    found = []
    for wrapped in (lambda f: f, mg.checkpoint):
        x, *w = leaves(device)
        found.append([device.host(g) for g in gradients(lambda x: chain(wrapped, x, w), [x, *w])])  # noqa: B023
    assert len(found[0]) == 4
    for ours, expected in zip(*reversed(found), strict=True):
        assert_close(ours, expected, 1e-14)


def test_it_is_recorded_as_one_operation() -> None:
    def block(x: mg.Tensor) -> mg.Tensor:
        """A docstring."""
        return mg.exp(mg.sin(x))

    wrapped = mg.checkpoint(block)
    assert wrapped.__doc__ == "A docstring."
    x = mg.tensor(X, requires_grad=True)
    out = wrapped(x)
    assert out._node.op.name == "checkpoint(block)"  # type: ignore[union-attr]
    assert [parent for parent, _, _ in edges_of(out._node)] == [x._node]  # type: ignore[union-attr]
    assert "checkpoint(block)" in repr(out)


def test_of_what_has_gone_back_through_its_own_graph() -> None:
    x = mg.tensor(2.0, requires_grad=True)

    def f(x: mg.Tensor) -> mg.Tensor:
        loss = x * x
        loss.backward()
        return loss

    out = mg.checkpoint(f)(x)
    assert (out.item(), x.grad.item()) == (4.0, 4.0)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="already freed"):
        out.backward()


def test_of_what_differentiates_within() -> None:
    x = mg.tensor(2.0, requires_grad=True)
    slope = mg.grad(lambda c: c * c * x)
    mg.checkpoint(lambda x: slope(3.0) * x)(x).backward()  # 6 x^2
    assert x.grad.item() == 24.0  # type: ignore[union-attr]


def test_gradients_of_gradients() -> None:
    def f(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        return mg.exp(mg.sin(x * y)) * mg.tanh(y)

    mg.check_grads(mg.checkpoint(f), np.array([0.3, -0.7]), np.array([1.1, 0.4]), order=3)


def test_nested() -> None:
    def inner(x: mg.Tensor) -> mg.Tensor:
        return mg.dropout(mg.sin(x), 0.5, rng)

    def outer(wrapped: Callable[..., Any]) -> Callable[[mg.Tensor], mg.Tensor]:
        return wrapped(lambda x: wrapped(inner)(mg.dropout(x, 0.2)) * wrapped(inner)(x) + mg.dropout(x, 0.2))

    for _ in range(3):
        rng = np.random.default_rng(4)
        x = mg.tensor(np.ones((4, 4)), requires_grad=True)
        out = outer(mg.checkpoint)(x)
        drawn = rng.bit_generator.state
        out.sum().backward()
        # The same numbers again, but the draws without a generator, which nobody can know.
        assert rng.bit_generator.state == drawn
        assert np.isfinite(x.grad.data).all()  # type: ignore[union-attr]


def test_dropout_drops_the_same_again() -> None:
    found = []
    for wrapped in (lambda f: f, mg.checkpoint):
        rng, again = np.random.default_rng(7), np.random.default_rng(7)
        layers = [nn.Dropout(0.4, rng=rng), nn.Dropout(0.3, rng=again)]
        x = mg.tensor(X, requires_grad=True)
        out = x
        for _ in range(3):
            out = wrapped(lambda a: layers[1](mg.sin(layers[0](a))))(out)  # noqa: B023
        state = rng.bit_generator.state
        out.sum().backward()
        assert rng.bit_generator.state == state
        found.append((out.data, x.grad.data, rng.random(), again.random()))  # type: ignore[union-attr]
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_unseeded_dropout_drops_the_same_again() -> None:
    x = mg.tensor(np.ones(1000), requires_grad=True)
    mg.checkpoint(lambda x: mg.dropout(x, 0.5) + 2.0 * mg.dropout(x, 0.5))(x).backward(np.ones(1000))
    values, counts = np.unique(x.grad.data, return_counts=True)  # type: ignore[union-attr]
    np.testing.assert_array_equal(values, [0, 2, 4, 6])
    assert counts.min() > 150
    out = mg.checkpoint(lambda x: mg.dropout(x, 0.5) * x)(x)
    x.zero_grad()
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.data, 2 * out.data)  # type: ignore[union-attr]


def test_memory_of_a_chain_of_blocks() -> None:
    """Each block keeps its input, not the eight arrays that it computes on the way."""

    def block(x: mg.Tensor) -> mg.Tensor:
        for _ in range(8):
            x = mg.sin(x)
        return x

    def peak(f: Callable[[mg.Tensor], mg.Tensor]) -> float:
        x = mg.tensor(np.ones(10_000), requires_grad=True)
        gc.collect()
        tracemalloc.start()
        try:
            out = x
            for _ in range(10):
                out = f(out)
            out.sum().backward()
            return tracemalloc.get_traced_memory()[1] / x.data.nbytes
        finally:
            tracemalloc.stop()

    assert peak(block) > 75
    assert peak(mg.checkpoint(block)) < 25


def test_what_changes_from_call_to_call_is_refused() -> None:
    rng = np.random.default_rng(0)
    x = mg.tensor(np.ones(10), requires_grad=True)
    out = mg.checkpoint(lambda x: x * rng.random(10))(x)
    with pytest.raises(RuntimeError, match="gave another result when it was repeated"):
        out.sum().backward()
    switch = [True]
    for other in (lambda x: x.detach(), lambda x: (x * 1.0)[:5], lambda x: (x * 1.0).astype(np.float32)):
        switch[0] = True
        out = mg.checkpoint(lambda x: x * 1.0 if switch[0] else other(x))(x)  # noqa: B023
        switch[0] = False
        with pytest.raises(RuntimeError, match="gave another result when it was repeated"):
            out.sum().backward()
    assert x.grad is None


def test_parameters_changed_in_place_before_backward_are_refused() -> None:
    w = mg.tensor(np.ones((3, 3)), requires_grad=True)
    x = mg.tensor(np.ones((2, 3)), requires_grad=True)
    out = mg.checkpoint(lambda x: mg.tanh(x @ w))(x).sum()
    w.data -= 1e-9
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()


@pytest.mark.parametrize("how", ["step", "in place"])
def test_parameters_changed_in_place_that_no_gradient_needs_are_refused(how: str) -> None:
    """Here a bias, but the repetition would compute another gradient for x with it: by less than samples show."""
    bias = mg.tensor(np.ones(3), requires_grad=True)
    x = mg.tensor(np.ones((2, 3)), requires_grad=True)
    optimizer = nn.SGD([bias], lr=1e-9)
    for _ in range(2):
        bias.grad = mg.tensor(np.ones(3))
        out = mg.checkpoint(lambda x: mg.gelu(x + bias))(x).sum()
        if how == "step":
            optimizer.step()
        else:
            bias.data -= 1e-9
        with pytest.raises(RuntimeError, match=r"changed in place|was given other values"):
            out.backward()


def test_without_anything_to_record() -> None:
    f = mg.checkpoint(lambda x: mg.exp(x))
    assert f(mg.tensor(1.0)).item() == np.exp(1.0)
    x = mg.tensor(1.0, requires_grad=True)
    with mg.no_grad():
        assert not f(x).requires_grad
    assert mg.checkpoint(lambda x: x)(x) is x
    with pytest.raises(TypeError, match=r"checkpoint: <lambda> must return a tensor, got \("):
        mg.checkpoint(lambda x: (x, x))(x)  # type: ignore[arg-type, return-value]


def test_a_repetition_that_does_not_use_an_argument_is_refused() -> None:
    calls: list[int] = []

    def changing(x: mg.Tensor, y: mg.Tensor) -> mg.Tensor:
        calls.append(1)
        return x + y if len(calls) == 1 else x + mg.tensor(y.data)

    x, y = (mg.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    out = mg.checkpoint(changing)(x, y)
    with pytest.raises(RuntimeError, match="gave another result"):
        out.sum().backward()


def test_a_repetition_that_draws_more_is_refused() -> None:
    """By no StopIteration: map, and other iterators, would take it for their end."""
    drawn = [1]
    x = mg.tensor(np.ones(4), requires_grad=True)

    def function(x: mg.Tensor) -> mg.Tensor:
        for _ in range(drawn[0]):
            x = mg.dropout(x, 0.5)
        return x

    out = mg.checkpoint(function)(x).sum()
    drawn[0] = 2
    with pytest.raises(RuntimeError, match="draws more random numbers than the first time"):
        list(map(mg.Tensor.backward, [out]))


def test_without_recording_a_tensor_is_expected_too() -> None:
    with mg.no_grad(), pytest.raises(TypeError, match="must return a tensor"):
        mg.checkpoint(lambda x: (x, x))(mg.tensor(1.0))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (64, 3), (192, 9), (1000, 10), (64, 1)])
def test_every_column_of_the_result_is_compared(rows: int, columns: int) -> None:
    noise = [np.zeros(columns), np.r_[np.zeros(columns - 1), 1]]
    x = mg.tensor(np.ones((rows, columns)), requires_grad=True)
    out = mg.checkpoint(lambda x: mg.exp(x + noise.pop(0)))(x)
    with pytest.raises(RuntimeError, match="gave another result"):
        out.sum().backward()


@pytest.mark.parametrize("how", ["assigned", "optimiser"])
def test_tensors_given_other_values_before_backward_are_refused(how: str) -> None:
    w, x = mg.tensor(1.0, requires_grad=True), mg.tensor(np.zeros(4), requires_grad=True)
    optimizer = nn.SGD([w], lr=0.5)
    w.grad = mg.tensor(1.0)
    out = mg.checkpoint(lambda x: x * w)(x)
    if how == "assigned":
        w.data = np.array(1000.0)
    else:
        optimizer.step()
    with pytest.raises(RuntimeError, match="was given other values since"):
        out.sum().backward()


def test_generators_that_share_their_bits() -> None:
    bits = np.random.PCG64(0)
    first, second = np.random.Generator(bits), np.random.Generator(bits)

    def f(x: Any) -> mg.Tensor:
        return mg.dropout(mg.dropout(x, 0.5, first), 0.5, second)

    x = mg.tensor(np.ones(50), requires_grad=True)
    out = mg.checkpoint(f)(x)
    state = bits.state
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.data, out.data)  # type: ignore[union-attr]
    assert bits.state == state
