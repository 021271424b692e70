"""The graph: order, accumulation, depth, gradients of gradients, dtypes, no_grad, threads."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.leaves import leaf


def test_published_example_of_micrograd() -> None:
    a, b = leaf(-4.0), leaf(2.0)
    c = a + b
    d = a * b + b**3
    c = c + c + 1
    c = c + 1 + c + (-a)
    d = d + d * 2 + mg.relu(b + a)
    d = d + 3 * d + mg.relu(b - a)
    f = (c - d) ** 2
    g = f / 2.0
    g = g + 10.0 / f
    g.backward()
    assert round(g.item(), 4) == 24.7041
    assert (round(a.grad.item(), 4), round(b.grad.item(), 4)) == (138.8338, 645.5773)


def test_leaf_gradients_accumulate_and_interior_ones_do_not_leak() -> None:
    x = leaf(3.0)
    y = x * x
    z = y * 1.0
    z.backward(retain_graph=True)
    z.backward(retain_graph=True)
    z.backward()
    assert x.grad.item() == 18.0
    assert y.grad is None
    x.zero_grad()
    assert x.grad is None


def test_a_tensor_used_twice_gets_both_gradients() -> None:
    x = leaf([1.0, 2.0])
    (x + x + x * x + x).sum().backward()
    np.testing.assert_array_equal(x.grad.data, [5, 7])


def test_an_error_on_the_way_changes_no_gradient() -> None:
    def fail(g: Any) -> Any:
        raise ZeroDivisionError("on purpose")

    @mg.primitive(x=fail)
    def failing(xp: Any, x: Any) -> Any:
        return x * 1.0

    x, y = leaf(), leaf()
    failed = failing(x)
    loss = x * y + failed
    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        loss.backward()
    assert "in the gradient of failing with respect to x" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match=r"already freed \(at failing.*also one that failed"):
        failed.backward()
    assert x.grad is None
    assert y.grad is None


def test_gradient_of_a_gradient() -> None:
    x = leaf(2.0)
    y = x**4
    for expected in (32.0, 48.0, 48.0, 24.0, 0.0):
        y.backward(create_graph=True)
        y = x.grad
        x.zero_grad()
        assert y.item() == pytest.approx(expected)


def test_create_graph_within_no_grad() -> None:
    x = leaf(3.0)
    y = x * x * x
    with mg.no_grad():
        y.backward(create_graph=True)
    g = x.grad
    x.zero_grad()
    g.backward()
    assert x.grad.item() == 18.0


def test_gradient_penalty() -> None:
    """A loss that contains a gradient: d/dw of (d/dx w x^2)^2 = 8 w x^2."""
    w, x = leaf(3.0), leaf(2.0)
    (slope,) = mg.grad(lambda x: w * x * x, (0,))(x)
    (slope * slope).backward()
    assert w.grad.item() == 8 * 3 * 4
    assert x.grad.item() == 2 * (2 * 3 * 2) * (2 * 3)


@pytest.mark.parametrize("length", [100_000])
def test_long_chains(length: int) -> None:
    x = leaf(1.0)
    y = x
    for _ in range(length):
        y = y * 1.0
    y.backward()
    assert x.grad.item() == 1.0


def test_deep_diamonds_visit_every_node_once() -> None:
    calls = 0

    def count(g: Any) -> Any:
        nonlocal calls
        calls += 1
        return g * 0.5

    @mg.primitive(x=count, y=count)
    def average(xp: Any, x: Any, y: Any) -> Any:
        return 0.5 * (x + y)

    x = leaf(1.0)
    y = x
    for _ in range(10_000):
        y = average(y, y)
    y.backward()
    assert calls == 20_000
    assert x.grad.item() == 1.0


def test_no_grad_blocks_nest_and_decorate() -> None:
    x = leaf()

    @mg.no_grad()
    def double(t: mg.Tensor) -> mg.Tensor:
        return t * 2.0

    with mg.no_grad():
        with mg.no_grad():
            assert not (x * x).requires_grad
        assert not (x * x).requires_grad
    assert (x * x).requires_grad
    assert not double(x).requires_grad
    assert double.__name__ == "double"
    with pytest.raises(ZeroDivisionError), mg.no_grad():
        raise ZeroDivisionError
    assert (x * x).requires_grad

    with pytest.raises(TypeError, match="generator"):

        @mg.no_grad()
        def numbers() -> Any:
            yield 1


def test_no_grad_is_per_thread() -> None:
    x, seen = leaf(), []
    with mg.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * x).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_threads_build_their_own_graphs() -> None:
    def work(results: list[float], n: int) -> None:
        for _ in range(50):
            x = leaf(np.full(50, float(n)))
            (x * x).sum().backward()
        results.append(float(x.grad.data[0]))

    results: list[float] = []
    threads = [threading.Thread(target=work, args=(results, n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [2.0 * n for n in range(8)]


def test_gradients_arrive_in_the_dtype_of_their_tensor() -> None:
    x = leaf(np.ones(3, np.float32))
    y = leaf(np.ones(3))
    (x * y).sum().backward()
    assert x.grad.dtype == np.float32
    assert y.grad.dtype == np.float64
    half = leaf(np.ones(3, np.float16))
    (half * 2.0).sum().backward()
    assert half.grad.dtype == np.float16


def test_gradients_through_complex_values_are_refused() -> None:
    x = leaf(np.ones(3))
    with pytest.raises(TypeError, match="complex"):
        mg.abs(x * 1j).sum().backward()


@pytest.mark.parametrize("index", [(), ..., None])
@pytest.mark.parametrize("kind", ["leaf", "interior"])
def test_parts_of_a_scalar(index: Any, kind: str) -> None:
    x = leaf(3.0)
    y = x if kind == "leaf" else x * 1.0
    z = y[index]
    (y * 2.0 + y * 3.0 + z.sum() + y[index].sum()).backward()
    assert x.grad.item() == 7.0
