"""Layers, losses, optimisers and schedules against PyTorch's, in float64; and weights there and back.

A layer's weights go to PyTorch through a file of ``nn.save_pytorch``, so that names and layouts are tested with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from nn.pytorch import _counterparts

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
TOLERANCE = 1e-10


def close(ours: Any, theirs: Any) -> None:
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    scale = np.max(np.abs(theirs), initial=0.0)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * scale)


def randomized(module: nn.Module, seed: int = 1) -> nn.Module:
    """With random parameters, so that no bias is zero and no scale is one."""
    rng = np.random.default_rng(seed)
    for parameter in module.parameters():
        parameter.data = rng.uniform(-0.6, 1.0, parameter.shape)
    return module


def in_pytorch(ours: nn.Module, theirs: Any, path: Path) -> Any:
    """PyTorch's module with the weights of ours."""
    import safetensors.torch

    nn.save_pytorch(path / "weights.safetensors", ours)
    theirs.double().load_state_dict(safetensors.torch.load_file(path / "weights.safetensors"))
    return theirs


def compare(ours: nn.Module, theirs: Any, call: Callable[..., Any], their_call: Callable[..., Any], *xs: Any) -> None:
    """Results, gradients of the inputs and of all parameters."""
    inputs = [mg.tensor(x, requires_grad=True) if x.dtype.kind == "f" else x for x in xs]
    their_inputs = [torch.tensor(x, requires_grad=x.dtype.kind == "f") for x in xs]
    out, their_out = call(ours, *inputs), their_call(theirs, *their_inputs)
    close(out.numpy(), their_out)
    weights = np.random.default_rng(2).uniform(0.5, 1.5, out.shape)
    (out * weights).sum().backward()
    (their_out * torch.from_numpy(weights)).sum().backward()
    for x, their_x in zip(inputs, their_inputs, strict=True):
        if isinstance(x, mg.Tensor):
            close(x.grad.data, their_x.grad)  # type: ignore[union-attr]
    parameters = dict(theirs.named_parameters())
    for name, their_name, tensor, transposed in _counterparts(ours):
        assert tensor.grad is not None, name
        gradient = tensor.grad.data.T if transposed else tensor.grad.data
        if np.abs(gradient).max() > 1e-12:  # the bias of keys, for one, has no influence
            close(gradient, parameters.pop(their_name).grad)
        else:
            assert parameters.pop(their_name).grad.abs().max() < 1e-12
    assert not parameters


def plain(module: Any, *xs: Any) -> Any:
    return module(*xs)


f64: dict[str, Any] = {"dtype": np.float64}
t64: dict[str, Any] = {"dtype": torch.float64}
SHAPES = [(4,), (3, 4), (2, 3, 4)]

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "Linear": (lambda: nn.Linear(4, 5, **f64), lambda: torch.nn.Linear(4, 5)),
    "Linear without bias": (lambda: nn.Linear(4, 5, bias=False, **f64), lambda: torch.nn.Linear(4, 5, bias=False)),
    "ReLU": (nn.ReLU, torch.nn.ReLU),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.2), lambda: torch.nn.LeakyReLU(0.2)),
    "Sigmoid": (nn.Sigmoid, torch.nn.Sigmoid),
    "Tanh": (nn.Tanh, torch.nn.Tanh),
    "SiLU": (nn.SiLU, torch.nn.SiLU),
    "GELU": (nn.GELU, torch.nn.GELU),
    "GELU tanh": (lambda: nn.GELU(approximate="tanh"), lambda: torch.nn.GELU(approximate="tanh")),
    "Softmax": (nn.Softmax, lambda: torch.nn.Softmax(-1)),
    "LayerNorm": (lambda: nn.LayerNorm(4, **f64), lambda: torch.nn.LayerNorm(4)),
    "LayerNorm eps": (lambda: nn.LayerNorm(4, eps=0.1, **f64), lambda: torch.nn.LayerNorm(4, eps=0.1)),
    "LayerNorm without bias": (
        lambda: nn.LayerNorm(4, bias=False, **f64),
        lambda: torch.nn.LayerNorm(4, bias=False),
    ),
    "LayerNorm plain": (
        lambda: nn.LayerNorm(4, elementwise_affine=False),
        lambda: torch.nn.LayerNorm(4, elementwise_affine=False),
    ),
    "RMSNorm": (lambda: nn.RMSNorm(4, **f64), lambda: torch.nn.RMSNorm(4, **t64)),
    "RMSNorm eps": (lambda: nn.RMSNorm(4, eps=0.1, **f64), lambda: torch.nn.RMSNorm(4, eps=0.1)),
    "RMSNorm plain": (
        lambda: nn.RMSNorm(4, elementwise_affine=False),
        lambda: torch.nn.RMSNorm(4, elementwise_affine=False),
    ),
    "Sequential": (
        lambda: nn.Sequential(nn.Linear(4, 6, **f64), nn.ReLU(), nn.LayerNorm(6, **f64), nn.Linear(6, 2, **f64)),
        lambda: torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2)
        ),
    ),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    make, make_theirs = LAYERS[name]
    ours = randomized(make())
    theirs = in_pytorch(ours, make_theirs(), tmp_path)
    compare(ours, theirs, plain, plain, np.random.default_rng(0).uniform(-2, 2, shape))


