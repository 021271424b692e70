"""Attention in chunks: the same for every size of the chunks, in memory that grows linearly, and at its edges."""

from __future__ import annotations

import gc
import importlib.util
import tracemalloc
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.kernels import chunked_attention
from microgradnd.ops import attention as ops
from tests.op_gradients import assert_close

MASK = np.random.default_rng(3).random((2, 1, 7, 7)) < 0.6
OPTIONS: list[dict[str, Any]] = [
    {},
    {"is_causal": True},
    {"attn_mask": MASK},
    {"attn_mask": np.where(MASK, 0.5, -np.inf)},
    {"attn_mask": MASK[:, :, :1]},
    {"attn_mask": MASK[..., :1] * 2.0, "is_causal": True},
    {"dropout_p": 0.3, "rng": 5},
    {"dropout_p": 0.3, "rng": 5, "is_causal": True, "attn_mask": MASK},
]


def inputs(device: Any, *shapes: tuple[int, ...], dtype: Any = np.float64) -> list[mg.Tensor]:
    rng = np.random.default_rng(0)
    return [mg.tensor(device.array(rng.standard_normal(s).astype(dtype)), requires_grad=True) for s in shapes]


def gradients(out: mg.Tensor, tensors: list[mg.Tensor], device: Any) -> list[Any]:
    for tensor in tensors:
        tensor.zero_grad()
    (out * device.array(np.random.default_rng(1).uniform(0.5, 1.5, out.shape).astype(out.dtype))).sum().backward()
    return [device.host(tensor.grad.data) for tensor in tensors]  # type: ignore[union-attr]


@pytest.mark.parametrize("chunk", [1, 7, 10, 49, 60, 150])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_chunks_of_every_size(options: dict[str, Any], chunk: int, device: Any, monkeypatch: Any) -> None:
    """Against the definition: chunks of single queries, of some queries, and of several batches."""
    monkeypatch.setattr(chunked_attention, "CHUNK", chunk)
    on_device = {name: device.array(x) for name, x in options.items()}
    tensors = inputs(device, (2, 2, 7, 4), (2, 2, 7, 4), (2, 1, 7, 3))
    out = mg.scaled_dot_product_attention(*tensors, **on_device)
    ours = gradients(out, tensors, device)

    mask = on_device.get("attn_mask")
    seed = int(np.random.default_rng(options["rng"]).integers(2**63)) if "rng" in options else 0
    definition: Any = ops._scaled_dot_product_attention.operation.definition  # type: ignore[attr-defined]
    expected = definition(
        *tensors,
        None if mask is None else mg.tensor(mask),
        options.get("is_causal", False),
        0.5,
        options.get("dropout_p", 0.0),
        seed,
    )
    assert_close(out.numpy(), expected.numpy(), 1e-14)
    for gradient, other in zip(ours, gradients(expected, tensors, device), strict=True):
        assert_close(gradient, other, 1e-13)


def test_every_query_is_in_exactly_one_chunk(monkeypatch: Any) -> None:
    for chunk in (1, 5, 30, 64, 100, 10_000):
        monkeypatch.setattr(chunked_attention, "CHUNK", chunk)
        for shape in ((3, 2, 5, 4), (1, 9, 9), (4, 1, 1)):
            counts = np.zeros((shape[0], shape[-2]), int)
            for part in chunked_attention.chunks(shape, True):
                counts[part.batch, part.rows] += 1
                assert part.keys == min(shape[-1], part.rows.stop)
            np.testing.assert_array_equal(counts, 1)


def peak(T: int) -> int:
    """Bytes allocated at most by a step of causal attention, beyond its inputs."""
    rng = np.random.default_rng(0)
    q, k, v = (mg.tensor(rng.standard_normal((1, 4, T, 32)).astype(np.float32), requires_grad=True) for _ in range(3))
    gc.collect()
    tracemalloc.start()
    try:
        mg.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("numba") is not None:
        from microgradnd.kernels import numba_threads

        monkeypatch.setattr(
            numba_threads, "team", numba_threads.Team(1)
        )  # each has memory of its own, not always at the same time
    x = mg.tensor(np.ones((1, 4, 64, 32), np.float32), requires_grad=True)
    mg.scaled_dot_product_attention(x, x, x, is_causal=True).sum().backward()  # kernels are compiled before
    small, middle, large = (peak(T) for T in (512, 1024, 2048))
    assert middle <= 2 * small
    assert large <= 2 * middle
    assert large < 4 * 2048 * 2048 * 4  # the scores alone, in float32


