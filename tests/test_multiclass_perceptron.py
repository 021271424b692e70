import re

import numpy as np
import pytest

from demos import multiclass_perceptron as demo
from demos import perceptron as binary
from demos.multiclass_perceptron import (
    accuracy,
    fit,
    load_digits,
    main,
    mistake_bound,
    predict,
    split,
    standardise,
    train_epoch,
)

# Three points, one per class, worked out by hand with lr 1: (W, b) after each row of each epoch.
THREE = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
TRACE = [
    [
        ([[0, 0], [0, 0], [0, 0]], [0, 0, 0]),  # all scores tie at 0: class 0, right
        ([[0, -1], [0, 1], [0, 0]], [-1, 1, 0]),  # tie again: class 0, but 1 was right
        ([[1, 0], [0, 1], [-1, -1]], [-2, 1, 1]),  # scores 0, 0, 0: class 0, but 2 was right
    ],
    [
        ([[2, 0], [-1, 1], [-1, -1]], [-1, 0, 1]),  # scores -1, 1, 0: class 1, but 0 was right
        ([[2, 0], [-1, 1], [-1, -1]], [-1, 0, 1]),  # scores -1, 1, 0: right
        ([[2, 0], [-1, 1], [-1, -1]], [-1, 0, 1]),  # scores -3, 0, 3: right
    ],
]


def separable_data(rng, n, d, k, margin):
    """Rows of which the right class leads every other by the margin, and the separator W, b."""
    U = rng.standard_normal((k, d + 1))
    U /= np.linalg.norm(U)
    X = 2 * rng.standard_normal((n, d))
    ranked = np.sort(X @ U[:, :-1].T + U[:, -1], axis=1)
    X = X[ranked[:, -1] - ranked[:, -2] >= margin]
    return X, predict(U[:, :-1], U[:, -1], X), U[:, :-1], U[:, -1]


def test_updates_follow_the_trace_worked_out_by_hand():
    W, b = np.zeros((3, 2)), np.zeros(3)
    for epoch, expected_mistakes in zip(TRACE, (2, 1), strict=True):
        mistakes = 0
        for row, (expected_W, expected_b) in enumerate(epoch):
            mistakes += train_epoch(W, b, THREE[row : row + 1], np.array([row]), lr=1.0)
            np.testing.assert_array_equal(W, expected_W)
            np.testing.assert_array_equal(b, expected_b)
        assert mistakes == expected_mistakes

    fitted_W, fitted_b, mistakes = fit(THREE, np.arange(3), 3, lr=1.0)
    assert mistakes == [2, 1, 0]
    np.testing.assert_array_equal(fitted_W, W)
    np.testing.assert_array_equal(fitted_b, b)


def test_a_tie_goes_to_the_lowest_class():
    X = np.array([[1.0, 2.0]])
    assert predict(np.zeros((4, 2)), np.zeros(4), X).tolist() == [0]
    assert predict(np.zeros((4, 2)), np.array([-1.0, 0.0, 3.0, 3.0]), X).tolist() == [2]
    assert predict(np.array([[0.0, 0], [2, 0], [0, 1]]), np.zeros(3), X).tolist() == [1]  # scores 0, 2, 2


@pytest.mark.parametrize("kind", ["whole numbers", "real numbers"])
@pytest.mark.parametrize("seed", range(10))
def test_two_classes_are_the_binary_perceptron(kind, seed):
    """With k = 2 the class 1 weights are the binary w, the class 0 weights are -w; mistakes are the same.

    Both start at zero, and a mistake adds lr * x to one class and takes it from the other, so W[0] = -W[1]
    and b[0] = -b[1] always. Then argmax says 1 exactly if W[1] . x + b[1] > 0, which is the binary
    threshold, ties included: a tie goes to class 0, and step(0) = 0. The data are not separable, so the
    two have many chances to part, and small whole numbers make many exact ties.
    """
    rng = np.random.default_rng(seed)
    X = rng.integers(-2, 3, (40, 3)).astype(float) if kind == "whole numbers" else rng.standard_normal((40, 3))
    targets = rng.integers(0, 2, 40)
    w, b, binary_mistakes = binary.fit(X, targets, lr=0.5, epochs=20)
    W, bs, mistakes = fit(X, targets, 2, lr=0.5, epochs=20)
    assert mistakes == binary_mistakes
    assert sum(mistakes) > 20
    np.testing.assert_array_equal(W, [-w, w])
    np.testing.assert_array_equal(bs, [-b, b])
    np.testing.assert_array_equal(predict(W, bs, X), binary.predict(w, b, X))


def test_mistakes_stay_within_the_bound_on_random_separable_sets():
    rng = np.random.default_rng(0)
    with_mistakes = several = 0
    for _ in range(200):
        n, d, k = int(rng.integers(20, 60)), int(rng.integers(2, 9)), int(rng.integers(2, 7))
        X, targets, U, c = separable_data(rng, n, d, k, margin=10 ** rng.uniform(-1.5, -0.3))
        bound = mistake_bound(X, targets, U, c)
        W, b, mistakes = fit(X, targets, k, lr=10 ** rng.uniform(-2, 2), epochs=int(bound) + 1)
        assert sum(mistakes) <= bound
        assert mistakes[-1] == 0
        assert accuracy(W, b, X, targets) == 1
        with_mistakes += sum(mistakes) > 0
        several += sum(mistakes) >= 5
    assert with_mistakes >= 190
    assert several >= 100