@pytest.mark.parametrize("shape", [(2, 3), (5, 2, 3)], ids=str)
def test_norms_of_two_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-2, 2, shape)
    for ours, theirs in (
        (nn.LayerNorm((2, 3), **f64), torch.nn.LayerNorm((2, 3))),
        (nn.RMSNorm((2, 3), eps=1e-3, **f64), torch.nn.RMSNorm((2, 3), eps=1e-3)),
    ):
        compare(randomized(ours), in_pytorch(ours, theirs, tmp_path), plain, plain, x)


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("tokens", [np.array([0, 2, 2, 1]), np.array([[3, 3], [2, 0]]), np.array(3)], ids=str)
def test_embedding(tokens: Any, padding_idx: int | None, tmp_path: Path) -> None:
    ours = randomized(nn.Embedding(4, 3, padding_idx, **f64))
    theirs = in_pytorch(ours, torch.nn.Embedding(4, 3, padding_idx), tmp_path)
    compare(ours, theirs, plain, plain, tokens)


def test_dropout_in_both_modes() -> None:
    x = np.random.default_rng(0).standard_normal((200, 300))
    layer = nn.Dropout(0.3, rng=0)
    out = layer(mg.tensor(x)).numpy()
    kept = out != 0
    np.testing.assert_allclose(out[kept], x[kept] / 0.7, rtol=1e-14)
    assert kept.mean() == pytest.approx(0.7, abs=0.01)
    np.testing.assert_array_equal(layer.eval()(mg.tensor(x)).numpy(), x)


E, H, B, T, S = 12, 3, 2, 5, 7
PADDING = np.array([[False, False, True, False, True], [False, True, False, False, False]])
ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True, "attn_mask": ~np.tri(T, dtype=bool)},
    "padding": {"key_padding_mask": PADDING},
    "mask": {"attn_mask": np.random.default_rng(0).random((T, T)) < 0.3},
    "numbers": {"attn_mask": np.random.default_rng(0).standard_normal((T, T))},
    "padding and mask": {"key_padding_mask": PADDING, "attn_mask": ~np.tri(T, dtype=bool)},
    "mask per head": {"attn_mask": np.random.default_rng(0).random((B, H, T, T)) < 0.3},
}


def our_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in options.items() if not (options.get("is_causal") and name == "attn_mask")}


def their_options(options: dict[str, Any]) -> dict[str, Any]:
    def converted(x: Any) -> Any:
        return torch.from_numpy(x.reshape(-1, *x.shape[-2:]) if x.ndim == 4 else x) if isinstance(x, np.ndarray) else x

    return {name: converted(x) for name, x in options.items()}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ATTENTION)
