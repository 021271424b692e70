import re

import numpy as np
import pytest

import microgradnd as mg
import nn


def test_one_hot():
    rows = nn.one_hot(np.array([2, 0, 1]))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert nn.one_hot([1, 0], 4, np.float64).dtype == np.float64
    np.testing.assert_array_equal(nn.one_hot([1, 0], 4), [[0, 1, 0, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize(("labels", "shape"), [(2, (5,)), ([[1, 2], [3, 4]], (2, 2, 5)), (np.zeros(0, int), (0, 5))])
def test_one_hot_adds_an_axis(labels, shape):
    rows = nn.one_hot(labels, 5)
    assert rows.shape == shape
    if rows.size:
        np.testing.assert_array_equal(rows.argmax(axis=-1), labels)
        np.testing.assert_array_equal(rows.sum(axis=-1), np.ones(shape[:-1]))


def test_one_hot_of_small_and_unsigned_integers():
    np.testing.assert_array_equal(nn.one_hot(np.array([0, 255], np.uint8)).argmax(axis=1), [0, 255])
    assert nn.one_hot(np.zeros(0, int)).shape == (0, 0)


@pytest.mark.parametrize(
    ("labels", "num_classes", "error", "message"),
    [
        ([0.0, 1.0], None, TypeError, "one_hot: labels must be integers, got float64"),
        ([True, False], None, TypeError, "one_hot: labels must be integers, got bool"),
        ([0, 3], 3, ValueError, "one_hot: labels must lie in 0 to 2, got 0 to 3"),
        ([-1, 1], None, ValueError, "one_hot: labels must lie in 0 to 1, got -1 to 1"),
        ([-1], None, ValueError, "one_hot: labels must lie in 0 to 0, got -1 to -1"),
        ([1], 2.5, TypeError, "num_classes must be an integer, got 2.5"),
    ],
)
def test_one_hot_refuses(labels, num_classes, error, message):
    with pytest.raises(error, match=message):
        nn.one_hot(np.array(labels), num_classes)


def test_standardize_takes_mean_and_deviation_from_the_training_rows_alone():
    rng = np.random.default_rng(0)
    train, test = rng.normal(5, 3, (40, 4)), rng.normal(-5, 30, (20, 4))
    before = train.copy()
    a, b = nn.standardize(train, test)
    np.testing.assert_allclose(a.mean(axis=0), np.zeros(4), atol=1e-14)
    np.testing.assert_allclose(a.std(axis=0), np.ones(4), rtol=1e-14)
    np.testing.assert_allclose(b, (test - train.mean(axis=0)) / train.std(axis=0), rtol=1e-14)
    np.testing.assert_array_equal(train, before)
    np.testing.assert_array_equal(nn.standardize(train), a)  # alone: an array, not a tuple
    assert len(nn.standardize(train, test, test)) == 3


def test_standardize_only_shifts_constant_features():
    train, test = np.array([[7.0, 1], [7, 3]]), np.array([[9.0, 2]])
    a, b = nn.standardize(train, test)
    np.testing.assert_array_equal(a, [[0, -1], [0, 1]])
    np.testing.assert_array_equal(b, [[2, 0]])


@pytest.mark.parametrize("value", [0.1, 1e-5, 1 / 3, 12345.678])
def test_standardize_of_a_constant_stays_small(value):
    """The mean of equal numbers may be off by a rounding error, which must not be blown up."""
    for dtype in (np.float32, np.float64):
        a = nn.standardize(np.full((999, 1), value, dtype))
        assert np.abs(a).max() <= 1e-4 * value


def test_standardize_keeps_float32_and_turns_integers_into_float64():
    assert nn.standardize(np.array([[1], [3]], np.float32)).dtype == np.float32
    for dtype in (np.int64, np.uint8, bool):
        a, b = nn.standardize(np.array([[0], [1]], dtype), np.array([[1]], dtype))
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_array_equal(a, [[-1], [1]])
        np.testing.assert_array_equal(b, [[1]])


@pytest.mark.parametrize("shape", [(6,), (6, 2, 3)])
def test_standardize_rows_of_any_shape(shape):
    x = np.random.default_rng(1).normal(2, 5, shape)
    np.testing.assert_allclose(nn.standardize(x), (x - x.mean(axis=0)) / x.std(axis=0), rtol=1e-13)


def test_standardize_refuses():
    for empty in (np.zeros((0, 3)), np.float64(3)):
        message = re.escape(f"standardize: expected rows to take the mean of, got shape {np.shape(empty)}")
        with pytest.raises(ValueError, match=message):
            nn.standardize(empty)
    for other in (np.zeros((5, 2)), np.zeros(3), np.float64(1)):
        message = re.escape(f"standardize: features differ: shapes (4, 3) and {np.shape(other)}")
        with pytest.raises(ValueError, match=message):
            nn.standardize(np.zeros((4, 3)), other)
    assert nn.standardize(np.ones((4, 3)), np.zeros((0, 3)))[1].shape == (0, 3)  # an empty test set is one
    with pytest.raises(TypeError, match="masked array"):
        nn.standardize(np.ma.masked_less(np.ones((4, 3)), 0))
    with pytest.raises(TypeError, match="expected real numbers, got <U1"):
        nn.standardize(np.full((4, 3), "1"))
    with pytest.raises(TypeError, match="expected real numbers"):
        nn.standardize(np.full((4, 3), 1j))
    with pytest.raises(TypeError, match="expected real numbers: could not convert"):
        nn.standardize(np.full((4, 3), "a", object))


def test_standardize_takes_tensors_and_objects_that_are_numbers():
    x = np.arange(12.0).reshape(4, 3)
    expected = nn.standardize(x)
    for given in (mg.tensor(x, requires_grad=True), x.astype(object), x.astype(int)):
        np.testing.assert_array_equal(nn.standardize(given), expected)


@pytest.mark.parametrize(("n", "size"), [(10, 4), (10, 5), (10, 1), (10, 10), (10, 99)])
def test_batches_are_slices_of_one_permutation(n, size):
    X, y = np.arange(2 * n).reshape(n, 2), np.arange(n)
    found = list(nn.batches(X, y, size, rng=np.random.default_rng(3)))
    assert [len(a) for a, _ in found] == [size] * (n // size) + [n % size] * (n % size > 0)
    order = np.random.default_rng(3).permutation(n)
    np.testing.assert_array_equal(np.concatenate([b for _, b in found]), y[order])
    np.testing.assert_array_equal(np.concatenate([a for a, _ in found]), X[order])


def test_batches_without_shuffling_keep_the_order_and_draw_nothing():
    rng = np.random.default_rng(0)
    y = np.arange(7)
    found = [b.tolist() for _, b in nn.batches(y * 2, y, 3, shuffle=False, rng=rng)]
    assert found == [[0, 1, 2], [3, 4, 5], [6]]
    assert rng.integers(1 << 60) == np.random.default_rng(0).integers(1 << 60)


def test_batches_and_their_generator():
    y = np.arange(50)

    def order(rng):
        return np.concatenate([b for _, b in nn.batches(y, y, 8, rng=rng)]).tolist()

    rng = np.random.default_rng(5)
    first, second = order(rng), order(rng)
    assert sorted(first) == sorted(second) == y.tolist()
    assert first != second  # one generator: a new order each epoch
    assert order(5) == order(5) == first  # a seed: the same one
    assert order(None) != order(None)


def test_batches_refuse_before_the_first_batch():
    X = np.zeros((5, 2))
    with pytest.raises(ValueError, match="batches: X has 5 rows, y has 4"):
        nn.batches(X, X[:4], 2)
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batches: batch_size must be at least 1, got {size}"):
            nn.batches(X, X, size)
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        nn.batches(X, X, 2.0)
    with pytest.raises(TypeError, match=r"batches: shuffle must be True or False, got Generator.*rng="):
        nn.batches(X, X, 2, np.random.default_rng(0))
    assert len(list(nn.batches(X, X, 2, 1))) == 3
    for batch in (X, [X]):
        with pytest.raises(
            TypeError, match=r"prefetch: expected tuples of arrays, got an array of shape \(.*; of one: \(x,\)"
        ):
            list(nn.prefetch(batch))
    assert list(nn.batches(X[:0], X[:0], 2)) == []


def test_standardize_of_many_rows_and_of_halves():
    x = np.random.default_rng(0).normal(100, 1, (2_000_000, 2)).astype(np.float32)
    z = nn.standardize(x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(z.std(axis=0, dtype=np.float64), 1, rtol=1e-6)
    half = nn.standardize(np.random.default_rng(0).integers(0, 256, (5000, 4)).astype(np.float16))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.astype(float).std(axis=0), 1, rtol=1e-3)
