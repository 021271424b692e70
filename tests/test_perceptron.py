import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from demos import perceptron
from demos.perceptron import fit, main, mistake_bound, predict, separable_data, step, update

CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
AND = np.array([0, 0, 0, 1])
OR = np.array([0, 1, 1, 1])
XOR = np.array([0, 1, 1, 0])


def test_step_of_zero_is_zero():
    np.testing.assert_array_equal(step(np.array([-2.0, -0.0, 0.0, 1e-300, 3.0])), [0, 0, 0, 1, 1])


def test_predict_one_score_per_row():
    X = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]])
    np.testing.assert_array_equal(predict(np.array([1.0, -1.0]), 0.5, X), [0, 1, 0])  # -0.5, 4.5, -0.5


def test_update_moves_towards_the_target_and_only_on_a_mistake():
    w, b, x = np.array([1.0, -1.0]), 0.5, np.array([2.0, 3.0])  # w . x + b = -0.5, predicts 0
    new_w, new_b, error = update(w, b, x, 1, lr=0.5)
    assert (new_w.tolist(), new_b, error) == ([2.0, 0.5], 1.0, 1)
    same_w, same_b, error = update(w, b, x, 0, lr=0.5)
    assert (same_w.tolist(), same_b, error) == ([1.0, -1.0], 0.5, 0)
    w, b, error = update(np.array([1.0, 1.0]), 0.0, x, 0, lr=0.5)  # score 5, predicts 1
    assert (w.tolist(), b, error) == ([0.0, -0.5], -0.5, -1)


# Worked out by hand with lr 1: for each epoch the mistakes, as (corner, w after it, b after it).
AND_TRACE = [
    [((1, 1), (1, 1), 1)],
    [((0, 0), (1, 1), 0), ((0, 1), (1, 0), -1), ((1, 1), (2, 1), 0)],
    [((0, 1), (2, 0), -1), ((1, 0), (1, 0), -2), ((1, 1), (2, 1), -1)],
    [((1, 0), (1, 1), -2), ((1, 1), (2, 2), -1)],
    [((0, 1), (2, 1), -2)],
    [],
]
OR_TRACE = [
    [((0, 1), (0, 1), 1)],
    [((0, 0), (0, 1), 0), ((1, 0), (1, 1), 1)],
    [((0, 0), (1, 1), 0)],
    [],
]


@pytest.mark.parametrize(("targets", "trace"), [(AND, AND_TRACE), (OR, OR_TRACE)], ids=["and", "or"])
def test_and_and_or_follow_the_trace_worked_out_by_hand(targets, trace):
    w, b = np.zeros(2), 0.0
    for expected in trace:
        seen = []
        for x, target in zip(CORNERS, targets, strict=True):
            w, b, error = update(w, b, x, target, lr=1.0)
            if error:
                seen.append((tuple(x), tuple(w), b))
        assert seen == expected

    fitted_w, fitted_b, mistakes = fit(CORNERS, targets, lr=1.0, epochs=100)
    assert mistakes == [len(epoch) for epoch in trace]
    assert (fitted_w.tolist(), fitted_b) == (w.tolist(), b)
    np.testing.assert_array_equal(predict(fitted_w, fitted_b, CORNERS), targets)


def test_xor_never_converges():
    _, _, mistakes = fit(CORNERS, XOR, epochs=500)
    assert len(mistakes) == 500
    assert min(mistakes) > 0
    # Not merely slow: the weights come back to values they had before, so the epochs repeat for ever.
    states = [(*w, b) for w, b, _ in (fit(CORNERS, XOR, epochs=k) for k in range(1, 20))]
    assert len(set(states)) < len(states)


def test_mistakes_stay_within_the_bound_on_random_separable_sets():
    rng = np.random.default_rng(0)
    n_sets, with_mistakes, several = 600, 0, 0
    for seed in range(n_sets):
        n, d = int(rng.integers(1, 41)), int(rng.integers(1, 11))
        margin, lr = 10 ** rng.uniform(-2, 0.3), 10 ** rng.uniform(-3, 3)
        X, targets, separator = separable_data(np.random.default_rng(seed), n, d, margin)
        bound = mistake_bound(X, targets, separator)
        # Each epoch but the last has a mistake, so the bound also limits the epochs.
        w, b, mistakes = fit(X, targets, lr, epochs=int(bound) + 1)
        assert sum(mistakes) <= bound
        assert mistakes[-1] == 0
        np.testing.assert_array_equal(predict(w, b, X), targets)
        with_mistakes += sum(mistakes) > 0
        several += sum(mistakes) >= 5
    assert with_mistakes > 0.9 * n_sets
    assert several > 0.4 * n_sets


def test_bound_by_hand():
    X, targets = np.array([[3.0], [-1.0]]), np.array([1, 0])
    # x' = (3, 1) and (-1, 1), R^2 = 10; u = (2, 0) has norm 2 and margins 3 and 1.
    assert mistake_bound(X, targets, np.array([2.0, 0.0])) == pytest.approx(10, rel=1e-14)


def test_bound_can_be_reached():
    # (1, 1) and (-1, 1) are orthogonal: what is learned from one says nothing about the other.
    X, targets = np.array([[1.0], [-1.0]]), np.array([1, 1])
    assert mistake_bound(X, targets, np.array([0.0, 1.0])) == pytest.approx(2, rel=1e-14)
    assert fit(X, targets)[2] == [2, 0]