def test_self_attention(name: str, bias: bool, tmp_path: Path) -> None:
    options = ATTENTION[name]
    ours = randomized(nn.MultiHeadAttention(E, H, bias=bias, **f64))
    theirs = in_pytorch(ours, torch.nn.MultiheadAttention(E, H, bias=bias, batch_first=True), tmp_path)
    x = np.random.default_rng(0).standard_normal((B, T, E))
    compare(
        ours,
        theirs,
        lambda module, x: module(x, **our_options(options)),
        lambda module, x: module(x, x, x, need_weights=False, **their_options(options))[0],
        x,
    )
    out, weights = ours(mg.tensor(x), need_weights=True, **our_options(options))
    their_out, their_weights = theirs(
        *[torch.from_numpy(x)] * 3, average_attn_weights=False, **{**their_options(options), "is_causal": False}
    )
    close(out.numpy(), their_out)
    close(weights.numpy(), their_weights)


@pytest.mark.parametrize("value", [False, True], ids=["values are the keys", "values of their own"])
def test_attention_to_another_sequence(value: bool, tmp_path: Path) -> None:
    ours = randomized(nn.MultiHeadAttention(E, H, **f64))
    theirs = in_pytorch(ours, torch.nn.MultiheadAttention(E, H, batch_first=True), tmp_path)
    rng = np.random.default_rng(0)
    padding = rng.random((B, S)) < 0.3
    xs = [rng.standard_normal((B, n, E)) for n in (T, S, S)][: 3 if value else 2]
    compare(
        ours,
        theirs,
        lambda module, *xs: module(*xs, key_padding_mask=padding),
        lambda module, q, k, v=None: module(q, k, k if v is None else v, torch.from_numpy(padding), False)[0],
        *xs,
    )


def test_attention_without_a_batch(tmp_path: Path) -> None:
    ours = randomized(nn.MultiHeadAttention(E, H, **f64))
    theirs = in_pytorch(ours, torch.nn.MultiheadAttention(E, H), tmp_path)
    x = np.random.default_rng(0).standard_normal((T, E))
    compare(ours, theirs, plain, lambda module, x: module(x, x, x)[0], x)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_heads(num_kv_heads: int, causal: bool) -> None:
    """Against PyTorch's function with the heads of keys and values repeated."""
    E, H = 8, 4
    ours = randomized(nn.MultiHeadAttention(E, H, num_kv_heads, **f64))
    x = mg.tensor(np.random.default_rng(0).standard_normal((B, T, E)), requires_grad=True)
    w_in, b_in, w_out, b_out = (
        torch.tensor(p.data, requires_grad=True)
        for p in (ours.in_proj.weight, ours.in_proj.bias, ours.out_proj.weight, ours.out_proj.bias)
    )
    their_x = torch.tensor(x.data, requires_grad=True)
    q, k, v = torch.split(their_x @ w_in + b_in, [E, 2 * num_kv_heads, 2 * num_kv_heads], -1)
    q, k, v = (y.unflatten(-1, (-1, 2)).transpose(1, 2) for y in (q, k, v))
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    their_out = heads.transpose(1, 2).flatten(-2) @ w_out + b_out
    out = ours(x, is_causal=causal)
    close(out.numpy(), their_out)
    _, weights = ours(x, is_causal=causal, need_weights=True)
    assert weights.shape == (B, H, T, T)
    np.testing.assert_allclose(weights.numpy().sum(-1), 1, rtol=1e-12)
    (out * out).sum().backward()
    (their_out * their_out).sum().backward()
    close(x.grad.data, their_x.grad)  # type: ignore[union-attr]
    for parameter, theirs in zip(ours.parameters(), (w_in, b_in, w_out, b_out), strict=True):
        close(parameter.grad.data, theirs.grad)  # type: ignore[union-attr]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["ReLU", "GELU", "SiLU"])