def test_queries_that_see_nothing_get_zeros(device: Any) -> None:
    tensors = inputs(device, (1, 3, 4), (1, 5, 4), (1, 5, 2))
    mask = np.ones((3, 5), bool)
    mask[1] = False
    for attn_mask in (mask, np.where(mask, 0.0, -np.inf)):
        out = mg.scaled_dot_product_attention(*tensors, attn_mask=device.array(attn_mask))
        np.testing.assert_array_equal(out.numpy()[0, 1], 0)
        assert np.abs(out.numpy()[0, [0, 2]]).min() > 0
        dq, dk, dv = gradients(out, tensors, device)
        np.testing.assert_array_equal(dq[0, 1], 0)
        assert np.isfinite(dk).all()
        assert np.isfinite(dv).all()


@pytest.mark.parametrize("hidden", [np.finfo(np.float32).min, -1e30, -np.inf])
def test_masks_of_huge_numbers_have_one_gradient_of_any_order(hidden: float) -> None:
    """The first key is padding: its query sees nothing else, and others do not see it."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 3, 2)).astype(np.float32) for _ in range(4)]
    mask = np.array([hidden, 0, 0], np.float32)
    found = []
    for create_graph in (False, True):
        q, k, v = (mg.tensor(x, requires_grad=True) for x in arrays[:3])
        out = mg.scaled_dot_product_attention(q, k, v, mask, is_causal=True)
        out.backward(arrays[3], create_graph=create_graph)
        found.append([x.grad.numpy() for x in (q, k, v)])
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)
    expected = arrays[3][0, 0] if np.isfinite(hidden) else np.zeros(2)  # it takes the value of that key
    np.testing.assert_allclose(found[1][2][0, 0], expected, rtol=1e-6, atol=1e-6)


def test_weights_of_huge_scores() -> None:
    q, k = mg.tensor([[1e4], [-1e4]], requires_grad=True), np.array([[1e4], [0.0]])
    out = mg.scaled_dot_product_attention(q, k, np.array([[1.0], [2.0]]))
    np.testing.assert_array_equal(out.numpy(), [[1.0], [2.0]])
    out.sum().backward()
    np.testing.assert_array_equal(q.grad.data, np.zeros((2, 1)))


def test_dropout_is_drawn_from_the_generator_and_keeps_the_mean() -> None:
    q, k, v = np.zeros((2, 3, 1)), np.zeros((2, 4000, 1)), np.ones((2, 4000, 1))
    rng = np.random.default_rng(0)
    first, second = (mg.scaled_dot_product_attention(q, k, v, dropout_p=0.25, rng=rng).numpy() for _ in range(2))
    assert (first != second).all()
    assert len(np.unique(first)) == 6  # other queries drop other keys
    np.testing.assert_allclose(first, 1, atol=0.05)
    again = mg.scaled_dot_product_attention(q, k, v, dropout_p=0.25, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(again.numpy(), first)


def test_dropout_of_values_with_axes_of_their_own_is_the_same_in_every_way() -> None:
    """By the kernel, by the definition, which a mask with a gradient takes, and in gradients of any order."""
    rng = np.random.default_rng(0)
    tensors = [mg.tensor(rng.standard_normal(s), requires_grad=True) for s in ((1, 9, 5), (1, 9, 5), (3, 9, 7))]
    mask = mg.tensor(np.zeros((9, 9)), requires_grad=True)
    w = rng.standard_normal((3, 9, 7))
    found = []
    for options in ({}, {"create_graph": True}, {"attn_mask": mask}):
        create_graph = options.pop("create_graph", False)
        out = mg.scaled_dot_product_attention(*tensors, **options, dropout_p=0.4, rng=3)
        (out * w).sum().backward(create_graph=create_graph)
        found.append([out.numpy(), *(x.grad.numpy() for x in tensors)])
        for x in tensors:
            x.zero_grad()
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_close(a, b, 1e-13)


def test_a_mask_that_needs_a_gradient_gets_one() -> None:
    rng = np.random.default_rng(0)
    q, k, v, bias = (rng.standard_normal(shape) for shape in ((2, 3), (4, 3), (4, 2), (2, 4)))
    mg.check_grads(mg.scaled_dot_product_attention, q, k, v, bias)


@pytest.mark.parametrize("options", OPTIONS[:6], ids=lambda options: "-".join(options) or "plain")
def test_equals_pytorch(options: dict[str, Any], device: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if options.get("is_causal") and "attn_mask" in options:  # which PyTorch does not take together
        options = {"attn_mask": np.where(np.tri(7, dtype=bool), options["attn_mask"], -np.inf)}
    tensors = inputs(device, (2, 2, 7, 4), (2, 2, 7, 4), (2, 2, 7, 3))
    theirs = [torch.from_numpy(tensor.numpy().copy()).requires_grad_() for tensor in tensors]
    out = mg.scaled_dot_product_attention(*tensors, **{name: device.array(x) for name, x in options.items()})
    their_out = torch.nn.functional.scaled_dot_product_attention(
        *theirs, **{name: x if name == "is_causal" else torch.as_tensor(x) for name, x in options.items()}
    )
    assert_close(out.numpy(), their_out.detach().numpy(), 1e-14)
    ours = gradients(out, tensors, device)
    (their_out * torch.from_numpy(np.random.default_rng(1).uniform(0.5, 1.5, out.shape))).sum().backward()
    for gradient, tensor in zip(ours, theirs, strict=True):
        assert_close(gradient, tensor.grad.numpy(), 1e-13)


def test_bad_arguments_are_refused() -> None:
    x = np.zeros((2, 3, 4))
    for arguments, options, message in (
        ((np.zeros(4), x, x), {}, r"two axes or more, got the shapes \(4,\)"),
        ((x, np.zeros((2, 3, 5)), x), {}, "scaled_dot_product_attention: query and key must have the same width"),
        ((x, x, np.zeros((2, 4, 4))), {}, "scaled_dot_product_attention: .* the same number of keys"),
        ((x, x, np.zeros((3, 3, 4))), {}, "scaled_dot_product_attention: shape mismatch"),
        ((x, x, x), {"attn_mask": np.ones((1, 4), bool)}, r"must broadcast to the shape of the scores, \(2, 3, 3\)"),
        ((x, x, x), {"dropout_p": 1.0}, "dropout_p must be at least 0 and below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            mg.scaled_dot_product_attention(*arguments, **options)


def test_bad_heads_are_refused() -> None:
    x = np.zeros((2, 3, 16))
    for options, error, message in (
        ({"num_heads": 3}, ValueError, r"n a multiple of 9, .* got shape \(2, 3, 16\)"),
        ({"num_heads": 4, "num_kv_heads": 3}, ValueError, "self_attention: num_heads must be a multiple of"),
        ({"num_heads": 0}, ValueError, "self_attention: num_heads must be a multiple of num_kv_heads, got 0 and 0"),
        ({"num_heads": 2.0}, TypeError, "self_attention: num_heads must be an integer, got 2.0"),
        ({"num_heads": 4, "num_kv_heads": 2, "attn_mask": np.ones((2, 3, 3), bool)}, ValueError, r"to \(2, 4, 3, 3\),"),
        ({"num_heads": 4, "num_kv_heads": 2, "attn_mask": np.ones((1, 2, 1, 3, 3))}, ValueError, r"to \(2, 4, 3, 3\),"),
        (
            {"num_heads": 2, "num_kv_heads": 1, "attn_mask": np.ones((3, 1, 3, 3))},
            ValueError,
            r"got shape \(3, 1, 3, 3",
        ),
        ({"num_heads": 4, "num_kv_heads": 2, "attn_mask": np.ones((3, 3), int)}, TypeError, "boolean or floating"),
        (
            {"num_heads": 4, "num_kv_heads": 2, "dropout_p": "x"},
            TypeError,
            "self_attention: dropout_p must be a number, got 'x'",
        ),
        ({"num_heads": 4, "num_kv_heads": 2, "dropout_p": -1}, ValueError, "self_attention: dropout_p must be"),
    ):
        with pytest.raises(error, match=message):
            mg.self_attention(x, **options)  # type: ignore[arg-type]
    for keys, values in ((3, 3), (2, 4), (0, 0)):
        with pytest.raises(ValueError, match=f"4 heads of queries can't share {keys} of keys and {values} of values"):
            mg.scaled_dot_product_attention(
                np.zeros((4, 3, 2)), np.zeros((keys, 3, 2)), np.zeros((values, 3, 2)), enable_gqa=True
            )
    with pytest.raises(ValueError, match="attn_mask must have 4 heads, or 1, got shape"):
        mg.scaled_dot_product_attention(
            np.zeros((4, 3, 2)), np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), np.ones((2, 3, 3), bool), enable_gqa=True
        )
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="a multiple of 9"):
        mg.self_attention(x, num_heads=3, dropout_p=0.5, rng=generator)
    assert generator.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_arrays_that_are_one_take_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[str] = []
    for name in ("self_attention", "linear"):
        function = getattr(mg, name)
        monkeypatch.setattr(mg, name, lambda *args, name=name, f=function, **o: counts.append(name) or f(*args, **o))
    layer = nn.MultiHeadAttention(4, 2, rng=0)
    q = np.ones((2, 3, 4), np.float32)
    for args in ((q,), (q, q), (q, q, q), (q, None, q)):
        counts.clear()
        layer(*args)
        assert counts == ["linear", "self_attention", "linear"], len(args)
