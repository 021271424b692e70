"""step.save: a file that needs NumPy alone and goes on from where the step was."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import OPTIMIZERS, batches, bits, mlp, replays, state, training_step, warm

pytestmark = pytest.mark.usefixtures("numpy_kernels")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_a_saved_step_needs_numpy_alone_and_goes_on_bit_for_bit(tmp_path: Path, optimizer: str, kind: str) -> None:
    rng = np.random.default_rng(3)
    if kind == "mlp":
        model: nn.Module = nn.Sequential(mlp(), nn.Dropout(0.1, 0))
        data = batches(8)
    else:
        model = nn.Transformer(7, 8, 2, 1, 6, dropout=0.2, rng=0)
        data = [(rng.integers(0, 7, (3, 6)), rng.integers(0, 7, (3, 6))) for _ in range(8)]
    step = mg.capture(training_step(model, OPTIMIZERS[optimizer](model.parameters()), 1.0))
    for X, y in data[:4]:
        step(X, y)
    step.save(tmp_path / "saved_step.py")
    np.savez(tmp_path / "data.npz", X=np.stack([X for X, _ in data[4:]]), y=np.stack([y for _, y in data[4:]]))
    script = (
        "import sys, numpy as np, saved_step\n"
        "data = np.load('data.npz')\n"
        "losses = [saved_step.step(X, y) for X, y in zip(data['X'], data['y'])]\n"
        "assert not any(name.startswith(('microgradnd', 'nn', 'numba')) for name in sys.modules)\n"
        "np.save('losses.npy', losses)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=tmp_path, check=True)
    assert bits(np.load(tmp_path / "losses.npy")) == bits(np.array([step(X, y).numpy() for X, y in data[4:]]))


def test_a_step_that_returns_its_own_gradients_is_saved(tmp_path: Path) -> None:
    model = nn.Linear(3, 2, rng=0)

    @mg.capture
    def step(x: Any) -> Any:
        model.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        return loss, [p.grad for p in model.parameters()]

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for _ in range(4):
        _, gradients = step(x)
    before = bits(*gradients)
    _, expected = step(x * 2)
    assert bits(*gradients) == before  # they are nobody else's
    assert bits(*expected) == bits(*(p.grad for p in model.parameters()))
    step.save(tmp_path / "gradients_saved.py")
    found = subprocess.run(
        [sys.executable, "-c", "import numpy as np, gradients_saved as m\n"
         "_, weight, bias = m.step(np.arange(6, dtype=np.float32).reshape(2, 3) * 2)\n"
         "print(weight.tobytes().hex(), bias.tobytes().hex())"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert [bytes.fromhex(x) for x in found] == bits(*expected)


@pytest.mark.parametrize("results", [0, 1, 2])
def test_steps_whose_gradients_have_no_buffers_are_saved(tmp_path: Path, results: int) -> None:
    """Those of an embedding, of a 0-d parameter and of a part are new arrays in each replay."""
    embedding, scale = nn.Embedding(5, 3, rng=0), mg.tensor(np.float32(1.5), requires_grad=True)
    w = mg.tensor(np.ones(4, np.float32), requires_grad=True)
    optimizer = nn.Adam([*embedding.parameters(), scale, w], 0.01)

    @mg.capture
    def step(step_and_gradients: Any) -> Any:
        loss = (embedding(step_and_gradients) * scale).sum() ** 2 + (w[np.array([0, 2, 2])] ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return [None, loss, (loss, loss * 2)][results]

    tokens = np.array([0, 3, 3])
    warm(step, tokens)
    step.save(tmp_path / f"embedding_saved_{results}.py")
    sys.path.insert(0, str(tmp_path))
    try:
        module = importlib.import_module(f"embedding_saved_{results}")
    finally:
        sys.path.remove(str(tmp_path))
    for i in range(4):
        found, expected = module.step(tokens + i % 2), step(tokens + i % 2)
        assert (found is None) == (expected is None)
        if results:
            assert bits(*([found] if results == 1 else found)) == bits(*([expected] if results == 1 else expected))
    for name, p in (("scale", scale), ("w", w), ("embedding_weight", embedding.weight)):
        assert bits(getattr(module, name)) == bits(p), name


def test_saving_names_what_it_can_not_do(tmp_path: Path) -> None:
    step = mg.capture(lambda x: x + 1)
    for _ in range(2):
        step(np.ones(1))
    with pytest.raises(ValueError, match=r"step\.py"):
        step.save(tmp_path / "step.txt")
    pytest.importorskip("numba")
    with mg.kernels("numba"):
        kernel = mg.capture(lambda x: mg.gelu(x))
        for _ in range(3):
            kernel(np.ones(20000, np.float32))
        with pytest.raises(mg.CaptureError, match=r"compiled kernel.*save\(path, x\)"):
            kernel.save(tmp_path / "kernel.py")
        with pytest.raises(mg.CaptureError, match="unlike the recorded one in the arguments"):
            kernel.save(tmp_path / "kernel.py", np.ones(10, np.float32))
    with pytest.raises(mg.CaptureError, match=r"unlike the recorded one in mg\.kernels"):
        kernel.save(tmp_path / "kernel.py", np.ones(20000, np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_by_compiled_kernels_is_saved_with_numpys_functions(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on from where it was, which saving does not change."""
    pytest.importorskip("numba")
    with mg.kernels("numba"):
        model = nn.Sequential(nn.Linear(24, 64, rng=0), nn.ReLU(), nn.Dropout(0.2, rng=1), nn.Linear(64, 5, rng=2))
        updates = OPTIMIZERS[optimizer](model.parameters())
        step = mg.capture(training_step(model, updates))
        rng = np.random.default_rng(3)
        X, y = rng.standard_normal((32, 24), np.float32), rng.integers(0, 5, 32)
        for _ in range(4):
            step(X, y)
        before, calls = state(model, updates), replays(step)  # one less where the step is the first to need a kernel
        assert calls >= 1
        step.save(tmp_path / f"kept_{optimizer}.py", X, y)
        assert state(model, updates) == before
        assert replays(step) == calls
        monkeypatch.syspath_prepend(tmp_path)
        kept = importlib.import_module(f"kept_{optimizer}")
        losses = [(float(kept.step(X, y)), step(X, y).item()) for _ in range(5)]
    assert "numba" not in (tmp_path / f"kept_{optimizer}.py").read_text()
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    assert replays(step) == calls + 5