def test_feed_forward(activation: str, gated: bool) -> None:
    ours = randomized(nn.FeedForward(4, 6, getattr(nn, activation), gated=gated, **f64))
    x = mg.tensor(np.random.default_rng(0).standard_normal((2, 3, 4)), requires_grad=True)
    their_x = torch.tensor(x.data, requires_grad=True)
    p = {name: torch.tensor(tensor.data, requires_grad=True) for name, tensor in ours.named_parameters()}
    act = getattr(torch.nn, activation)()
    inner = their_x @ p["linear1.weight"] + p["linear1.bias"]
    inner = act(their_x @ p["gate.weight"] + p["gate.bias"]) * inner if gated else act(inner)
    their_out = inner @ p["linear2.weight"] + p["linear2.bias"]
    out = ours(x)
    close(out.numpy(), their_out)
    (out * out).sum().backward()
    (their_out * their_out).sum().backward()
    close(x.grad.data, their_x.grad)  # type: ignore[union-attr]
    for name, parameter in ours.named_parameters():
        close(parameter.grad.data, p[name].grad)  # type: ignore[union-attr]


BLOCKS = [(first, activation) for first in (True, False) for activation in ("relu", "gelu")]


@pytest.mark.parametrize("mask", ["plain", "causal", "padding"])
@pytest.mark.parametrize(("norm_first", "activation"), BLOCKS)
def test_block_is_an_encoder_layer(norm_first: bool, activation: str, mask: str, tmp_path: Path) -> None:
    make = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]
    ours = randomized(nn.TransformerBlock(E, H, 20, make, norm_first, mask == "causal", **f64))
    theirs = in_pytorch(
        ours,
        torch.nn.TransformerEncoderLayer(
            E, H, 20, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first
        ),
        tmp_path,
    )
    options = {"key_padding_mask": PADDING} if mask == "padding" else {}
    their = {"src_key_padding_mask": torch.from_numpy(PADDING)} if mask == "padding" else {}
    if mask == "causal":
        their = {"src_mask": torch.nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)}
    compare(
        ours,
        theirs,
        lambda module, x: module(x, **options),
        lambda module, x: module(x, **their),
        np.random.default_rng(0).standard_normal((B, T, E)),
    )


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


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "weights.safetensors"
    layer = nn.Linear(3, 2, rng=0)
    before = layer.state_dict()
    bfloat16 = {"weight": torch.zeros(2, 3, dtype=torch.bfloat16), "bias": torch.zeros(2, dtype=torch.bfloat16)}
    for state, message in (
        ({"weight": torch.zeros(2, 3)}, "missing bias"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight has shape \(2, 3\), expected \(3, 2\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(1)}, "unexpected scale"),
        (bfloat16, "holds values of dtype 'BF16', which NumPy lacks"),
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


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 40), (4,)], ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
def test_cross_entropy(shape: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(0)
    logits = mg.tensor(rng.standard_normal(shape) * 3, requires_grad=True)
    targets = (
        rng.integers(0, shape[-1], shape[:-1]) if kind == "indices" else rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    )
    their_logits = torch.tensor(logits.data, requires_grad=True)
    rows = torch.from_numpy(np.asarray(targets)).reshape(-1, *([shape[-1]] if kind == "probabilities" else []))
    loss, their_loss = nn.cross_entropy(logits, targets), F.cross_entropy(their_logits.reshape(-1, shape[-1]), rows)
    close(loss.numpy(), their_loss)
    loss.backward()
    their_loss.backward()
    close(logits.grad.data, their_logits.grad)  # type: ignore[union-attr]


def test_mse_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 4))
    ours, theirs = mg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    nn.mse_loss(ours, y).backward()
    F.mse_loss(theirs, torch.from_numpy(y)).backward()
    close(ours.grad.data, theirs.grad)  # type: ignore[union-attr]


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05}),
    ("Adam", {"lr": 0.05, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.05}),
    ("AdamW", {"lr": 0.05, "betas": (0.5, 0.8), "eps": 0.1, "weight_decay": 0.3}),
    ("RMSprop", {"lr": 0.01}),
    ("RMSprop", {"lr": 0.01, "alpha": 0.8, "eps": 0.1, "weight_decay": 0.3, "momentum": 0.7, "centered": True}),
]


