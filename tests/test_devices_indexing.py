"""Indices and random numbers on devices: what is out of range is seen, and what is drawn can be drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.backends import NAMESPACES

BAD = [([4], 0), ([-5], 0), ((slice(None), [0, 3]), 1), ((..., [-4]), 1), ((None, [0], [3]), 1), ((1, [7]), 1)]


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize(("index", "axis"), BAD)
def test_indices_out_of_range_are_refused(index: Any, axis: int, on_host: bool, device: Any) -> None:
    x = mg.tensor(np.ones((4, 3)), device=device.name)
    place = (lambda part: part) if on_host else device.array
    parts = index if isinstance(index, tuple) else (index,)
    there = tuple(place(np.array(part)) if isinstance(part, list) else part for part in parts)
    with pytest.raises(IndexError, match=rf"getitem: index .* is out of bounds for axis {axis}"):
        x[there]
    with pytest.raises(IndexError, match="out of bounds"):
        mg.scatter_add(mg.tensor(np.ones(3), device=device.name), place(np.array([0, 1, 4])), (4,))


def test_indices_without_axes_are_looked_at_too(device: Any) -> None:
    x = mg.tensor(np.arange(12.0).reshape(3, 4), device=device.name)
    for index in (np.array(3), np.array(-4), (slice(None), np.array(4)), (True, np.array([0, 3]))):
        parts = tuple(device.array(part) for part in (index if isinstance(index, tuple) else (index,)))
        with pytest.raises(IndexError, match="out of bounds"):
            x[parts]
    with pytest.raises(IndexError, match="out of bounds"):
        mg.scatter_add(mg.tensor(np.ones(2), device=device.name), device.array(np.array(7)), (3, 2))
    np.testing.assert_array_equal(x[True, device.array(np.array([0, 2]))].numpy(), x.numpy()[True, [0, 2]])
    np.testing.assert_array_equal(x[device.array(np.array(-1))].numpy(), x.numpy()[-1])
    with pytest.raises(IndexError, match="class indices must lie in 0 to 2, got 7"):
        mg.cross_entropy(mg.tensor(np.ones(3), device=device.name), 7)


def test_integers_and_other_dtypes_as_on_the_host(device: Any) -> None:
    out = mg.dropout(mg.tensor(np.arange(10), device=device.name), 0.5, rng=0)
    assert out.dtype == np.float64
    assert set(np.unique(out.numpy()[1:] / np.arange(1, 10))) <= {0.0, 2.0}
    angle = np.array([0.3, 0.4])
    for x, cos in ((np.arange(4), np.cos(angle)), (np.ones(4), np.cos(angle).astype(np.float32))):
        found = mg.rotate_halves(*(mg.tensor(v, device=device.name) for v in (x, cos, np.sin(angle))))
        expected = mg.rotate_halves(x, cos, np.sin(angle))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected.data, rtol=1e-15)


def test_a_table_that_changes_is_copied_anew(device: Any) -> None:
    layer, x = nn.SinusoidalPositions(8, 4), mg.tensor(np.ones((2, 8, 4)), device=device.name)
    layer(x)
    layer.table = 2 * layer.table
    np.testing.assert_array_equal(layer(x).numpy(), 1 + np.broadcast_to(layer.table, (2, 8, 4)))


def test_indices_come_to_the_tensors_device(device: Any) -> None:
    values = np.arange(24.0).reshape(4, 3, 2)
    mask = values[..., 0] > 7
    for index in (
        [1, -4, 3], np.array([[0, 1], [3, -1]]), (slice(1, None), [2, -3]), (..., [0, 1]), mask, (mask, 1),
        (0, None, [1]), ([0, 1], [2, 2]), np.array([], int), (np.array(2), [0]),
    ):  # fmt: skip
        x = mg.tensor(values, device=device.name, requires_grad=True)
        np.testing.assert_array_equal(x[index].numpy(), values[index])
        x[index].sum().backward()
        expected = np.zeros_like(values)
        np.add.at(expected, index, 1)
        np.testing.assert_array_equal(x.grad.numpy(), expected)  # type: ignore[union-attr]


def test_tokens_that_are_not_there_are_refused_on_the_host_and_nan_on_a_gpu(device: Any) -> None:
    layer = nn.Embedding(5, 3, rng=0).to(device.name)
    for tokens in ([5], [[0, -1]], np.array([2, 7])):
        with pytest.raises(IndexError, match="Embedding: tokens must lie in 0 to 4"):
            layer(tokens)
    tokens = device.array(np.array([[0, 5], [-1, 4]]))
    if device.name == "cpu":
        with pytest.raises(IndexError, match="Embedding: tokens must lie in 0 to 4"):
            layer(tokens)
    else:
        np.testing.assert_array_equal(np.isnan(layer(tokens).numpy()).all(-1), [[False, True], [True, False]])
        np.testing.assert_array_equal(layer(tokens).numpy()[0, 0], layer.weight.numpy()[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3,), (5, 7), (40, 256), (3, 1, 8)])
def test_dropout_and_a_residual_in_one_pass(shape: tuple[int, ...], dtype: Any, device: Any) -> None:
    rng = np.random.default_rng(0)
    x, r, g = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    tolerance = {np.float16: 2e-3, np.float32: 1e-6, np.float64: 1e-15}[dtype]
    for residual in (r, r[-1], None):
        tensor = mg.tensor(x, device=device.name, requires_grad=True)
        added = None if residual is None else mg.tensor(residual, device=device.name, requires_grad=True)
        out = mg.dropout(tensor, 0.25, rng=3, residual=added)
        factor = device.host(mg.dropout(mg.tensor(np.ones(shape), device=device.name), 0.25, rng=3).data)
        assert set(np.unique(factor)) <= {0, 1 / 0.75}
        expected = x * factor + (0 if residual is None else residual.astype(float))
        np.testing.assert_allclose(out.numpy().astype(float), expected, rtol=tolerance, atol=tolerance)
        assert out.dtype == dtype
        out.backward(device.array(g))
        np.testing.assert_allclose(tensor.grad.numpy().astype(float), g * factor, rtol=tolerance)  # type: ignore[union-attr]
        if added is not None:
            total = g.astype(float) if residual is r else g.astype(float).sum(0)
            np.testing.assert_allclose(added.grad.numpy(), total, rtol=10 * tolerance, atol=10 * tolerance)  # type: ignore[union-attr]
    mg.check_grads(
        lambda x, r: mg.dropout(x, 0.5, 7, r), device.array(np.ones((2, 3))), device.array(np.ones((2, 3))), order=2
    )


def test_dropout_draws_from_the_generators_seed_on_the_device(device: Any) -> None:
    xp = NAMESPACES[device.xp.ndarray]
    for seed, number, shape, p in ((5, 0, (3, 7), 0.5), (2**63 - 1, 12, (999,), 0.1), (7, 2**40, (2, 0), 0.3)):
        drawn = np.random.Generator(np.random.Philox(key=[seed, number])).random(shape, np.float32)
        np.testing.assert_array_equal(device.host(xp.kept(seed, number, shape, p)), drawn >= p)
    x = mg.tensor(np.full((64, 64), np.inf), device=device.name)
    layer = nn.Dropout(0.25, rng=3)
    state = layer.rng.bit_generator.state
    first, second = layer(x).numpy(), layer(x).numpy()
    assert set(np.unique(first)) == {0, np.inf}  # what is dropped is 0, not infinity times 0
    assert 0.2 < (first == 0).mean() < 0.3
    assert (first != second).any()
    layer.rng.bit_generator.state = state
    np.testing.assert_array_equal(layer(x).numpy(), first)
