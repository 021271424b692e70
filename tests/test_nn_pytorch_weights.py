"""Weights in PyTorch's names and layouts: there and back, and files that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.against_pytorch import BLOCKS, B, E, H, T, compare, f64, plain, torch


@pytest.mark.parametrize(("norm_first", "activation"), BLOCKS)
def test_weights_from_pytorch_and_back(norm_first: bool, activation: str, tmp_path: Path) -> None:
    """An encoder layer saved by PyTorch and loaded here computes the same; saved here, PyTorch loads the same bits."""
    import safetensors.torch

    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoderLayer(
        E, H, 20, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
    ).double()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    make = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]
    ours = nn.TransformerBlock(E, H, 20, make, norm_first, **f64)
    nn.load_pytorch(tmp_path / "theirs.safetensors", ours)
    x = np.random.default_rng(0).standard_normal((B, T, E))
    compare(ours, theirs, plain, plain, x)
    nn.save_pytorch(tmp_path / "ours.safetensors", ours)
    saved = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert set(saved) == set(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(saved[name], tensor), name


FROM_PYTORCH: dict[str, tuple[Callable[[], Any], Callable[[], nn.Module], Callable[..., Any], Any]] = {
    "Linear": (lambda: torch.nn.Linear(3, 2), lambda: nn.Linear(3, 2, rng=0), lambda f, x: f(x), np.ones((4, 3))),
    "LayerNorm": (lambda: torch.nn.LayerNorm(3), lambda: nn.LayerNorm(3), lambda f, x: f(x), np.eye(4, 3)),
    "Embedding": (
        lambda: torch.nn.Embedding(7, 3), lambda: nn.Embedding(7, 3, rng=0), lambda f, x: f(x), np.array([6, 0, 6]),
    ),
    "MultiheadAttention": (
        lambda: torch.nn.MultiheadAttention(6, 2, batch_first=True),
        lambda: nn.MultiHeadAttention(6, 2, rng=0),
        lambda f, x: f(x, x, x)[0] if isinstance(f, torch.nn.Module) else f(x),
        np.random.default_rng(0).standard_normal((2, 5, 6)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FROM_PYTORCH)
def test_weights_that_pytorch_saved(name: str, tmp_path: Path) -> None:
    import safetensors.torch

    their_layer, our_layer, call, x = FROM_PYTORCH[name]
    theirs, ours = their_layer(), our_layer()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(-1, 1)
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "theirs.safetensors")
    nn.load_pytorch(tmp_path / "theirs.safetensors", ours)
    inputs = (x, torch.from_numpy(x)) if x.dtype.kind == "i" else (x.astype("f"), torch.from_numpy(x.astype("f")))
    ours_out = call(ours, mg.tensor(inputs[0])).data
    np.testing.assert_allclose(ours_out, call(theirs, inputs[1]).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "weights.safetensors"
    layer = nn.Linear(3, 2, rng=0)
    before = layer.state_dict()
    float8 = {"weight": torch.zeros(2, 3).to(torch.float8_e4m3fn), "bias": torch.zeros(2)}
    for state, message in (
        ({"weight": torch.zeros(2, 3)}, "missing bias"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight has shape \(2, 3\), expected \(3, 2\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(1)}, "unexpected scale"),
        (float8, "weight has the dtype F8_E4M3, which NumPy lacks"),
    ):
        safetensors.torch.save_file(state, path)
        with pytest.raises(ValueError, match=rf"load_pytorch: .*weights\.safetensors.*{message}"):
            nn.load_pytorch(path, layer)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors can't be read"):
        nn.load_pytorch(path, layer)
    with pytest.raises(FileNotFoundError):
        nn.load_pytorch(tmp_path / "none", layer)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_names_of_ours_in_a_file_of_theirs_are_refused(tmp_path: Path) -> None:
    import safetensors.numpy

    w, model = np.arange(4.0).reshape(2, 2), nn.Sequential(nn.Linear(2, 2, bias=False, rng=0))
    safetensors.numpy.save_file({"layers.0.weight": w}, tmp_path / "w.safetensors")
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"w\.safetensors: unexpected layers\.0\.weight; Sequential has 0\.weight"):
        nn.load_pytorch(tmp_path / "w.safetensors", model)
    np.testing.assert_array_equal(model.state_dict()["layers.0.weight"], before["layers.0.weight"])


def test_a_part_that_points_back_to_the_whole(tmp_path: Path) -> None:
    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            self.parent, self.linear = parent, nn.Linear(2, 2, rng=0)

    class Parent(nn.Module):
        def __init__(self) -> None:
            self.child = Child(self)

    ours, other = Parent(), Parent()
    other.child.linear.weight.data = other.child.linear.weight.data * 2
    nn.save_pytorch(tmp_path / "w.safetensors", ours)
    nn.load_pytorch(tmp_path / "w.safetensors", other)
    np.testing.assert_array_equal(other.child.linear.weight.data, ours.child.linear.weight.data)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_other_dtypes_come_and_go(dtype: str, tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "weights.safetensors"
    theirs = torch.nn.Linear(3, 2).to(getattr(torch, dtype))
    safetensors.torch.save_file(theirs.state_dict(), path)
    ours = nn.Linear(3, 2, rng=0)
    nn.load_pytorch(path, ours)
    np.testing.assert_array_equal(ours.weight.data.T, theirs.weight.detach().float().numpy())
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
        narrow = nn.Linear(3, 2, dtype="bfloat16", rng=0)
        nn.load_pytorch(path, narrow)
        nn.save_pytorch(path, narrow)
        nn.load_pytorch(path, ours)
        np.testing.assert_array_equal(ours.weight.data.T, theirs.weight.detach().float().numpy())


def test_a_tensor_in_two_places_has_both_names_in_pytorch(tmp_path: Path) -> None:
    import safetensors.numpy
    import safetensors.torch

    class Ours(nn.Module):
        def __init__(self) -> None:
            self.a, self.b = nn.Linear(3, 3, rng=0), nn.Linear(3, 3, rng=1)
            self.b.weight = self.a.weight

    theirs = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    theirs["b"].weight = theirs["a"].weight
    ours, path = Ours(), tmp_path / "weights.safetensors"
    nn.save_pytorch(path, ours)
    state = safetensors.torch.load_file(path)
    theirs.load_state_dict(state)
    np.testing.assert_array_equal(theirs["b"].weight.detach().numpy(), ours.b.weight.data.T)
    ours.a.weight.data = np.zeros((3, 3), np.float32)
    nn.load_pytorch(path, ours)
    np.testing.assert_array_equal(ours.a.weight.data.T, state["a.weight"].numpy())
    state["b.weight"] = state["b.weight"] + 1
    safetensors.torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"a\.weight and b\.weight differ, which are one tensor here"):
        nn.load_pytorch(path, ours)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    class Adapted(nn.TransformerBlock):
        def __init__(self) -> None:
            super().__init__(8, 2, 16, rng=0)
            self.linear1 = nn.Linear(8, 4, rng=1)

    with pytest.raises(ValueError, match="two tensors of Adapted would have the name linear1"):
        nn.save_pytorch(tmp_path / "weights.safetensors", Adapted())
    assert not any(tmp_path.iterdir())


def test_results_that_a_module_keeps_are_no_weights(tmp_path: Path) -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            self.linear = nn.Linear(3, 2, rng=0)

        def forward(self, x: mg.Tensor) -> mg.Tensor:
            self.latest = self.linear(x)
            return self.latest

    model, path = Keeping(), tmp_path / "weights.safetensors"
    model(mg.tensor(np.ones((1, 3), np.float32)))
    nn.save_pytorch(path, model)
    nn.load_pytorch(path, model)