@pytest.mark.parametrize("chunk", [5, 1 << 18])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS, ids=str)
def test_optimizers_step_by_step(name: str, options: dict[str, Any], chunk: int, monkeypatch: Any) -> None:
    """Two groups of parameters, one of which has another rate, and skips a step."""
    monkeypatch.setattr("nn.adaptive.BLOCK", chunk)
    rng = np.random.default_rng(0)
    values = [np.asarray(rng.standard_normal(shape)) for shape in ((3, 4), (4,), ())]
    ours = [mg.tensor(x, requires_grad=True) for x in values]
    theirs = [torch.tensor(x, requires_grad=True) for x in values]
    groups = [[{"params": p[:2]}, {"params": p[2:], "lr": 0.2}] for p in (ours, theirs)]
    optimizer, their_optimizer = (
        getattr(nn, name)(groups[0], **options),
        getattr(torch.optim, name)(groups[1], **options),
    )
    for step in range(8):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            gradient = np.asarray(rng.standard_normal(p.shape))
            skipped = i == 2 and step == 3
            p.grad, q.grad = (None, None) if skipped else (gradient, torch.tensor(gradient))
        optimizer.step()
        their_optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            close(p.data, q)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clip_grad_norm(max_norm: float) -> None:
    rng = np.random.default_rng(0)
    ours = [mg.tensor(np.zeros(shape), requires_grad=True) for shape in ((3, 4), (4,), ())]
    theirs = [torch.zeros(p.shape, dtype=torch.float64, requires_grad=True) for p in ours]
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        p.grad = rng.standard_normal(p.shape)
        q.grad = torch.tensor(p.grad.data)  # type: ignore[union-attr]
    norm = nn.clip_grad_norm(ours, max_norm)
    close(norm.numpy(), torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    for p, q in zip(ours[:2], theirs[:2], strict=True):
        close(p.grad.data, q.grad)  # type: ignore[union-attr]
    assert ours[2].grad is None


def test_schedules() -> None:
    def rates(make: Callable[..., Any], optimizers: Any, library: Any, steps: int) -> list[list[float]]:
        parameters = [library(0.0), library(0.0)]
        optimizer = optimizers.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}], lr=0.1)
        schedule, found = make(optimizer), []
        for _ in range(steps):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return found

    leaf = functools.partial(mg.tensor, requires_grad=True)
    their_leaf = functools.partial(torch.tensor, requires_grad=True)
    schedulers = torch.optim.lr_scheduler
    for ours, theirs in (
        (lambda o: nn.StepLR(o, 4, 0.5), lambda o: schedulers.StepLR(o, 4, 0.5)),
        (
            lambda o: nn.OneCycleLR(o, 0.4, 20),
            lambda o: schedulers.OneCycleLR(o, 0.4, 20, cycle_momentum=False),
        ),
        (
            lambda o: nn.OneCycleLR(o, 0.4, 20, 0.45, "linear", 10, 50),
            lambda o: schedulers.OneCycleLR(
                o,
                0.4,
                20,
                pct_start=0.45,
                anneal_strategy="linear",
                cycle_momentum=False,
                div_factor=10,
                final_div_factor=50,
            ),
        ),
        (
            lambda o: nn.WarmupCosineLR(o, 0, 15, 0.02),
            lambda o: schedulers.SequentialLR(
                o,
                [schedulers.CosineAnnealingLR(o, 15, 0.02), schedulers.ConstantLR(o, 1.0)],
                [19],
            ),
        ),
    ):
        n = 15 if "Warmup" in str(ours.__code__.co_names) else 19
        np.testing.assert_allclose(rates(ours, nn, leaf, n), rates(theirs, torch.optim, their_leaf, n), rtol=1e-12)


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
