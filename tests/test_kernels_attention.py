"""Compiled attention against NumPy in float64: shapes around its tiles, groups of heads, any layout, masks."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.numba_against_numpy import both, close, normal

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_fused  # isort: skip

pytestmark = pytest.mark.usefixtures("numba_kernels")


@pytest.mark.parametrize("mask", ["none", "causal", "padding", "added", "causal and padding"])
@pytest.mark.parametrize("chunk", [1 << 18, 3000])
def test_attention(mask: str, chunk: int, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from microgradnd.kernels import attention, chunked_attention

    monkeypatch.setattr(chunked_attention, "CHUNK", chunk)
    monkeypatch.setattr(attention, "FEWEST_QUERIES", 1 << 40)  # in chunks without a mask too
    q, k, v = (normal(2, 3, 45, 8, seed=i) for i in range(3))
    attn_mask = None
    if "padding" in mask:
        attn_mask = np.random.default_rng(0).random((2, 1, 45, 45)) < 0.7
        attn_mask[1, 0, 5] = False  # a query that sees nothing
    elif mask == "added":
        attn_mask = normal(3, 45, 45)
    options = {"is_causal": "causal" in mask}
    close(*both(lambda *x: mg.scaled_dot_product_attention(*x, attn_mask, **options), q, k, v), 2e-5)


def test_attention_with_dropout_drops_the_same_with_either_kernels() -> None:
    x = normal(2, 60, 60, seed=4)
    close(*both(lambda q: mg.scaled_dot_product_attention(q, q, q, dropout_p=0.3, rng=5), x), 5e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ((2, 3, 45, 8), (2, 3, 45, 8)),
        ((130, 7), (130, 7)),
        ((2, 66, 6), (2, 71, 6)),
        ((2, 2, 3, 50, 4), (2, 2, 1, 37, 4)),
        ((2, 70, 40), (2, 71, 40)),  # wider than a tile
        ((3, 64, 32), (3, 64, 32)),  # whole vectors
        ((2, 128, 48), (2, 83, 48)),
        ((1, 200, 70), (1, 130, 70)),
    ],
    ids=str,
)
def test_attention_without_scores_in_memory(
    queries: tuple[int, ...], keys: tuple[int, ...], causal: bool, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, fused = [], numba_fused.attention
    monkeypatch.setattr(numba_fused, "attention", lambda *x: called.append(1) or fused(*x))
    value_width = 5 if keys[-1] < 70 else 97
    q, k, v = normal(*queries), normal(*keys, seed=1), normal(*keys[:-1], value_width, seed=2)
    close(*both(lambda *x: mg.scaled_dot_product_attention(*x, is_causal=causal), q, k, v), 1e-5)
    assert called
    half = [mg.tensor(x.astype(np.float16), requires_grad=True) for x in (q, k, v)]
    out = mg.scaled_dot_product_attention(*half, is_causal=causal)
    out.sum().backward()
    assert out.dtype == half[0].grad.dtype == np.float16  # type: ignore[union-attr]
    strided = [mg.tensor(np.repeat(x, 2, axis=-1)[..., ::2]) for x in (q, k, v)]
    contiguous = [mg.tensor(x) for x in (q, k, v)]
    a, b = (mg.scaled_dot_product_attention(*x, is_causal=causal).data for x in (strided, contiguous))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_arrays_that_may_not_be_written(causal: bool) -> None:
    x = np.broadcast_to(normal(4, 1, 64), (4, 64, 64))
    found, expected = both(lambda t: mg.scaled_dot_product_attention(t, t, t, is_causal=causal), x)
    close(found, expected, 1e-4)  # equal keys: most of their gradients cancels
    with mg.kernels("numba"):
        t = mg.tensor(x)  # as it is: read-only, and its rows are one
        np.testing.assert_array_equal(mg.scaled_dot_product_attention(t, t, t, is_causal=causal).data, found[0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("arrange", [lambda x: x.swapaxes(0, 1), np.asfortranarray, lambda x: x[:, ::-1]])
def test_attention_of_other_layouts(arrange: Any, causal: bool, threads: str) -> None:
    arrays = [arrange(normal(4, 4, 30, 8, seed=i)) for i in range(3)]
    mask = np.random.default_rng(0).random((30, 30)) < 0.8
    mask[:, 0] = True
    for attn_mask in (None, mask):
        ours, reference = both(
            lambda *x, m=attn_mask: mg.scaled_dot_product_attention(*x, attn_mask=m, is_causal=causal), *arrays
        )
        close(ours, reference, 5e-6)


@pytest.mark.parametrize(
    ("shape", "heads", "kv_heads"),
    [((2, 70, 96), 4, 4), ((3, 40, 160), 6, 2), ((130, 33 * 3), 1, 1), ((2, 100, 12), 4, 4), ((2, 2, 50, 24), 2, 2)],
)
def test_self_attention(
    shape: tuple[int, ...], heads: int, kv_heads: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any of the layouts; the kernel writes its gradients where they lie in that of the projection."""
    places: list[list[bool]] = []  # of each call, whether gradients are what was handed over for them
    fused = numba_fused.attention

    def watched(*args: Any) -> Any:
        if (found := fused(*args)) is None:
            return None
        out, pullback = found

        def watched_pullback(g: Any, into: Any = None) -> Any:
            found = pullback(g, into)
            places.append([into is not None and a is b for a, b in zip(found, into or found, strict=True)])
            return found

        return out, watched_pullback

    monkeypatch.setattr(numba_fused, "attention", watched)
    x = normal(*shape)
    for causal in (True, False):
        call = functools.partial(mg.self_attention, num_heads=heads, is_causal=causal, num_kv_heads=kv_heads)
        close(*both(call, x), 1e-5)
    assert places == [[True] * 3] * 2 * (len(shape) < 4)  # of so many axes it knows groups of heads alone
    allowed = np.random.default_rng(0).random((heads, shape[-2], shape[-2])) < 0.8
    options = {"attn_mask": allowed, "num_kv_heads": kv_heads, "dropout_p": 0.2, "rng": 3}
    close(*both(lambda x: mg.self_attention(x, num_heads=heads, **options), x), 5e-5)
    for dtype in (np.float16, ">f4", np.float64):  # the kernel's gradients are converted, or it is not asked
        other = mg.tensor(x.astype(dtype), requires_grad=True)
        with mg.kernels("numba"):
            mg.self_attention(other, num_heads=heads, num_kv_heads=kv_heads, is_causal=True).sum().backward()
        assert other.grad is not None
        assert other.grad.dtype == dtype


