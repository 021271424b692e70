"""Transformers against formulas in NumPy and without caches: logits, generated tokens, a training step."""

import contextlib
import functools

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.transformer_formulas import (
    LAYERS,
    TOKENS,
    VOCAB,
    affine,
    attended,
    close,
    gradients,
    normed,
    randomized,
    reference,
    transformer,
)

POSITIONS = ["learned", "sinusoidal", "rotary"]


def fed_forward(layer, x):
    inner = affine(layer.linear1, x)
    active = reference(layer.activation)(inner if layer.gate is None else affine(layer.gate, x))
    return affine(layer.linear2, active if layer.gate is None else active * inner)


VARIANTS = [{"positions": positions, "num_kv_heads": kv} for positions in POSITIONS for kv in (None, 2, 1)]
VARIANTS += [{"gated": True, "activation": nn.SiLU, "norm": nn.RMSNorm, "tie_weights": False}]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(map(str, options.values())))
def test_logits_against_numpy_and_with_caches(options):
    model = transformer(**options)
    x = model.embedding.weight.data[TOKENS]
    x = x if model.positions is None else model.positions(mg.tensor(x)).data
    for block in model.blocks:
        x = x + attended(block.self_attn, normed(block.norm1, x), causal=True)[0]
        x = x + fed_forward(block.feed_forward, normed(block.norm2, x))
    head = model.embedding.weight.data.T if model.head is None else model.head.weight.data
    logits = model(TOKENS).data
    close(logits, normed(model.norm, x) @ head, 1e-12)
    for pieces in ([1, 3, 2], [4, 1, 1], [6]):
        caches, stops = model.caches(), np.cumsum(pieces)
        with mg.no_grad():
            found = [model(TOKENS[:, stop - n : stop], caches).data for n, stop in zip(pieces, stops, strict=True)]
            with pytest.raises(ValueError, match="max_len is 8 tokens, got 9"):
                model(TOKENS[:, :3], caches)
        np.testing.assert_allclose(np.concatenate(found, axis=1), logits, rtol=1e-10, atol=1e-12)
        assert [cache.length for cache in caches] == [6] * LAYERS


def test_tied_embedding_gets_the_gradient_of_both_uses():
    tied, untied = transformer(), transformer(tie_weights=False)
    assert [*tied.state_dict(), "head.weight"] == list(untied.state_dict())
    untied.load_state_dict(tied.state_dict() | {"head.weight": tied.embedding.weight.data.T})
    close(untied(TOKENS).data, tied(TOKENS).data, 1e-14)
    embedding, head = gradients(untied(TOKENS), untied.embedding.weight, untied.head.weight)
    close(gradients(tied(TOKENS), tied.embedding.weight)[0], embedding + head.T, 1e-13)


def test_same_seed_same_bits_and_initial_deviations():
    a, b, other = (nn.Transformer(40, 48, 4, 8, 32, gated=True, dropout=0.1, rng=seed) for seed in (5, 5, 6))
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert p.dtype == np.float32
        assert p.data.tobytes() == q.data.tobytes()
        if p.ndim == 1:
            np.testing.assert_array_equal(p.data, "norm" in name and name.endswith("weight"))
        else:
            residual = name.endswith(("out_proj.weight", "linear2.weight"))
            assert p.data.std() == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.08), name  # 4 = sqrt(2 * 8)
            assert abs(p.data.mean()) < 0.1 * p.data.std(), name
    assert (a.embedding.weight.data != other.embedding.weight.data).all()
    first = a(range(32)).data
    assert first.tobytes() == b(range(32)).data.tobytes() != a(range(32)).data.tobytes()  # dropout draws on


def test_state_dict_there_and_back():
    a, b = transformer(), randomized(transformer(), seed=8)
    assert len(a.state_dict()) == 2 + LAYERS * 12 + 2
    assert (a(TOKENS).data != b(TOKENS).data).all()
    b.load_state_dict(a.state_dict())
    np.testing.assert_array_equal(a(TOKENS).data, b(TOKENS).data)
    with pytest.raises(ValueError, match=r"missing head\.weight; unexpected positions\.weight"):
        transformer("rotary", tie_weights=False).load_state_dict(a.state_dict())