def test_a_step_without_arguments_is_saved_with_numpys_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    x = np.random.default_rng(0).standard_normal((50, 40), np.float32)
    with mg.kernels("numba"):
        step = mg.capture(lambda: mg.gelu(x))
        for _ in range(3):
            step()
        step.save(tmp_path / "without_arguments.py")
    monkeypatch.syspath_prepend(tmp_path)
    np.testing.assert_allclose(importlib.import_module("without_arguments").step(), mg.gelu(x).data, rtol=1e-5)


def saved(step: Any, folder: Path, name: str) -> Any:
    step.save(folder / f"{name}.py")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)


def test_what_was_loaded_after_the_last_call_is_saved(tmp_path: Path) -> None:
    model = mlp()
    step = mg.capture(training_step(model, optimizer := nn.Adam(model.parameters())))
    predict = mg.capture(lambda x: model(x))
    data = batches(10)
    for X, y in data[:4]:
        step(X, y)
        predict(X)
    before, moments = model.state_dict(), optimizer.state_dict()
    for X, y in data[4:]:
        step(X, y)
    predict(data[0][0])
    model.load_state_dict(before)
    optimizer.load_state_dict(moments)
    module = saved(predict, tmp_path, "predictions")  # without a call in between
    assert bits(module.step(data[0][0])) == bits(model(data[0][0]))


def test_a_saved_step_refuses_arguments_of_other_shapes_and_dtypes(tmp_path: Path) -> None:
    """They might broadcast to the buffers: the captured step records anew, a module can't."""
    model = mlp()
    step = mg.capture(training_step(model, nn.SGD(model.parameters(), lr=0.1)))
    for X, y in batches(4):
        step(X, y)
    module = saved(step, tmp_path, "checked_step")
    arrays = {name: x.copy() for name, x in vars(module).items() if isinstance(x, np.ndarray)}
    for arguments, message in (
        ((X[:1], y), rf"step: X must be an array of float32 \({len(X)}, {X.shape[1]}\), got float32 \(1, "),
        ((X, y[:1]), r"step: y must be an array of int64 .*, got int64 \(1,\)"),
        ((X.astype(np.float64), y), r"step: X must be an array of float32 .*, got float64"),
        ((X.tolist(), y), r"step: X must be an array of float32 .*, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            module.step(*arguments)
    assert all(bits(arrays[name]) == bits(getattr(module, name)) for name in arrays)
    module.step(X, y)


def test_saving_is_refused_where_the_step_would_be_another_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 3, rng=0), nn.Dropout(0.5, 0))
    step = mg.capture(lambda x: model(x))
    X = batches(1)[0][0]
    for _ in range(4):
        step(X)
    model.eval()
    with pytest.raises(mg.CaptureError, match="model is another one than in the last call of the step"):
        step.save(tmp_path / "step.py")
    step(X)
    step(X)
    step.save(tmp_path / "step.py")
    assert (tmp_path / "step.py").exists()


def test_steps_in_bfloat16_are_not_saved(tmp_path: Path) -> None:
    pytest.importorskip("ml_dtypes")
    model = nn.Linear(3, 2, rng=0)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        with mg.autocast("bfloat16"):
            return model(x)

    for _ in range(3):
        step(np.ones((1, 3), np.float32))
    with pytest.raises(mg.CaptureError, match="bfloat16, which NumPy alone has not"):
        step.save(tmp_path / "step.py")


def test_loaded_weights_are_copied_once_and_not_in_every_replay(tmp_path: Path) -> None:
    model, plain = mlp(), mlp()
    optimizers = [nn.SGD(m.parameters(), 0.05, momentum=0.9) for m in (model, plain)]
    step, eager = mg.capture(training_step(model, optimizers[0])), training_step(plain, optimizers[1])
    for i, (X, y) in enumerate(batches(20)):
        if i in (7, 12):
            model.load_state_dict(model.state_dict())
            plain.load_state_dict(plain.state_dict())
        assert bits(step(X, y), *model.parameters()) == bits(eager(X, y), *plain.parameters())
    assert ".copy(), " not in step.source
    step.save(tmp_path / "step.py")
    for X, y in batches(6):  # loaded before every call, it is what the step does
        model.load_state_dict(model.state_dict())
        plain.load_state_dict(plain.state_dict())
        assert bits(step(X, y), *model.parameters()) == bits(eager(X, y), *plain.parameters())
