"""The graph and changes in place: backward refuses what was changed since, and nothing else."""

from __future__ import annotations

import array
from typing import Any, NamedTuple

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd import autograd
from microgradnd.inplace import owner_of
from tests.leaves import leaf


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


@pytest.mark.parametrize("kind", ["memmap", "array", "range"])
@pytest.mark.parametrize("at", [lambda i: i, lambda i: (i, 0)])
def test_indices_that_are_no_plain_arrays_are_copied(kind: str, at: Any) -> None:
    index: Any = {
        "memmap": np.array([0, 1]).view(np.memmap),
        "array": array.array("q", [0, 1]),
        "range": range(2),
    }[kind]
    x = mg.tensor(np.ones((4, 2)), requires_grad=True)
    taken = x[at(index)]
    scattered = mg.scatter_add(x[:2, 0] * 1, index, 3)
    if kind != "range":
        index[0] = 1
    taken.sum().backward()
    assert x.grad is not None
    assert x.grad.numpy()[:, 0].tolist() == [1, 1, 0, 0]
    assert scattered.numpy().tolist() == [1, 1, 0]
    assert x[range(0)].shape == (0, 2)


def test_an_index_that_is_a_named_tuple() -> None:
    class At(NamedTuple):
        row: Any
        column: Any

    x = mg.tensor(np.arange(12.0).reshape(3, 4))
    assert x[At(0, 1)].item() == 1.0
    assert x[At(slice(0, 2), slice(1, 3))].shape == (2, 2)
    assert mg.scatter_add(mg.tensor(1.0), At(0, 1), (3, 4)).sum().item() == 1.0
    for index in ({}, frozenset(), 1.0):
        with pytest.raises(IndexError):
            x[index]


def test_gradients_that_are_constants_share_no_memory() -> None:
    """With create_graph too: they may be changed in place, by clipping for example."""
    x, y = (mg.tensor(np.zeros(3), requires_grad=True) for _ in range(2))
    for create_graph in (False, True):
        ((x + y) * np.array([1.0, 2, 3])).sum().backward(create_graph=create_graph)
        assert x.grad is not None
        assert y.grad is not None
        x.grad.data *= 10
        assert y.grad.numpy().tolist() == [1, 2, 3]
        x.zero_grad()
        y.zero_grad()
        x.sum().backward(create_graph=create_graph)
        x.grad.data *= 2
        assert x.grad.numpy().tolist() == [2, 2, 2]
        x.zero_grad()