def test_bound_refuses_what_does_not_separate():
    with pytest.raises(ValueError, match="does not separate"):
        mistake_bound(CORNERS, XOR, np.array([1.0, 1.0, -0.5]))
    with pytest.raises(ValueError, match=r"\(4, 2\).*3 entries.*\(2,\)"):
        mistake_bound(CORNERS, AND, np.ones(2))


@pytest.mark.parametrize(("n", "d", "margin"), [(1, 1, 0.1), (50, 2, 0.5), (200, 7, 0.01), (30, 40, 3.0)])
def test_separable_data_keeps_its_margin(n, d, margin):
    X, targets, separator = separable_data(np.random.default_rng(3), n, d, margin)
    assert (X.shape, targets.shape, separator.shape) == ((n, d), (n,), (d + 1,))
    assert np.linalg.norm(separator) == pytest.approx(1, rel=1e-14)
    margins = (2 * targets - 1) * (X @ separator[:-1] + separator[-1])
    assert margins.min() >= margin * (1 - 1e-12)


@pytest.mark.parametrize(("n", "d", "margin"), [(0, 2, 0.1), (5, 0, 0.1), (5, 2, 0.0), (5, 2, np.nan)])
def test_separable_data_refuses(n, d, margin):
    with pytest.raises(ValueError, match="need n >= 1"):
        separable_data(np.random.default_rng(0), n, d, margin)


def test_learning_rate_only_scales_the_weights():
    X, targets, _ = separable_data(np.random.default_rng(5), 60, 3, 0.05)
    w, b, mistakes = fit(X, targets, lr=1.0)
    small_w, small_b, small_mistakes = fit(X, targets, lr=0.125)  # a power of two: exact
    assert sum(mistakes) > 5
    assert small_mistakes == mistakes
    np.testing.assert_array_equal(small_w, 0.125 * w)
    assert small_b == 0.125 * b


def test_same_seed_same_bits():
    first, again, other = (separable_data(np.random.default_rng(s), 40, 4, 0.1) for s in (7, 7, 8))
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    assert first[0].tobytes() != other[0].tobytes()
    (w, b, mistakes), (w2, b2, mistakes2) = fit(*first[:2]), fit(*again[:2])
    assert (w.tobytes(), b, mistakes) == (w2.tobytes(), b2, mistakes2)


@pytest.mark.parametrize(
    ("X", "targets", "message"),
    [
        (np.zeros(4), AND, r"X must have shape \(n, d\).*\(4,\)"),
        (np.zeros((0, 2)), AND[:0], r"X must have shape \(n, d\).*\(0, 2\)"),
        (CORNERS, AND[:3], r"\(4, 2\).*shape \(4,\), got \(3,\)"),
        (CORNERS, AND[:, None], r"\(4, 2\).*shape \(4,\), got \(4, 1\)"),
        (CORNERS, 2 * AND - 1, r"targets must be 0 or 1, got \[-1, 1\]"),
        (np.where(CORNERS == 1, np.nan, 0.0), AND, "X must be finite"),
    ],
)
def test_fit_refuses_bad_data(X, targets, message):
    with pytest.raises(ValueError, match=message):
        fit(X, targets)


@pytest.mark.parametrize(("lr", "epochs", "name"), [(0, 1, "lr"), (np.nan, 1, "lr"), (1.0, 0, "epochs")])
def test_fit_refuses_bad_settings(lr, epochs, name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        fit(CORNERS, AND, lr, epochs)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--points", "0"], "--points must be at least 1, got 0"),
        (["--sets", "-3"], "--sets must be at least 1, got -3"),
        (["--lr", "0"], "--lr must be positive and finite, got 0.0"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--margin", "inf"], "--margin must be positive and finite, got inf"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--out", "picture.txt"], "--out must end in .png, .pdf or .svg, got 'picture.txt'"),
        (["--out", "missing/picture.png"], "--out 'missing/picture.png' cannot be written"),
        (["--out", "folder.png"], "--out 'folder.png' cannot be written"),
    ],
)
def test_main_refuses_before_training(argv, message, tmp_path, monkeypatch, capsys):
    def no_training(*args):
        raise AssertionError("trained")

    monkeypatch.setattr(perceptron, "fit", no_training)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_script_runs_from_anywhere_and_repeats_itself(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    command = [sys.executable, perceptron.__file__, "--sets", "5", "--seed", "3", "--out"]
    runs = [
        subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, check=True)
        for name in ("a.png", "b.png")
    ]
    assert "5 of 5 within their bound" in runs[0].stdout
    assert runs[0].stdout.replace("a.png", "b.png") == runs[1].stdout
    a, b = (Path(tmp_path, name).read_bytes() for name in ("a.png", "b.png"))
    assert a.startswith(b"\x89PNG")
    assert a == b


def test_main_draws_a_set_that_is_learned_without_a_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    # One point of target 0 is right from the start, so w stays zero and there is no line to draw.
    seeds = (s for s in range(20) if separable_data(np.random.default_rng(s), 1, 2, 0.1)[1][0] == 0)
    out = tmp_path / "one.svg"
    main(["--points", "1", "--sets", "1", "--seed", str(next(seeds)), "--out", str(out)])
    assert "converged at epoch 1, mistakes: 0" in capsys.readouterr().out
    assert out.stat().st_size > 0
