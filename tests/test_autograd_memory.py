"""The graph and memory: what is saved, when it is freed, what is copied, what nobody else holds."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.backends import NAMESPACES
from tests.leaves import leaf


def test_gradients_share_memory_with_nothing() -> None:
    a, b = leaf(np.ones(3)), leaf(np.ones(3))
    given = np.ones(3)
    (a + b).backward(given)
    a.grad.data[...] = 7
    np.testing.assert_array_equal(b.grad.data, np.ones(3))
    np.testing.assert_array_equal(given, np.ones(3))

    x, w = leaf(np.ones((2, 2))), np.full((2, 2), 5.0)
    mg.reshape(x, (4,)).backward(w.reshape(4))
    x.grad.data[...] = 0
    np.testing.assert_array_equal(w, np.full((2, 2), 5.0))

    direct = leaf(np.ones(3))
    direct.backward(given)
    direct.grad.data[...] = 7
    np.testing.assert_array_equal(given, np.ones(3))

    first = leaf(np.ones(3))
    (first * 2.0).sum().backward()
    before = first.grad.data
    (first * 3.0).sum().backward()
    np.testing.assert_array_equal(before, [2, 2, 2])
    np.testing.assert_array_equal(first.grad.data, [5, 5, 5])


def test_a_vjp_that_returns_what_it_saved_is_copied() -> None:
    @mg.primitive(x=lambda g, y: y, y=None)
    def passed(xp: Any, x: Any, y: Any) -> Any:
        return xp.sum(x * y)

    x, y = leaf(np.ones(3)), np.arange(3.0)
    passed(x, y).backward()
    x.grad.data[...] = 9
    np.testing.assert_array_equal(y, np.arange(3.0))


def test_a_vjp_that_returns_what_it_keeps_for_itself_is_copied() -> None:
    kept = np.arange(3.0)

    @mg.primitive(x=lambda g: kept)
    def odd(xp: Any, x: Any) -> Any:
        return xp.sum(x)

    x = leaf(np.ones(3))
    odd(x).backward()
    x.grad.data[...] = 9
    np.testing.assert_array_equal(kept, np.arange(3.0))


def test_a_gradient_that_nobody_else_holds_is_not_copied() -> None:
    made: list[int] = []

    def gradient(g: Any) -> Any:
        array = g * np.ones(3)
        made.append(array.ctypes.data)
        return array

    @mg.primitive(x=gradient)
    def total(xp: Any, x: Any) -> Any:
        return xp.sum(x)

    x = leaf(np.ones(3))
    total(x).backward()
    assert made == [x.grad.data.ctypes.data]


def test_second_backward_through_a_freed_graph() -> None:
    x = leaf(np.ones(3))
    y = mg.exp(x)
    loss = y.sum()
    loss.backward()
    before = x.grad.data.copy()
    with pytest.raises(RuntimeError, match=r"already freed.*retain_graph=True"):
        loss.backward()
    with pytest.raises(RuntimeError, match="already freed"):
        (y * 2.0).sum().backward()
    with pytest.raises(RuntimeError, match="already freed"):
        mg.grad(lambda z: (z * y).sum())(np.ones(3))
    np.testing.assert_array_equal(x.grad.data, before)


def test_long_chain_that_is_only_dropped() -> None:
    x = leaf(1.0)
    reference = weakref.ref(x)
    y = mg.exp(x)
    for _ in range(300_000):
        y = y + 1.0
    result = weakref.ref(y)
    del x, y  # deallocation must not recurse either
    assert (reference(), result()) == (None, None)


def test_intermediate_arrays_are_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        x = leaf(np.ones(10))
        hidden = mg.exp(x)
        product = hidden * hidden
        loss = product.sum()
        references = [weakref.ref(hidden.data), weakref.ref(product.data), weakref.ref(product)]
        del hidden, product
        assert references[1]() is None, "sum saved its argument, which no gradient names"
        loss.backward()
        assert [reference() for reference in references] == [None, None, None]
        model = nn.MLP([4, 8, 3], rng=0)
        out = nn.cross_entropy(model(np.ones((2, 4), np.float32)), np.array([0, 1]))
        dropped = [weakref.ref(out), weakref.ref(out.data)]
        del out  # never gone backward through
        assert [reference() for reference in dropped] == [None, None]
    finally:
        gc.enable()


def test_what_only_one_gradient_needs_is_freed_before_the_next_is_computed() -> None:
    alive: list[bool] = []

    def gradient_of_x(g: Any, y: Any) -> Any:
        alive.append(reference() is not None)
        return g * y

    @mg.primitive(y=lambda g, x: g * x, x=gradient_of_x)
    def product(xp: Any, x: Any, y: Any) -> Any:
        return x * y

    for retain_graph in (True, False):
        x, y = leaf(np.ones(3)), leaf(np.ones(3))
        hidden = -x
        reference = weakref.ref(hidden.data)
        loss = product(hidden, y).sum()
        del hidden
        loss.backward(retain_graph=retain_graph)
    assert alive == [True, False]


@pytest.mark.parametrize(("op", "objects"), [(mg.tanh, 1), (lambda x: x * 0.5, 1), (lambda x: x * x, 2)])
def test_what_the_garbage_collector_goes_through_of_a_growing_graph(op: Any, objects: int) -> None:
    x = op(leaf(np.zeros(2)))
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        x = op(x)
    gc.collect()  # which stops looking at tuples of arrays and numbers alone
    assert len(gc.get_objects()) - before == pytest.approx(objects * 1000, abs=20)


def test_constants_and_their_factors_are_not_saved() -> None:
    x, constant = leaf(np.ones(1000)), mg.tensor(np.full(1000, 3.0))
    reference = weakref.ref(x.data)
    y = x * 2.0
    x.data = np.zeros(1000)  # the old array has no other owner than what x * 2.0 saved
    assert reference() is None
    z = mg.exp(y) * constant
    del y
    z.sum().backward()
    np.testing.assert_array_equal(x.grad.data, 2 * np.exp(2.0) * 3 * np.ones(1000))


@pytest.mark.parametrize("kind", ["leaf", "interior"])
def test_parts_of_one_tensor_are_added_into_one_array(kind: str, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, made = mg.tensor(device.array(np.arange(12.0).reshape(3, 4)), requires_grad=True), []
    for namespace in NAMESPACES.values():
        original = namespace.scatter_add
        monkeypatch.setattr(namespace, "scatter_add", lambda *x, f=original: made.append(1) or f(*x))
    y = x if kind == "leaf" else x * 1.0
    weights = device.array(np.arange(1.0, 5.0))
    total = (y[0] * weights).sum() + (y[1:, ::2] * 2.0).sum() + y[-1, -1] * y[0, 0]
    total.backward()
    expected = np.zeros((3, 4))
    expected[0] += np.arange(1.0, 5.0)
    expected[1:, ::2] += 2
    expected[-1, -1] += 0
    expected[0, 0] += 11
    np.testing.assert_array_equal(device.host(x.grad.data), expected)
    assert len(made) == 1


def test_a_part_does_not_change_what_others_hold() -> None:
    x = leaf(np.ones((2, 3)))
    g = np.full((2, 3), 5.0)
    y = x.reshape((2, 3))
    (y + x[0]).backward(g)
    np.testing.assert_array_equal(g, 5.0)
    np.testing.assert_array_equal(x.grad.data, [[15.0, 15, 15], [5, 5, 5]])
    half = leaf(np.ones(4, np.float32))
    (half[:2].astype(np.float64).sum() + half[1:].sum()).backward()
    assert half.grad.dtype == np.float32
    np.testing.assert_array_equal(half.grad.data, [1, 2, 1, 1])
