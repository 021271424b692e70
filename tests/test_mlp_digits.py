import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nn
from demos import mlp_digits as demo

ROOT = Path(__file__).parents[1]


@pytest.fixture
def packages():
    for name in ("matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(name, reason=f"{name} is not installed: it comes with the extra demos")


def command(*argv):
    return [sys.executable, str(ROOT / "demos" / "mlp_digits.py"), *argv]


def environment():
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def run(*argv, cwd):
    return subprocess.run(command(*argv), cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def accuracy(output):
    return float(re.search(r"^test accuracy: ([\d.]+) %", output, re.M)[1]) / 100


@pytest.mark.usefixtures("packages")
def test_script_trains_draws_and_repeats_itself(tmp_path):
    first, second, other = (
        run("--epochs", "3", "--hidden", "32", "16", "--seed", seed, "--out", name, cwd=tmp_path)
        for seed, name in (("3", "a.png"), ("3", "a.png"), ("4", "b.png"))
    )
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == second.stdout
    assert first.stdout.splitlines()[:3] != other.stdout.splitlines()[:3]
    assert len(re.findall(r"training loss [\d.]+ accuracy [\d.]+  test loss", first.stdout)) == 3
    assert 0.5 < accuracy(first.stdout) < 1
    assert first.stdout.endswith("picture: a.png\n")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("packages")
def test_default_settings_read_97_percent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo.main([])
    assert accuracy(capsys.readouterr().out) >= 0.97
    assert (tmp_path / demo.OUT).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["--hidden", "64", "-3"], "--hidden must be at least 1, got -3"),
        (["--hidden"], "--hidden: expected at least one argument"),
        (["--hidden", "many"], "--hidden: invalid int value: 'many'"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--lr", "0"], "--lr must be positive and finite, got 0.0"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--lr", "inf"], "--lr must be positive and finite, got inf"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--out", "picture.gif"], "--out must end in .png, .pdf or .svg, got 'picture.gif'"),
        (["--out", "missing/picture.png"], "--out 'missing/picture.png' cannot be written: No such file"),
        (["--out", "folder.png"], "--out 'folder.png' cannot be written: Is a directory"),
    ],
)
def test_bad_options_are_refused_before_any_work(argv, message, tmp_path, monkeypatch, capsys):
    def no_data(*args):
        raise AssertionError("loaded the data")

    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(demo, "load_digits", no_data)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        demo.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_script_refuses_with_exit_code_2_and_no_traceback(tmp_path):
    result = run("--epochs", "0", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith("mlp_digits.py: error: --epochs must be at least 1, got 0\n")
    assert "Traceback" not in result.stderr


def test_a_picture_that_exists_survives_a_refusal(tmp_path):
    out = tmp_path / "old.png"
    out.write_bytes(b"old")
    assert demo.parse(["--out", str(out)]).out == out
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("package", ["matplotlib", "sklearn", "tqdm"])
@pytest.mark.usefixtures("packages")
def test_missing_packages_are_named(package, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what makes `import package` fail
    monkeypatch.setattr(sys, "argv", ["mlp_digits.py", "--out", str(tmp_path / "digits.png")])
    with pytest.raises(SystemExit, match=rf"needs {package}.* missing: pip install -e '\.\[demos\]'"):
        runpy.run_path(str(ROOT / "demos" / "mlp_digits.py"), run_name="__main__")


@pytest.mark.usefixtures("packages")
def test_a_diverging_loss_ends_in_one_sentence(tmp_path):
    result = run("--lr", "1e30", cwd=tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"the loss became \w+ in epoch 1: --lr 1e\+30 is too large\n", result.stderr)
    assert "test accuracy" not in result.stdout


@pytest.mark.usefixtures("packages")
def test_ctrl_c_ends_in_one_line(tmp_path):
    # The first batch sends the signal: no race between the training and the keyboard.
    script = (
        "import runpy, signal, sys, nn\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs begin without it
        "nn.batches = lambda *args, **kwargs: signal.raise_signal(signal.SIGINT)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *command()[1:]],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stderr.split()) == (130, [b"interrupted"])


def test_prepare_uses_the_training_set_alone():
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(5, 2, (50, 64)), rng.normal(50, 2, (20, 64))
    X[:, 0] = 7
    a, b = demo.prepare(X, X_test)
    assert a.dtype == b.dtype == np.float32
    expected = (X[:, 1:] - X[:, 1:].mean(axis=0)) / X[:, 1:].std(axis=0)
    np.testing.assert_allclose(a[:, 1:], expected.clip(-3, 3), rtol=1e-5, atol=1e-6)
    assert not a[:, 0].any()
    np.testing.assert_array_equal(b, np.full((20, 64), 3))  # 20 deviations away, cut off


def test_smoothed_targets_are_probabilities_around_the_label():
    targets = demo.smoothed(np.array([2, 9]))
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets.argmax(axis=1), [2, 9])
    np.testing.assert_allclose(targets.sum(axis=1), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(np.sort(targets[0]), [0.01] * 9 + [demo.TRUE_TARGET], rtol=1e-5)


def test_confusion_counts_pairs():
    counts = demo.confusion(np.array([1, 1, 1, 0, 9]), np.array([1, 7, 7, 0, 9]))
    assert counts.sum() == 5
    assert (counts[1, 1], counts[1, 7], counts[0, 0], counts[9, 9]) == (1, 2, 1, 1)


def test_evaluate_by_hand():
    model = nn.Linear(10, 10)
    model.weight.data = np.eye(10) * 100
    loss, share, predictions = demo.evaluate(model, np.eye(10, dtype=np.float32)[[3, 4, 5]], np.array([3, 4, 6]))
    np.testing.assert_array_equal(predictions, [3, 4, 5])
    assert share == pytest.approx(2 / 3)
    assert loss == pytest.approx(100 / 3)  # one row is wrong by 100


@pytest.mark.parametrize("mistakes", [0, 1, demo.SHOWN, demo.SHOWN + 20])
def test_picture_for_any_number_of_mistakes(mistakes, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 60)
    predictions = labels.copy()
    predictions[:mistakes] = (labels[:mistakes] + 1) % 10
    out = tmp_path / "digits.svg"
    demo.plot(np.array([[2.0, 2.1], [1.0, 1.2]]), rng.uniform(0, 16, (60, 64)), labels, predictions, out)
    titles = re.findall(r"\d -&gt; \d", out.read_text())  # next to the outlines, the SVG keeps every text
    assert titles == [f"{i} -&gt; {j}" for i, j in zip(labels, predictions, strict=True) if i != j][: demo.SHOWN]
