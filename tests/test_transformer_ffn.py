import math
import os
import re
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import microgradnd as mg
from demos import transformer_ffn as demo

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "demos" / "transformer_ffn.py"
NAMES = ["x", "gamma", "beta", "W1", "b1", "W2", "b2"]
SHAPES = [(1, 2, 1), (1, 3, 5), (7, 2, 3), (5, 8, 1), (9, 6, 16)]  # R, d, f
ROW = re.compile(r"^(\w+) +([\dx]+) +(\d\.\de[+-]\d\d) +(\d\.\de[+-]\d\d)$", re.M)
SMALL = ["--d-model", "4", "--d-ff", "6"]
activations = pytest.mark.parametrize("activation", ["ReLU", "GELU"])


@pytest.fixture
def packages():
    for name in ("matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"{name} is not installed: it comes with the extra demos")


def problem(rows, d, f):
    """Parameters without zeros and ones, an input, and a gradient of the output."""
    rng = np.random.default_rng(0)  # no ReLU network of it is all zero
    shapes = {"gamma": d, "beta": d, "W1": (d, f), "b1": f, "W2": (f, d), "b2": d}
    p = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return p, rng.standard_normal((rows, d)), rng.standard_normal((rows, d))


def sublayer(p, activation):
    """The engine's, with the parameters p."""
    model = demo.Sublayer(*p["W1"].shape, demo.ACTIVATIONS[activation], np.float64, 0)
    for name, parameter in model.named_parameters():
        assert parameter.shape == p[demo.NAMES[name]].shape
        parameter.data = p[demo.NAMES[name]].copy()
    return model


def assert_close(ours, other, tolerance, name):
    """Within ``tolerance`` of the largest element, which is not zero."""
    assert ours.shape == other.shape
    assert np.abs(other).max() > 1e-3, name
    np.testing.assert_allclose(ours, other, rtol=0, atol=tolerance * np.abs(other).max(), err_msg=name)


def table(output):
    """Per activation: name, shape, and both differences of each row."""
    parts = re.split(r"^(ReLU|GELU): largest difference.*$", output, flags=re.M)
    rows = [[(name, shape, float(a), float(b)) for name, shape, a, b in ROW.findall(part)] for part in parts[2::2]]
    return dict(zip(parts[1::2], rows, strict=True))


def assert_gradients_agree(output):
    rows = table(output)
    assert list(rows) == ["ReLU", "GELU"]
    for activation in rows:
        assert [row[0] for row in rows[activation]] == NAMES
        assert max(row[2] for row in rows[activation]) < 1e-12
        assert 0 < max(row[3] for row in rows[activation]) < 1e-6


def losses(output):
    return {
        name: (float(first), float(last))
        for name, first, last in re.findall(
            r"^(\w+): mean squared error (\d\.\d{4}) at first, (\d\.\d{4}) at the end$", output, re.M
        )
    }


def environment():
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    # No GPU, wherever this runs.
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}


def python(*argv, cwd):
    return subprocess.run(
        [sys.executable, *map(str, argv)], cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )


@activations
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_against_one_position_at_a_time(shape, activation):
    p, x, _ = problem(*shape)
    _, d, f = shape
    expected = []
    for row in x.tolist():
        mean = sum(row) / d
        sigma = math.sqrt(sum((value - mean) ** 2 for value in row) / d + 1e-5)
        h = [(row[i] - mean) / sigma * p["gamma"][i] + p["beta"][i] for i in range(d)]
        z = [sum(h[i] * p["W1"][i, j] for i in range(d)) + p["b1"][j] for j in range(f)]
        a = [max(v, 0.0) if activation == "ReLU" else v * statistics.NormalDist().cdf(v) for v in z]
        expected.append([row[k] + sum(a[j] * p["W2"][j, k] for j in range(f)) + p["b2"][k] for k in range(d)])
    assert_close(demo.forward(np, p, x, activation)["y"], np.array(expected), 1e-13, "y")
    assert_close(sublayer(p, activation)(mg.tensor(x)).numpy(), np.array(expected), 1e-12, "y")