def continued(model, tokens, n):
    """Greedy continuation without a cache: the window starts anew with its last half when it is full."""
    tokens = np.asarray(tokens)
    window = tokens[..., -model.max_len :]
    for _ in range(n):
        if window.shape[-1] > model.max_len:
            window = tokens[..., -max(1, model.max_len // 2) :]
        new = model(window).data[..., -1, :].argmax(axis=-1)[..., None]
        tokens, window = (np.concatenate([part, new], axis=-1) for part in (tokens, window))
    return tokens


@pytest.mark.parametrize(("positions", "max_len"), [("learned", 8), ("sinusoidal", 7), ("rotary", 8), ("rotary", 1)])
def test_greedy_generation_equals_the_model_without_caches(positions, max_len):
    model, seen = transformer(positions, max_len, num_kv_heads=2, dropout=0.5), set()
    for prompt in ([4], TOKENS[0, :3], np.tile(TOKENS, 2), [[[1, 2]], [[3, 4]]]):
        expected = continued(transformer(positions, max_len, num_kv_heads=2), prompt, 30)
        for options in ({"temperature": 0}, {"top_k": 1, "rng": 3}, {"temperature": 1e-320, "rng": 3}):
            found = model.generate(prompt, 30, **options)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(model.generate(mg.tensor(prompt), 0, **options), prompt)
        seen |= {*found[..., -24:].flat}
    assert len(seen) > (3 if max_len > 1 else 0)  # not one token over and over


def test_each_further_token_costs_the_same_number_of_rows(monkeypatch):
    model, rows = transformer(max_len=64), []
    for name in ("linear", "linear_gelu"):
        op = getattr(mg, name)
        monkeypatch.setattr(mg, name, lambda x, *rest, op=op: rows.append(x.size // x.shape[-1]) or op(x, *rest))
    for n in (1, 2, 33):
        rows.clear()
        model.generate([1, 2, 3, 4], n, temperature=0)
        calls = len(rows) // n
        assert calls == LAYERS * 4 + 1  # queries, keys and values; their output; two of the feed-forward; the head
        assert rows == [4] * calls + [1] * calls * (n - 1)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.5, VOCAB + 1), (0.7, 4)])
def test_sampled_tokens_have_the_probabilities_of_the_model(temperature, top_k):
    model, n = transformer(), 5000
    for parameter in model.norm.parameters():
        parameter.data = parameter.data / 3
    logits = model([1, 2, 3]).data[-1] / temperature
    p = np.exp(logits) * (logits >= np.sort(logits)[-min(VOCAB, top_k or VOCAB)])
    p /= p.sum()
    assert np.sort(p)[-4] > 0.02
    prompts, options = np.tile([1, 2, 3], (n, 1)), {"temperature": temperature, "top_k": top_k}
    first, again, other = (model.generate(prompts, 1, rng=seed, **options) for seed in (0, 0, 1))
    frequency = np.bincount(first[:, 3], minlength=VOCAB) / n
    assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()
    np.testing.assert_array_equal(again, first)
    assert (other != first).any()


def test_of_equal_logits_top_k_takes_k() -> None:
    model = nn.Transformer(9, 4, 1, 1, 64, rng=0)
    for parameter in model.parameters():
        parameter.data = np.zeros(parameter.shape)
    tokens = model.generate([0], 60, top_k=3, rng=0)[1:]
    assert len(set(tokens.tolist())) == 3
    assert len(set(model.generate([0], 60, top_k=1, rng=0)[1:].tolist())) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_generated_tokens_are_integers_for_prompts_of_every_integer_dtype(dtype):
    found = transformer().generate(np.array([1, 2], dtype), 12, temperature=0)
    assert found.dtype.kind in "iu"
    np.testing.assert_array_equal(found, continued(transformer(), [1, 2], 12))


def test_generate_evaluates_and_restores_the_mode():
    model, seen = transformer(dropout=0.5), []
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    model.norm.forward = lambda x: seen.append({module.training for module in model.modules()}) or x
    for prompt, outcome in (([1, 2], contextlib.nullcontext()), ([1, VOCAB], pytest.raises(IndexError, match="to 10"))):
        with outcome:
            model.generate(prompt, 1)
        assert [module.training for module in model.modules()] == modes
    assert seen == [{False}]
    assert set(modes) == {True, False}


def training_step(model, array, where="cpu"):
    """Gradients and generated tokens, once it is clear that a small step does what the gradients say."""
    model.to(where)
    losses, rng, rate = [], model.dropout.rng.bit_generator, 1e-7
    state = rng.state
    for _ in range(2):
        rng.state = state  # the same elements are dropped
        losses.append(nn.cross_entropy(model(array(TOKENS[:, :-1])), array(TOKENS[:, 1:])))
        if len(losses) == 1:
            losses[0].backward()
            nn.SGD(model.parameters(), lr=rate).step()
    found = [p.grad.numpy() for p in model.parameters()]
    assert float(losses[0] - losses[1]) / rate == pytest.approx(sum((g * g).sum() for g in found), rel=1e-4)
    return found, model.generate(mg.tensor(array(TOKENS[:, :2])), 8, temperature=0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_training_step_on_each_device(positions, device):
    make = functools.partial(transformer, positions, num_kv_heads=2)
    training_step(transformer(positions, num_kv_heads=2, dropout=0.1), device.array, device.name)
    ours, tokens = training_step(make(), device.array, device.name)
    expected, their_tokens = training_step(make(), np.asarray)
    for name, gradient, other in zip(make().state_dict(), ours, expected, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=0, atol=1e-12 * max(1, np.abs(other).max()), err_msg=name)
    np.testing.assert_array_equal(tokens, their_tokens)


def test_caches_stay_as_they_are_where_an_error_comes_in_between():
    model = nn.Transformer(11, 8, 4, 2, 7, rng=1).eval()
    caches = model.caches()

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with mg.no_grad():
        model([[1, 2, 3]], caches)
        model.blocks[1].forward = interrupted
        with pytest.raises(KeyboardInterrupt):
            model([[4]], caches)
        del model.blocks[1].forward
        assert [cache.length for cache in caches] == [3] * len(caches)
        logits = model([[4]], caches).numpy()[0, -1]
        np.testing.assert_allclose(logits, model([[1, 2, 3, 4]]).numpy()[0, -1], rtol=0, atol=1e-6)
    caches[0].length = 2
    with pytest.raises(
        ValueError, match=r"Transformer: expected caches that hold the same number of tokens, got \[2, 4"
    ):
        model([[5]], caches)
