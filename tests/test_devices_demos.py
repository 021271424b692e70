"""Demos and training on a GPU do what they do on the host; batches come to it, and memory is counted."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn

DEMOS = {
    "mlp_numpy": ("--epochs", "3"),
    "mlp_engine": (),
    "mlp_digits": ("--epochs", "3", "--hidden", "16"),
    "transformer_ffn": ("--steps", "30", "--d-model", "4", "--d-ff", "6"),
    "char_lm": ("--iterations", "12", "--layers", "1", "--heads", "2", "--width", "8", "--context=8", "--length=5"),
}


@pytest.mark.parametrize("name", DEMOS)
def test_a_demo_prints_the_same_on_each_device(
    name: str, cupy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("sklearn", "matplotlib", "tqdm", "safetensors"):
        pytest.importorskip(package)
    demo = importlib.import_module(f"demos.{name}")
    monkeypatch.setattr(demo, "EPOCHS", 3, raising=False)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 9)
    numbers, words = [], []
    for place in ("cpu", "cuda"):
        options = [*DEMOS[name], "--device", place]
        if name != "mlp_engine":
            options += ["--out", str(tmp_path / f"{place}.png")]
        if name == "char_lm":
            options += ["--checkpoint", str(tmp_path / f"{place}.safetensors"), str(tmp_path / "text.txt")]
        demo.main(options)
        out = re.sub(r"^(picture|checkpoint|.* kept as):? .*$", "", capsys.readouterr().out, flags=re.MULTILINE)
        numbers.append([float(x) for x in re.findall(r"\d+\.\d+(?![\de])", out)])
        words.append(re.sub(r"\d+(\.\d+(e[-+]\d+)?)?", "0", out))
    assert words[0] == words[1]
    assert len(numbers[0]) == len(numbers[1]) > 2
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=2e-3, atol=2e-4)


def test_gpu_check_without_a_gpu() -> None:
    script = Path(__file__).parent.parent / "demos" / "gpu_check.py"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(mg.__file__).parent.parent)}
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=hidden)
    assert (result.returncode, result.stderr) == (2, "")
    assert result.stdout.startswith("gpu_check: there is no GPU here that CuPy can use")


@pytest.mark.parametrize("fails", [None, "suite", "digits", "times"])
def test_gpu_check_prints_one_page(
    fails: str | None, cupy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the commands' answers made up: what they do is tested elsewhere."""
    answers = {
        "-m pytest -q --device cuda": (0, "....\n2646 passed in 9s\n"),
        "demos/mlp_engine.py --device cpu": (0, "epoch 30  loss 0.0141  test accuracy 0.9861\n"),
        "demos/mlp_engine.py --device cuda": (0, "epoch 30  loss 0.0142  test accuracy 0.9861\n"),
        "-m tests.benchmarks gpu": (0, "gpu: the table\n"),
    }
    broken = {
        "suite": ("-m pytest -q --device cuda", (1, "FAILED tests/test_ops.py::test_x\n1 failed, 9 passed\n")),
        "digits": ("demos/mlp_engine.py --device cuda", (0, "epoch 30  loss 0.0141  test accuracy 0.7\n")),
        "times": ("-m tests.benchmarks gpu", (1, "Traceback\n")),
    }
    answers |= dict([broken[fails]] if fails else [])
    gpu_check = importlib.import_module("demos.gpu_check")
    monkeypatch.setattr(gpu_check, "run", lambda *command: answers[" ".join(command)])
    assert gpu_check.main([]) == (1 if fails else 0)
    page = capsys.readouterr().out
    headings = re.findall(r"^## (\w+)$", page, flags=re.MULTILINE)
    assert headings == ["machine", "suite", "digits", "times", "result"]
    for _, answer in answers.values():
        assert answer.splitlines()[-1] in page
    assert re.findall(r"^(\w+) +FAILED$", page, flags=re.MULTILINE) == ([fails] if fails else [])
    assert "GiB free" in page


def test_twenty_steps_of_a_transformer_are_those_of_the_host(cupy: Any) -> None:
    for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 1e-5)):
        losses = {}
        for place in ("cpu", "cuda"):
            rng = np.random.default_rng(0)
            with mg.device(place):
                model = nn.Transformer(17, 16, 2, 2, 12, positions="rotary", gated=True, dtype=dtype, rng=rng)
                optimizer = nn.AdamW(nn.decay_groups(model, 0.1), 3e-3)
                losses[place] = []
                for _ in range(20):
                    tokens = mg.tensor(rng.integers(0, 17, (4, 13)))
                    loss = nn.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
                    optimizer.zero_grad()
                    loss.backward()
                    nn.clip_grad_norm(model.parameters(), 1.0)
                    optimizer.step()
                    losses[place].append(loss)
        values = [[loss.item() for loss in losses[place]] for place in ("cpu", "cuda")]
        np.testing.assert_allclose(values[1], values[0], rtol=0, atol=tolerance)
        assert values[0][-1] != values[0][0]


def test_prefetch_gives_the_batches_on_the_device(device: Any) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 3)).astype(np.float32), rng.integers(0, 9, 50)
    with mg.device(device.name):
        found = list(nn.prefetch(nn.batches(X, y, 8, rng=1)))
        assert list(nn.prefetch([])) == []
        ahead = nn.prefetch([(X[:0], y), (X, y)])
        assert next(ahead)[0].shape == (0, 3)
        ahead.close()  # type: ignore[attr-defined]
    expected = list(nn.batches(X, y, 8, rng=1))
    assert len(found) == len(expected) == 7
    for ours, theirs in zip(found, expected, strict=True):
        for tensor, array in zip(ours, theirs, strict=True):
            assert tensor.device == ("cpu" if device.name == "cpu" else "cuda:0")
            assert tensor.dtype == array.dtype
            np.testing.assert_array_equal(tensor.numpy(), array)

    with mg.device(device.name):
        ((a, b, c),) = nn.prefetch([(mg.tensor(X), device.array(y), 2.5)])
        assert {t.device for t in (a, b, c)} == {found[0][0].device}
        with pytest.raises(TypeError, match="prefetch: expected tuples of arrays, got a mapping with X"):
            list(nn.prefetch([{"X": X}]))

    def failing() -> Any:
        yield X, y
        raise OSError("no more")

    with mg.device(device.name), pytest.raises(OSError, match="no more"):
        list(nn.prefetch(failing()))


def test_memory_report(device: Any) -> None:
    tensor = mg.tensor(np.ones((256, 1024), np.float32), device=device.name)
    report = mg.memory_report()
    assert report["cpu"].get("resident", 1 << 30) > 1 << 20
    if device.name == "cuda":
        gpu = report["cuda:0"]
        assert tensor.data.nbytes <= gpu["used"] <= gpu["held"] <= gpu["total"]
        assert 0 < gpu["free"] <= gpu["total"]
        with_tensor = gpu["used"]
        del tensor
        assert mg.memory_report()["cuda:0"]["used"] <= with_tensor - (1 << 20)
