"""The graph: order, accumulation, freeing, depth, memory, threads, changes in place."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any, NamedTuple

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd import autograd
from microgradnd.backends import NAMESPACES
from microgradnd.inplace import owner_of


def leaf(value: Any = 2.0) -> mg.Tensor:
    return mg.tensor(value, requires_grad=True)


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


def test_long_chain_that_is_only_dropped() -> None:
    x = leaf(1.0)
    reference = weakref.ref(x)
    y = mg.exp(x)
    for _ in range(300_000):
        y = y + 1.0
    result = weakref.ref(y)
    del x, y  # deallocation must not recurse either
    assert (reference(), result()) == (None, None)


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


def test_values_changed_in_place_before_backward() -> None:
    w = leaf(np.ones(3))
    loss = (w * w).sum()
    w.data -= 0.5
    with pytest.raises(RuntimeError, match=r"multiply saved an array of shape \(3,\).*changed in place"):
        loss.backward()
    assert w.grad is None

    viewed = leaf(np.ones((3, 2)))
    loss = (np.ones((4, 2)) @ viewed.T).sum() + (viewed.T * viewed.T).sum()
    viewed.data += 1.0
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()

    x, constant = leaf(np.ones(3)), mg.tensor(np.ones(3))
    loss = (x * constant).sum() + (x * constant.detach()).sum()
    constant.data -= 1.0
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()

    swapped = leaf(np.ones(3))
    loss = (swapped * swapped).sum()
    swapped.data -= 0.5
    swapped.data = np.zeros(3)
    swapped.data -= 0.5
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()

    unaffected = leaf(np.ones(3))
    loss = (unaffected + 1.0).sum()  # addition saves nothing
    unaffected.data -= 0.5
    loss.backward()
    np.testing.assert_array_equal(unaffected.grad.data, np.ones(3))

    replaced = leaf(np.ones(3))
    loss = (replaced * replaced).sum()
    replaced.data = replaced.data - 0.5  # a new array: the graph keeps the old values
    loss.backward()
    np.testing.assert_array_equal(replaced.grad.data, [2, 2, 2])


def test_arrays_in_tuples_with_the_names_of_arrays_attributes() -> None:
    class Window(NamedTuple):
        weights: Any
        strides: int

    @mg.primitive(x=lambda g, window, x: g * window.weights * x)
    def weighted(xp: Any, x: Any, window: Any) -> Any:
        return window.weights * x * x / 2

    w = leaf(np.ones(3))
    y = weighted(leaf(np.ones(3)), Window(w.data, 1)).sum()
    w.data -= 1.0
    with pytest.raises(RuntimeError, match="weighted saved an array of shape"):
        y.backward()


def test_an_optimiser_step_before_backward() -> None:
    model = nn.MLP([3, 4, 2], rng=0, dtype=np.float64)
    optimizer = nn.SGD(model.parameters(), lr=0.1)
    x = np.ones((5, 3))

    def gradient(loss: mg.Tensor) -> Any:
        model.zero_grad()
        loss.backward(retain_graph=True)
        return model.parameters()[0].grad.data

    loss = model(x).sum()
    expected = gradient(loss)
    optimizer.step()  # the first step moves the parameters to arrays of the optimiser's own
    np.testing.assert_array_equal(gradient(loss), expected)

    loss = model(x).sum()
    gradient(loss)
    optimizer.step()  # from now on they change in place
    with pytest.raises(RuntimeError, match="changed in place"):
        gradient(loss)


def test_a_change_is_noticed_through_windows() -> None:
    """Between an array and such a view of it NumPy puts an object that is no array."""
    parameter = leaf(np.ones(4))
    optimizer = nn.SGD([parameter], lr=0.1)
    for _ in range(2):  # the first step makes an array of the optimiser's own
        windows = np.lib.stride_tricks.sliding_window_view(parameter.data, 2)
        loss = (leaf(np.ones(2)) * windows).sum()
        parameter.grad = mg.tensor(np.ones(4))
        optimizer.step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_the_owner_of_memory_is_an_array() -> None:
    class Provider:
        def __init__(self, array: Any) -> None:
            self.__array_interface__ = array.__array_interface__
            self.kept, self.base = array, self

    array = np.asarray(Provider(np.ones(3)))
    assert owner_of(array[1:]) is array
    assert owner_of(np.lib.stride_tricks.as_strided(array, (2, 2), (8, 8))[0]) is array


def test_an_interior_tensor_changed_in_place() -> None:
    y = mg.exp(leaf(np.ones(3)))
    with pytest.raises(RuntimeError, match="made by exp was given other values, or changed in place"):
        y.data += 1


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


def test_a_refused_change_in_place_is_not_forgotten() -> None:
    x = leaf(np.ones(3))
    y = mg.exp(x)
    with pytest.raises(RuntimeError, match="made by exp"):
        y.data -= 1
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_the_gradient_of_a_scalar_can_be_changed_in_place() -> None:
    w = leaf(2.0)
    (w * w).backward()
    w.grad.data *= 0.5
    assert w.grad.item() == 2.0
    w.grad.data = np.array(7.0)
    assert w.grad.item() == 7.0


def test_after_an_unrelated_change_each_node_looks_at_its_own_arrays_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at, changed_since = [], autograd.changed_since
    monkeypatch.setattr(autograd, "changed_since", lambda *x: looked_at.append(x) or changed_since(*x))
    x, factor, other = leaf([1.0, 2.0]), np.array([3.0, 1.0]), leaf(np.ones(3))
    y = x
    for _ in range(100):
        y = y * factor
    y.sum().backward(retain_graph=True)
    assert not looked_at  # nothing was changed
    other.data -= 1.0
    y.sum().backward()
    assert len(looked_at) == 100


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


@pytest.mark.parametrize("index", [(), ..., None])
@pytest.mark.parametrize("kind", ["leaf", "interior"])
def test_parts_of_a_scalar(index: Any, kind: str) -> None:
    x = leaf(3.0)
    y = x if kind == "leaf" else x * 1.0
    z = y[index]
    (y * 2.0 + y * 3.0 + z.sum() + y[index].sum()).backward()
    assert x.grad.item() == 7.0