@activations
@pytest.mark.parametrize("shape", SHAPES)
def test_formulas_and_engine_against_central_differences(shape, activation):
    p, x, g = problem(*shape)
    formulas = demo.backward(p, demo.forward(np, p, x, activation), g)
    assert list(formulas) == NAMES
    model, tensor = sublayer(p, activation), mg.tensor(x, requires_grad=True)
    model(tensor).backward(g)
    engine = {"x": tensor.grad} | {demo.NAMES[name]: parameter.grad for name, parameter in model.named_parameters()}
    arrays = p | {"x": x.copy()}
    for name in NAMES:
        array = arrays[name]
        expected = np.empty_like(array)
        for i in np.ndindex(array.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = array.copy()
                moved[i] += step
                q = arrays | {name: moved}
                values.append((demo.forward(np, q, q["x"], activation)["y"] * g).sum())
            expected[i] = (values[0] - values[1]) / 2e-6
        assert_close(formulas[name], expected, 1e-6, name)
        assert_close(engine[name].numpy(), formulas[name], 1e-12, name)


def test_relu_has_slope_zero_at_the_kink():
    p, x, g = problem(3, 4, 5)
    p["W1"], p["b1"] = 0 * p["W1"], 0 * p["b1"]  # z is exactly 0 everywhere
    formulas = demo.backward(p, demo.forward(np, p, x, "ReLU"), g)
    model = sublayer(p, "ReLU")
    model(mg.tensor(x)).backward(g)
    for gradient in (formulas["b1"], formulas["W1"], model.feed_forward.linear1.bias.grad.numpy()):
        assert not gradient.any()
    np.testing.assert_array_equal(formulas["x"], g)  # the residual connection alone


def test_central_differences_of_a_cubic_leave_it_as_it_was(device):
    before = np.random.default_rng(0).standard_normal((3, 4))
    x = device.array(before.copy())
    slopes = demo.central_differences(lambda: (x**3).sum(), x)
    np.testing.assert_allclose(device.host(slopes), 3 * before**2, rtol=0, atol=1e-8)
    assert device.host(x).tobytes() == before.tobytes()


# What is missing from dx in a wrong formula; dn is the gradient of the normalised positions.
MISSING = {
    "the residual connection": lambda n, sigma, dn, g: g,
    "the mean term": lambda n, sigma, dn, g: -dn.mean(axis=1, keepdims=True) / sigma,
    "the variance term": lambda n, sigma, dn, g: -n * (dn * n).mean(axis=1, keepdims=True) / sigma,
}


@activations
@pytest.mark.parametrize("term", [*MISSING, "the slope"])
def test_a_wrong_formula_is_noticed(term, activation, monkeypatch, capsys):
    right = demo.backward

    def wrong(p, cache, g):
        if term == "the slope":
            return right(p, cache | {"slope": 1 + 0 * cache["slope"]}, g)
        grads = right(p, cache, g)
        dn = (g @ p["W2"].T * cache["slope"]) @ p["W1"].T * p["gamma"]
        return grads | {"x": grads["x"] - MISSING[term](cache["n"], cache["sigma"], dn, g)}

    monkeypatch.setattr(demo, "backward", wrong)
    demo.compare("cpu", activation, 6, 8, np.random.default_rng(0))
    rows = table(capsys.readouterr().out)[activation]
    affected = NAMES[:5] if term == "the slope" else ["x"]
    assert [name for name, _, formulas, _ in rows if formulas > 1e-3] == affected
    assert [name for name, _, formulas, _ in rows if formulas < 1e-12] == [n for n in NAMES if n not in affected]
    assert max(row[3] for row in rows) < 1e-6


@activations
def test_a_wrong_engine_is_noticed_in_both_columns(activation, monkeypatch, capsys):
    monkeypatch.setattr(demo.Sublayer, "forward", lambda self, x: self.feed_forward(self.norm(x)))
    demo.compare("cpu", activation, 6, 8, np.random.default_rng(0))
    rows = table(capsys.readouterr().out)[activation]
    assert [(name, a > 1e-3, b > 1e-3) for name, _, a, b in rows] == [
        (name, name == "x", name == "x") for name in NAMES
    ]


@activations
def test_training_goes_far_below_the_residual_connection_alone(activation):
    values, targets, learned = demo.train(
        "cpu", activation, demo.D_MODEL, demo.D_FF, demo.STEPS, demo.LR, seed=demo.SEED
    )
    assert len(values) == demo.STEPS
    alone = (targets**2).mean()
    assert alone > 0.3
    assert np.mean(values[-20:]) < 0.2 * alone < values[0]
    assert ((learned - targets) ** 2).mean() < 0.2 * alone


@pytest.mark.usefixtures("packages")
def test_script_compares_trains_draws_and_repeats_itself(tmp_path):
    first, second, other = (
        python(SCRIPT, "--steps", "5", "--seed", seed, "--out", name, cwd=tmp_path)
        for seed, name in (("3", "a.png"), ("3", "a.png"), ("4", "b.png"))
    )
    for result in (first, second, other):
        assert (result.returncode, result.stderr) == (0, "")
        assert_gradients_agree(result.stdout)
        assert list(losses(result.stdout)) == ["ReLU", "GELU"]
    shapes = [shape for _, shape, _, _ in table(first.stdout)["ReLU"]]
    assert shapes == ["20x16", "16", "16", "16x64", "64", "64x16", "16"]
    assert first.stdout == second.stdout
    assert table(first.stdout) != table(other.stdout)
    assert losses(first.stdout) != losses(other.stdout)
    assert first.stdout.endswith("picture: a.png\n")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("packages")
def test_both_devices_give_the_same_table_and_losses(device, tmp_path, capsys):
    name = device.name
    outputs = {}
    for choice in ("cpu", name):
        demo.main([*SMALL, "--steps", "40", "--device", choice, "--out", str(tmp_path / f"{choice}.pdf")])
        outputs[choice] = capsys.readouterr().out
        assert_gradients_agree(outputs[choice])
        assert (tmp_path / f"{choice}.pdf").read_bytes().startswith(b"%PDF")
    rows, expected = ([row[:2] for part in table(outputs[c]).values() for row in part] for c in (name, "cpu"))
    assert rows == expected
    assert len(rows) == 14
    for activation, pair in losses(outputs["cpu"]).items():
        assert losses(outputs[name])[activation] == pytest.approx(pair, abs=2e-4)
        assert pair[1] < 0.95 * pair[0]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("missing", [False, True])
def test_without_a_gpu_cuda_ends_in_one_sentence(missing, tmp_path):
    if not missing:
        pytest.importorskip("cupy", reason="CuPy is not installed: it comes with the extra cuda12")
    script = (
        "import runpy, sys\n"
        f"sys.modules.update({ {'cupy': None} if missing else {} })\n"  # None makes `import cupy` fail
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = python("-c", script, SCRIPT, "--device", "cuda", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    sentence = r"this demo needs cupy, which is missing: pip install -e '\.\[cuda12\]' in the clone brings it\n"
    assert re.fullmatch(
        sentence if missing else r"transformer_ffn: device 'cuda': CuPy .+ finds no GPU: cuda.+\n", result.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--d-model", "1"], "--d-model must be at least 2, got 1"),
        (["--d-ff", "0"], "--d-ff must be at least 1, got 0"),
        (["--d-ff", "many"], "--d-ff: invalid int value: 'many'"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--lr", "0"], "--lr must be positive and finite, got 0.0"),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--lr", "inf"], "--lr must be positive and finite, got inf"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["--out", "picture.gif"], "--out must end in .png, .pdf or .svg, got 'picture.gif'"),
        (["--out", "missing/picture.png"], "--out 'missing/picture.png' cannot be written: No such file"),
        (["--out", "folder.png"], "--out 'folder.png' cannot be written: Is a directory"),
    ],
)
def test_bad_options_are_refused_before_any_work(argv, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(demo, "compare", lambda *args: pytest.fail("compared gradients"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        demo.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_picture_that_exists_survives_a_refusal(tmp_path):
    out = tmp_path / "old.png"
    out.write_bytes(b"old")
    assert demo.parse(["--out", str(out)]).out == out
    assert out.read_bytes() == b"old"


@pytest.mark.usefixtures("packages")
def test_a_diverging_loss_ends_in_one_sentence(tmp_path):
    result = python(SCRIPT, *SMALL, "--steps", "9", "--lr", "1e30", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "transformer_ffn: the loss is no longer finite: --lr 1e+30 is too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["matplotlib", "tqdm"])
@pytest.mark.usefixtures("packages")
def test_missing_packages_are_named_before_any_work(package, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what makes `import package` fail
    monkeypatch.setattr(sys, "argv", ["transformer_ffn.py", "--out", str(tmp_path / "ffn.png")])
    with pytest.raises(SystemExit, match=rf"needs {package}.* missing: pip install -e '\.\[demos\]'"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("packages")
def test_ctrl_c_ends_in_one_line(tmp_path):
    # The first loss sends the signal: no race between the training and the keyboard.
    script = (
        "import runpy, signal, sys, nn\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background inherit none
        "nn.mse_loss = lambda *args: signal.raise_signal(signal.SIGINT)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = python("-c", script, SCRIPT, *SMALL, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
    assert_gradients_agree(result.stdout)