def test_keys_that_nobody_sees_do_not_matter() -> None:
    arrays = [normal(2, 3, n, 8, seed=i) for i, n in enumerate((601, 604, 604))]
    for x in arrays[1:]:
        x[:, :, 601:] = np.nan
    tensors = [mg.tensor(x, requires_grad=True) for x in arrays]
    out = mg.scaled_dot_product_attention(*tensors, is_causal=True)
    out.sum().backward()
    for x in (out.data, *(t.grad.data for t in tensors)):  # type: ignore[union-attr]
        assert np.isfinite(x).all()


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"dropout_p": 0.5, "rng": 0}], ids=["whole", "chunks"])
def test_scores_that_are_all_beyond_the_range_give_nan(options: Any, is_causal: bool, kernels: str) -> None:
    """As the definition does: that a query saw nothing, and gets zeros, is so with a mask alone."""
    q, k, v = (np.full((40, 16), x, np.float32) for x in (-1e30, 1e30, 1.0))
    q[1] = 0
    with mg.kernels(kernels), np.errstate(invalid="ignore", over="ignore"):
        x = mg.tensor(v, requires_grad=True)
        out = mg.scaled_dot_product_attention(q, k, x, is_causal=is_causal, **options)
        assert np.isnan(out.numpy()).all(axis=1).tolist() == [i != 1 for i in range(40)]
        out.sum().backward()
        assert x.grad is not None
        assert np.isnan(x.grad.numpy()[0]).all()
