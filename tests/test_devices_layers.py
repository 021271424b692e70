"""Every layer, loss, optimiser and schedule on a GPU: results, gradients and steps are those of the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn

D, B, T = 16, 3, 10
REAL, TOKENS, HEADS = "real", "tokens", "heads"  # inputs (B, T, D), integers (B, T), (B, 2, T, D)
LAYERS: dict[str, list[tuple[str, Callable[[Any], nn.Module]]]] = {
    "GELU": [(REAL, lambda dtype: nn.GELU()), (REAL, lambda dtype: nn.GELU("tanh"))],
    "LeakyReLU": [(REAL, lambda dtype: nn.LeakyReLU(0.1))],
    "ReLU": [(REAL, lambda dtype: nn.ReLU())],
    "SiLU": [(REAL, lambda dtype: nn.SiLU())],
    "Sigmoid": [(REAL, lambda dtype: nn.Sigmoid())],
    "Softmax": [(REAL, lambda dtype: nn.Softmax())],
    "Tanh": [(REAL, lambda dtype: nn.Tanh())],
    "Dropout": [(REAL, lambda dtype: nn.Dropout(0.0)), (REAL, lambda dtype: nn.Dropout(0.5).eval())],
    "Linear": [(REAL, lambda dtype: nn.Linear(D, 5, rng=0, dtype=dtype))],
    "MLP": [(REAL, lambda dtype: nn.MLP([D, 8, 4], rng=0, dtype=dtype))],
    "Sequential": [(REAL, lambda dtype: nn.Sequential(nn.Linear(D, 5, rng=0, dtype=dtype), nn.GELU()))],
    "LayerNorm": [(REAL, lambda dtype: nn.LayerNorm(D, dtype=dtype))],
    "RMSNorm": [(REAL, lambda dtype: nn.RMSNorm(D, dtype=dtype))],
    "Embedding": [(TOKENS, lambda dtype: nn.Embedding(9, D, 2, rng=0, dtype=dtype))],
    "LearnedPositions": [(REAL, lambda dtype: nn.LearnedPositions(T, D, rng=0, dtype=dtype))],
    "SinusoidalPositions": [(REAL, lambda dtype: nn.SinusoidalPositions(T, D))],
    "RotaryPositions": [(HEADS, lambda dtype: nn.RotaryPositions(T, D))],
    "MultiHeadAttention": [
        (REAL, lambda dtype: nn.MultiHeadAttention(D, 4, rng=0, dtype=dtype)),
        (REAL, lambda dtype: nn.MultiHeadAttention(D, 4, 2, rotary=nn.RotaryPositions(T, 4), rng=0, dtype=dtype)),
    ],
    "FeedForward": [
        (REAL, lambda dtype: nn.FeedForward(D, 24, rng=0, dtype=dtype)),
        (REAL, lambda dtype: nn.FeedForward(D, 24, nn.SiLU, gated=True, rng=0, dtype=dtype)),
    ],
    "TransformerBlock": [
        (REAL, lambda dtype: nn.TransformerBlock(D, 4, causal=True, rng=0, dtype=dtype)),
        (REAL, lambda dtype: nn.TransformerBlock(D, 4, norm_first=False, rng=0, dtype=dtype)),
    ],
    "Transformer": [
        (TOKENS, lambda dtype, p=p: nn.Transformer(9, D, 4, 2, T, positions=p, rng=0, dtype=dtype))
        for p in ("learned", "sinusoidal", "rotary")
    ],
}  # fmt: skip
CASES = [pytest.param(*case, id=f"{name}-{i}") for name, cases in LAYERS.items() for i, case in enumerate(cases)]


def test_no_layer_is_left_out() -> None:
    layers = {name for name in nn.__all__ if inspect.isclass(x := getattr(nn, name)) and issubclass(x, nn.Module)}
    assert layers - {"Module"} == set(LAYERS)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "make"), CASES)
def test_a_layer(kind: str, make: Callable[[Any], nn.Module], dtype: Any, cupy: Any) -> None:
    found = []
    for place in ("cpu", "cuda"):
        rng = np.random.default_rng(1)
        layer = make(dtype).to(place)
        for p in layer.parameters():
            p.data = p.numpy() + rng.uniform(-0.3, 0.3, p.shape)  # no zeros and ones, which would hide errors
        if kind == TOKENS:
            x = mg.tensor(rng.integers(0, 9, (B, T)), device=place)
        else:
            shape = (B, 2, T, D) if kind == HEADS else (B, T, D)
            x = mg.tensor(rng.standard_normal(shape), dtype, requires_grad=True, device=place)
        out = layer(x)
        assert out.device == ("cpu" if place == "cpu" else "cuda:0")
        if out.requires_grad:
            out.backward(rng.standard_normal(out.shape).astype(dtype))
        leaves = [t for t in (x, *layer.parameters()) if t.requires_grad]
        found.append([out.numpy(), *(t.grad.numpy() for t in leaves)])  # type: ignore[union-attr]
    for ours, expected in zip(found[1], found[0], strict=True):
        assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
        tolerance = (1e-13 if dtype is np.float64 else 2e-6) * max(1.0, np.abs(expected).max(initial=0.0))
        np.testing.assert_allclose(ours, expected, rtol=0, atol=5 * tolerance)


OPTIMIZERS: dict[str, Callable[[Any], nn.Optimizer]] = {
    "SGD": lambda p: nn.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: nn.Adam(p, 0.01, weight_decay=0.01),
    "AdamW": lambda p: nn.AdamW(nn.decay_groups(p, 0.1), 0.01) if isinstance(p, nn.Module) else nn.AdamW(p, 0.01),
    "RMSprop": lambda p: nn.RMSprop(p, 0.01, momentum=0.5, centered=True),
}
SCHEDULES: dict[str, Callable[[Any], nn.LRScheduler]] = {
    "StepLR": lambda o: nn.StepLR(o, 3, 0.5),
    "WarmupCosineLR": lambda o: nn.WarmupCosineLR(o, 2, 12),
    "OneCycleLR": lambda o: nn.OneCycleLR(o, 0.02, 12),
}


def test_no_optimiser_and_no_schedule_is_left_out() -> None:
    for base, known in ((nn.Optimizer, OPTIMIZERS), (nn.LRScheduler, SCHEDULES)):
        classes = [name for name in nn.__all__ if inspect.isclass(x := getattr(nn, name)) and issubclass(x, base)]
        assert set(classes) - {base.__name__} == set(known)


@pytest.mark.parametrize("loss", ["cross_entropy", "one-hot", "mse_loss"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training(optimizer: str, schedule: str, loss: str, cupy: Any) -> None:
    losses = []
    for place in ("cpu", "cuda"):
        rng = np.random.default_rng(0)
        with mg.device(place):
            model = nn.MLP([6, 12, 4], rng=rng, dtype=np.float64)
            update = OPTIMIZERS[optimizer](model.parameters())
            rate = SCHEDULES[schedule](update)
            losses.append([])
            for _ in range(10):
                x, labels = mg.tensor(rng.standard_normal((20, 6))), rng.integers(0, 4, 20)
                if loss == "mse_loss":
                    value = nn.mse_loss(model(x), mg.tensor(np.eye(4)[labels]))
                else:
                    targets = labels if loss == "cross_entropy" else nn.one_hot(labels, 4, np.float64)
                    value = nn.cross_entropy(model(x), mg.tensor(targets))
                update.zero_grad()
                value.backward()
                nn.clip_grad_norm(model.parameters(), 0.5)
                update.step()
                rate.step()
                losses[-1].append(value.item())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-11)


def test_checkpoints_go_from_one_device_to_the_other(cupy: Any, tmp_path: Any) -> None:
    pytest.importorskip("safetensors")
    path, losses = tmp_path / "c.safetensors", {}

    def run(places: list[str]) -> list[float]:
        values = []
        for i, place in enumerate(places):
            with mg.device(place):
                rng = np.random.default_rng(0)
                model = nn.Transformer(11, 8, 2, 1, 6, rng=rng)
                optimizer = nn.AdamW(nn.decay_groups(model, 0.1), 0.01)
                parts = {"model": model, "optimizer": optimizer, "rng": rng}
                if i:
                    nn.load_checkpoint(path, **parts)
                for _ in range(3):
                    tokens = mg.tensor(rng.integers(0, 11, (4, 7)))
                    value = nn.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
                    values.append(value.item())
                nn.save_checkpoint(path, **parts)
        return values

    for places in (["cpu", "cpu"], ["cuda", "cpu"], ["cpu", "cuda"]):
        losses["".join(places)] = run(places)
    assert losses["cudacpu"] == pytest.approx(losses["cpucpu"], abs=1e-5)
    assert losses["cpucuda"] == pytest.approx(losses["cpucpu"], abs=1e-5)


def test_generating_with_a_cache(cupy: Any) -> None:
    model = nn.Transformer(11, 8, 2, 2, 12, positions="rotary", num_kv_heads=1, rng=0, dtype=np.float64)
    expected = model.generate([1, 2, 3], 15, temperature=0.7, rng=5)
    model.to("cuda")
    np.testing.assert_array_equal(model.generate([1, 2, 3], 15, temperature=0.7, rng=5), expected)
    np.testing.assert_array_equal(
        model.generate(mg.tensor([1, 2, 3], device="cuda"), 15, temperature=0.7, rng=5), expected
    )
