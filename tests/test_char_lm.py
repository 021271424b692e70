import json
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nn
from demos import char_lm as demo

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "demos" / "char_lm.py"
SIZES = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "16", "--batch-size", "4"]
TINY = [*SIZES, "--iterations", "20", "--length", "20"]
RUN = ["text.txt", *TINY, "--prompt", "a", "--save-every", "4"]
LINE = re.compile(
    r"^iteration +(\d+)  training loss ([\d.]+)  validation loss ([\d.]+) nats = ([\d.]+) bits per character$", re.M
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("matplotlib", "safetensors", "tqdm"):
        pytest.importorskip(name, reason=f"{name} is not installed: it comes with the extra demos")
    text = "".join(np.random.default_rng(0).choice(list("aaabcde é"), 2000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def main(folder, monkeypatch, capsys):
    """The demo in this process, without its picture: what it prints."""
    monkeypatch.setattr(demo, "plot", lambda *args: None)

    def main(*argv):
        demo.main(argv)
        return capsys.readouterr().out

    return main


@pytest.fixture
def refusal(folder, monkeypatch, capsys):
    """The script in this process: the sentence with which it ends, and what it printed before."""

    def refusal(*argv):
        monkeypatch.setattr(sys, "argv", ["char_lm.py", *argv])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert re.fullmatch(r".+", stop.value.code)
        return stop.value.code, capsys.readouterr().out

    return refusal


def python(*argv):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUTF8": "1"}
    command = [sys.executable, *map(str, argv)]
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", check=False)


def sample(output):
    return re.search(r"^\n(.*)\n\ncheckpoint: ", output, re.M | re.S)[1]


def contents(path):
    """All that a checkpoint holds, to the bit: what is no array (losses, generators, settings), and the arrays."""
    from safetensors import safe_open
    from safetensors.numpy import load_file

    with safe_open(path, "np") as file:
        values = json.loads(file.metadata()["parts"])
    arrays = {name: (array.dtype, array.shape, array.tobytes()) for name, array in load_file(path).items()}
    assert {name.partition(".")[0] for name in arrays} == {"model", "optimizer"}
    return values, arrays


def test_script_trains_writes_draws_and_repeats_itself(folder):
    files = "--checkpoint", "run.safetensors", "--out", "run.png"
    results = []
    for seed in ("3", "3", "4"):
        results.append(python(SCRIPT, *RUN, *files, "--seed", seed))
        (folder / "run.safetensors").unlink()  # or it would be kept under another name, with a line that says so
    first, second, other = results
    for result in (first, second, other):
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("1800 characters to train on, 200 to validate\n7 different ones; 3680 param")
        assert len(sample(result.stdout)) == 21
        assert sample(result.stdout).startswith("a")
        assert result.stdout.endswith("\ncheckpoint: run.safetensors\npicture: run.png\n")
        (line,) = LINE.findall(result.stdout)
        assert line[0] == "20"
        assert float(line[3]) == pytest.approx(float(line[2]) / math.log(2), abs=2e-4)
        assert 1 < float(line[2]) < math.log(7) + 0.1
    assert first.stdout == second.stdout
    assert LINE.findall(first.stdout) != LINE.findall(other.stdout)
    assert sample(first.stdout) != sample(other.stdout)
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")


def test_losses_are_those_of_the_model_in_the_checkpoint(main, monkeypatch):
    monkeypatch.setattr(demo, "EVALUATE_EVERY", 8)
    lines = LINE.findall(main(*RUN))
    assert [line[0] for line in lines] == ["8", "16", "20"]
    model = nn.Transformer(7, 16, 2, 1, 16, rng=9)
    values = nn.load_checkpoint("char_lm.safetensors", model=model)
    text = demo.read_text(Path("text.txt"))
    validation = demo.evaluate(model, demo.Characters(text).encode(text[1800:]))
    history = values["history"]
    assert (len(history["train"]), history["iterations"]) == (20, [8, 16, 20])
    assert history["validation"][-1] == validation
    assert history["train"][0] == pytest.approx(math.log(7), abs=0.1)  # at first all characters are as likely
    means = [np.mean(history["train"][start:stop]) for start, stop in ((0, 8), (8, 16), (12, 20))]
    for line, *losses in zip(lines, means, history["validation"], strict=True):
        assert line[1:3] == tuple(f"{loss:.4f}" for loss in losses)


def test_a_new_run_keeps_the_checkpoint_of_another(main):
    main(*RUN)
    first = Path("char_lm.safetensors").read_bytes()
    assert "kept as char_lm_before.safetensors" in main(*RUN, "--seed", "3")
    assert Path("char_lm_before.safetensors").read_bytes() == first
    second = Path("char_lm.safetensors").read_bytes()
    assert second != first
    assert "kept as char_lm_before1.safetensors" in main(*RUN, "--seed", "4")
    assert Path("char_lm_before.safetensors").read_bytes() == first
    assert Path("char_lm_before1.safetensors").read_bytes() == second


def test_a_run_that_can_not_begin_leaves_all_checkpoints_as_they_are(main, refusal):
    main(*RUN)
    main(*RUN, "--seed", "3")
    before = [Path(name).read_bytes() for name in ("char_lm.safetensors", "char_lm_before.safetensors")]
    assert "which --prompt has" in refusal(*RUN, "--prompt", "\N{SNOWMAN}")[0]
    assert [Path(name).read_bytes() for name in ("char_lm.safetensors", "char_lm_before.safetensors")] == before


def test_a_text_that_repeats_itself_is_learned(folder, main):
    (folder / "text.txt").write_text("abcd" * 400)
    output = main("text.txt", *TINY, "--prompt", "a", "--iterations", "200", "--lr", "1e-2", "--temperature", "0")
    assert 0 < float(LINE.findall(output)[-1][2]) < 0.1
    assert sample(output) == ("abcd" * 6)[:21]


def test_the_default_text_is_that_of_the_reference_topics(main):
    text = demo.read_text(None)
    assert len(text) >= 100_000
    if sys.version_info[:2] == (3, 11):
        assert 460_000 < len(text) < 470_000
    output = main(*TINY)
    assert f"{round(0.9 * len(text))} characters to train on" in output
    assert sample(output).startswith("The ")


@pytest.mark.parametrize("extra", [[], ["--dropout", "0.1"], ["--positions", "rotary", "--layers", "2"]])
@pytest.mark.parametrize("moment", ["after every save", "between two saves"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(moment, extra, main, monkeypatch):
    monkeypatch.setattr(demo, "EVALUATE_EVERY", 5)
    whole = main(*RUN, *extra, "--checkpoint", "whole.safetensors")
    resume = *RUN, *extra, "--resume", "--checkpoint", "broken.safetensors"
    name = "save_checkpoint" if moment == "after every save" else "clip_grad_norm"
    original, calls = getattr(nn, name), []

    def interrupted(*args, **kwargs):
        original(*args, **kwargs)
        calls.append(args)
        if name == "save_checkpoint" or len(calls) == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(nn, name, interrupted)
    for step in (4, 8, 12, 16, 20) if name == "save_checkpoint" else (8,):
        with pytest.raises(KeyboardInterrupt):
            demo.main(resume)
        assert nn.load_checkpoint("broken.safetensors")["step"] == step
    monkeypatch.setattr(nn, name, original)
    rest = main(*resume)
    assert f"resumed: broken.safetensors, iteration {step}\n" in rest
    assert sample(rest) == sample(whole)
    assert contents("broken.safetensors") == contents("whole.safetensors")
    history = nn.load_checkpoint("broken.safetensors")["history"]
    assert (len(history["train"]), history["iterations"]) == (20, [5, 10, 15, 20])


def test_ctrl_c_ends_in_one_line_and_another_process_goes_on(main):
    # The tenth step sends the signal: no race between the training and the keyboard.
    script = (
        "import runpy, signal, sys, nn\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # tests in the background inherit none
        "steps, clip = iter(range(1, 100)), nn.clip_grad_norm\n"
        "nn.clip_grad_norm = lambda *args: signal.raise_signal(signal.SIGINT) if next(steps) == 10 else clip(*args)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    result = python("-c", script, SCRIPT, *RUN)
    assert (result.returncode, result.stderr) == (
        130,
        "interrupted; --resume goes on from the last checkpoint, if there is one yet\n",
    )
    result = python(SCRIPT, "text.txt", "--resume", "--prompt", "a")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("resumed: char_lm.safetensors, iteration 8\n")
    main(*RUN, "--checkpoint", "whole.safetensors")
    assert contents("char_lm.safetensors") == contents("whole.safetensors")


def test_resume_with_more_iterations_trains_further(main):
    main(*RUN)
    before = nn.load_checkpoint("char_lm.safetensors")
    assert main(*RUN, "--resume", "--iterations", "30").startswith("resumed: char_lm.safetensors, iteration 20\n")
    after = nn.load_checkpoint("char_lm.safetensors")
    assert after["history"]["train"][:20] == before["history"]["train"]
    assert len(after["history"]["train"]) == after["step"] == after["settings"]["iterations"] == 30


def test_a_checkpoint_writes_without_training(folder, main):
    main(*RUN)
    characters = demo.Characters(demo.read_text(Path("text.txt")))
    before = (folder / "char_lm.safetensors").read_bytes()
    (folder / "text.txt").unlink()  # not needed any more
    for prompt in ("b", "bé cab", "aabbccddee " * 4):
        for length in (0, 40):
            options = "--resume", "--iterations", "0", "--prompt", prompt, "--length", str(length)
            output = main(*options)
            assert output == main(*options)
            assert "characters to train on" not in output
            assert sample(output).startswith(prompt)
            assert len(sample(output)) == len(prompt) + length
    model, tokens = nn.Transformer(7, 16, 2, 1, 16).eval(), characters.encode("cab")
    nn.load_checkpoint("char_lm.safetensors", model=model)
    for _ in range(13):
        tokens = np.append(tokens, model(tokens).numpy()[-1].argmax())
    greedy = main("--resume", "--iterations", "0", "--prompt", "cab", "--length", "13", "--temperature", "0")
    assert sample(greedy) == characters.decode(tokens)
    assert (folder / "char_lm.safetensors").read_bytes() == before


def test_resume_without_a_checkpoint_starts_anew(main, refusal):
    output = main(*RUN, "--resume")
    assert output.startswith("there is no checkpoint char_lm.safetensors yet: starting anew\n")
    main(*RUN, "--checkpoint", "whole.safetensors")
    assert contents("char_lm.safetensors") == contents("whole.safetensors")
    message, _ = refusal("--resume", "--iterations", "0", "--checkpoint", "missing.safetensors")
    assert "there is no checkpoint missing.safetensors to write from" in message
    assert not Path("missing.safetensors").exists()


def test_resume_with_other_settings_or_another_text_is_refused(folder, main, refusal):
    main(*RUN)
    before = (folder / "char_lm.safetensors").read_bytes()
    resume = "text.txt", "--resume", "--iterations", "30", "--prompt", "a"
    message, output = refusal(*resume, "--width", "16", "--lr", "0.1", "--positions", "rotary")
    assert "--lr 0.001, not 0.1" in message
    assert "--positions learned, not rotary" in message
    assert "width" not in message  # the same
    assert output == ""
    text = (folder / "text.txt").read_text(encoding="utf-8")
    (folder / "text.txt").write_text(text[:-1] + ("b" if text[-1] == "a" else "a"), encoding="utf-8")
    assert "char_lm.safetensors was trained on another text" in refusal(*resume)[0]
    assert (folder / "char_lm.safetensors").read_bytes() == before


def test_settings_that_differ_are_named_as_the_command_line_has_them(main, refusal):
    main(*RUN)
    assert "--batch-size 4, not 5" in refusal("text.txt", "--resume", "--batch-size", "5")[0]


@pytest.mark.parametrize("damage", ["empty", "cut", "a bit", "header", "a text", "another checkpoint"])
def test_a_damaged_checkpoint_is_named_and_stays(damage, folder, main, refusal):
    main(*RUN)
    path = folder / "char_lm.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-5] ^= 1
    damaged = {"empty": b"", "cut": blob[:-100], "a bit": blob, "header": b"\xff" * 8 + blob[8:], "a text": b"abc" * 9}
    if damage == "another checkpoint":
        nn.save_checkpoint(path, model=nn.Linear(2, 2), step=3)
    else:
        path.write_bytes(damaged[damage])
    before = path.read_bytes()
    message, output = refusal(*RUN, "--resume")
    assert "char_lm.safetensors" in message
    assert output == ""
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "prompt", "message"),
    [
        (b"abc" * 99, "aXbY", "the text has no 'X', 'Y', which --prompt has"),
        (b"ab" * 80, "a", "the text has 160 characters, of which a tenth is for validation: too few for --context 16"),
        (b"", "a", "the text has"),
        (None, "a", "No such file or directory: 'mine.txt'"),
        ("é".encode("latin-1") * 500, "a", "'utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_unsuitable_texts_end_in_one_sentence(content, prompt, message, folder, refusal):
    if content is not None:
        (folder / "mine.txt").write_bytes(content)
    assert message in refusal("mine.txt", *TINY, "--prompt", prompt)[0]
    assert not list(folder.glob("char_lm.*"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--context", "many"], "--context: invalid int value: 'many'"),
        (["--iterations", "0"], "--iterations 0 needs --resume: a model that was not trained has nothing to write"),
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--save-every", "0"], "--save-every must be at least 1, got 0"),
        (["--heads", "3"], "--width must be a multiple of --heads, got 128 and 3"),
        (["--positions", "none"], "--positions must be learned, sinusoidal or rotary, got 'none'"),
        (["--positions", "rotary", "--heads", "128"], "rotary positions need an even --width / --heads, got 1"),
        (
            ["--positions", "sinusoidal", "--width", "5", "--heads", "1"],
            "positions need an even --width, got 5",
        ),
        (["--lr", "nan"], "--lr must be positive and finite, got nan"),
        (["--dropout", "1"], "--dropout must be at least 0 and below 1, got 1.0"),
        (["--temperature", "-1"], "--temperature must be at least 0 and finite, got -1.0"),
        (["--prompt", ""], "--prompt must have at least one character"),
        (["--out", "char_lm.gif"], "--out must end in .png or .pdf or .svg, got 'char_lm.gif'"),
        (["--checkpoint", "a.npz"], "--checkpoint must end in .safetensors, got 'a.npz'"),
        (["--checkpoint", "missing/a.safetensors"], "--checkpoint 'missing/a.safetensors' cannot be written: No such"),
    ],
)
def test_bad_options_are_refused_before_any_work(argv, message, folder, monkeypatch, capsys):
    monkeypatch.setattr(demo, "read_text", lambda path: pytest.fail("read the text"))
    with pytest.raises(SystemExit) as stop:
        demo.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in folder.iterdir()] == ["text.txt"]


@pytest.mark.usefixtures("folder")
def test_a_diverging_loss_ends_in_one_sentence():
    result = python(SCRIPT, *RUN, "--lr", "1e30")
    assert result.returncode == 1
    assert re.fullmatch(r"char_lm: the loss became \w+ in iteration \d+.*\n", result.stderr)


@pytest.mark.usefixtures("folder")
def test_tabs_are_drawn_without_a_warning():
    Path("text.txt").write_text("if a:\n\tb()\n" * 50)
    demo.main([*RUN, "--iterations", "1", "--prompt", "if a:\n\tb()\n"])  # warnings are errors
    assert Path(demo.OUT).read_bytes().startswith(b"\x89PNG")


def test_a_text_without_the_letters_of_the_default_prompt(folder):
    (folder / "text.txt").write_text("1234567890" * 50)
    result = python(SCRIPT, "text.txt", *TINY)
    assert result.returncode == 0 or "--prompt" in result.stderr  # whoever gave no prompt needs the option's name


@pytest.mark.parametrize("package", ["matplotlib", "safetensors", "tqdm"])
def test_missing_packages_are_named_before_training(package, monkeypatch, refusal):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what makes `import package` fail
    monkeypatch.setattr(nn, "clip_grad_norm", lambda *args: pytest.fail("trained"))
    message, _ = refusal(*RUN)
    assert re.search(rf"needs {package}.* missing: pip install -e '\.\[demos\]'", message)


def test_evaluate_is_the_mean_over_windows_in_plain_numpy():
    model = nn.Transformer(5, 8, 2, 1, 6, dropout=0.5, rng=0)
    model.embedding.weight.data *= 30  # odds that are far from even
    for length in (7, 12, 13, 40):
        data = np.random.default_rng(length).integers(0, 5, length)
        losses = []
        for start in range(0, length - 6, 6):
            logits = model.eval()(data[start : start + 6]).numpy().astype(np.float64)
            p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            losses.append(-np.log(p[np.arange(6), data[start + 1 : start + 7]]).mean())
        assert len(losses) == {7: 1, 12: 1, 13: 2, 40: 6}[length]
        model.train()
        for rows in (1, 4, 64):
            assert demo.evaluate(model, data, rows) == pytest.approx(np.mean(losses), rel=1e-5)
        assert model.training


def test_batches_are_excerpts_and_what_follows_them():
    data = np.arange(100, 110)
    inputs, targets = demo.random_batch(data, 4, 500, np.random.default_rng(0))
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(4))
    np.testing.assert_array_equal(targets, inputs + 1)
    assert set(inputs[:, 0]) == set(range(100, 106))  # the last one is followed by the last character


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_attention_maps(positions):
    model = nn.Transformer(7, 12, 3, 2, 10, positions=positions, dropout=0.5, rng=0)
    for block in model.blocks:
        block.self_attn.in_proj.weight.data *= 30  # weights that are far from even
    tokens = np.random.default_rng(0).integers(0, 7, 8)
    maps = demo.attention_maps(model, tokens)
    assert maps.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(maps.sum(axis=-1), np.ones((2, 3, 8)), rtol=1e-5)
    assert not maps[:, :, *np.triu_indices(8, 1)].any()
    assert np.ptp(maps[:, :, -1], axis=-1).min() > 0.05
    np.testing.assert_allclose(demo.attention_maps(model, tokens[:5]), maps[:, :, :5, :5], atol=1e-6)
    if positions == "rotary":
        return
    x = model.positions(model.embedding(tokens))
    for block, weights in zip(model.blocks, maps, strict=True):
        projected = block.self_attn.in_proj(block.norm1(x)).numpy()
        for head in range(3):
            q, k = (projected[:, start + 4 * head : start + 4 * head + 4] for start in (0, 12))
            odds = np.exp(q @ k.T / 2) * np.tri(8)  # 2: the root of a head's width
            np.testing.assert_allclose(weights[head], odds / odds.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6)
        x = block(x)