def test_bound_by_hand():
    X, targets = np.eye(2), np.array([0, 1])
    W = np.array([[1.0, -1.0], [-1.0, 1.0]])  # norm 2; the right class leads by 2: gamma = 1; R^2 = 2
    assert mistake_bound(X, targets, W, np.zeros(2)) == pytest.approx(4, rel=1e-14)
    assert mistake_bound(X, targets[::-1], W, np.zeros(2)) == np.inf  # separates nothing


def test_weights_of_the_classes_sum_to_zero():
    """What a mistake gives one class it takes from another."""
    rng = np.random.default_rng(1)
    W, b, mistakes = fit(rng.integers(-9, 10, (50, 4)), rng.integers(0, 5, 50), 5, epochs=10)
    assert sum(mistakes) > 100
    assert np.abs(W).max() > 1
    np.testing.assert_array_equal(W.sum(axis=0), np.zeros(4))
    assert b.sum() == 0


@pytest.mark.parametrize(
    ("X", "targets", "k", "message"),
    [
        (np.zeros(3), [0, 1, 2], 3, r"X must have shape \(n, d\).*\(3,\)"),
        (THREE, [0, 1], 3, r"\(3, 2\).*shape \(3,\), got \(2,\)"),
        (THREE, [0, 1, 3], 3, r"0 \.\. 2, got \[0, 1, 3\]"),
        (THREE, [0, 1, -1], 3, r"0 \.\. 2, got \[-1, 0, 1\]"),
        (THREE, [0, 0.5, 1], 3, r"0 \.\. 2, got \[0\.0, 0\.5, 1\.0\]"),
        (THREE, [0, 0, 0], 1, "at least 2 classes, got 1"),
        (THREE + np.inf, [0, 1, 2], 3, "X must be finite"),
    ],
)
def test_fit_refuses_bad_data(X, targets, k, message):
    with pytest.raises(ValueError, match=message):
        fit(X, np.array(targets), k)


@pytest.mark.parametrize(("lr", "epochs", "name"), [(-1, 1, "lr"), (np.inf, 1, "lr"), (1.0, 0, "epochs")])
def test_fit_refuses_bad_settings(lr, epochs, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        fit(THREE, np.arange(3), 3, lr, epochs)


def test_split_keeps_rows_with_their_targets_and_loses_none():
    X = np.arange(50.0)[:, None]
    X_train, targets_train, X_test, targets_test = split(np.random.default_rng(0), X, np.arange(50), 0.2)
    assert (len(X_train), len(X_test)) == (40, 10)
    np.testing.assert_array_equal(X_train[:, 0], targets_train)
    np.testing.assert_array_equal(X_test[:, 0], targets_test)
    np.testing.assert_array_equal(np.sort(np.append(targets_train, targets_test)), np.arange(50))
    assert not np.array_equal(targets_test, np.sort(targets_test))  # shuffled


def test_standardise_looks_at_the_training_set_alone():
    X_train = np.array([[1.0, 5.0], [3.0, 5.0]])  # means 2 and 5, deviations 1 and 0
    train, test = standardise(X_train, np.array([[12.0, 6.0]]))
    np.testing.assert_array_equal(train, [[-1, 0], [1, 0]])
    np.testing.assert_array_equal(test, [[10, 1]])


@pytest.mark.parametrize("seed", range(3))
def test_digits(seed):
    pytest.importorskip("sklearn")
    X, targets, X_test, targets_test = load_digits(np.random.default_rng(seed))
    assert (X.shape, X_test.shape) == ((1438, 64), (359, 64))
    W, b, mistakes = fit(X, targets, 10, epochs=20)
    assert mistakes[-1] < mistakes[0] / 4
    assert accuracy(W, b, X_test, targets_test) >= 0.90


def test_main_repeats_itself_and_writes_the_picture(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    printed, pictures = [], []
    for _ in range(2):
        main(["--epochs", "3", "--seed", "1", "--out", str(tmp_path / "digits.png")])
        printed.append(capsys.readouterr().out)
        pictures.append((tmp_path / "digits.png").read_bytes())
    assert printed[0] == printed[1]
    assert pictures[0] == pictures[1]
    assert pictures[0].startswith(b"\x89PNG")
    assert len(re.findall(r"^epoch .* mistakes .* test accuracy 0\.\d{4}$", printed[0], re.M)) == 3
    assert "not converged in 3 epochs" in printed[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--lr", "-1"], "--lr must be positive and finite, got -1.0"),
        (["--lr", "inf"], "--lr must be positive and finite, got inf"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--out", "picture"], "--out must end in .png, .pdf or .svg, got 'picture'"),
        (["--out", "missing/picture.png"], "--out 'missing/picture.png' cannot be written"),
    ],
)
def test_main_refuses_before_training(argv, message, tmp_path, monkeypatch, capsys):
    def no_data(*args):
        raise AssertionError("loaded the data")

    monkeypatch.setattr(demo, "load_digits", no_data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
