"""A test of the tests: faults put into kernels and into steps on a device are noticed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.against_numpy import both, close, normal

pytestmark = pytest.mark.usefixtures("counted")  # on the stand-in alone: a device would be left in any state


def gradient_of_rows() -> None:
    index = np.random.default_rng(0).integers(0, 5, 90)

    def f(x: mg.Tensor) -> mg.Tensor:
        return x[index]

    close(*both(f, normal(5, 12)))


def adam() -> None:
    found = []
    for place, kernels in (("cuda", "auto"), ("cpu", "numpy")):
        with mg.device(place), mg.kernels(kernels):
            p = mg.tensor(normal(3, 7), requires_grad=True)
            optimizer = nn.AdamW([p], 0.1, weight_decay=0.3)
            for seed in range(3):
                p.grad = mg.tensor(normal(3, 7, seed=seed))
                optimizer.step()
            found.append(p.numpy())
    np.testing.assert_allclose(*found, rtol=1e-5)


def dropout() -> None:
    kept = np.random.Generator(np.random.Philox(key=[np.random.default_rng(3).integers(2**63), 0]))
    out = mg.dropout(mg.tensor(np.ones((5, 9), np.float32), device="cuda"), 0.5, rng=3).numpy()
    np.testing.assert_array_equal(out, 2.0 * (kept.random((5, 9), np.float32) >= 0.5))


def labels() -> None:
    logits, targets = normal(40, 9), np.arange(40) % 9
    ours = mg.cross_entropy(mg.tensor(logits, device="cuda"), mg.tensor(targets, device="cuda")).item()
    assert ours == pytest.approx(mg.cross_entropy(logits, targets).item(), rel=1e-5)


# The module of the kernels, what is replaced in the text, by what, and what compares their results.
FAULTS: dict[str, tuple[str, str, str, Callable[[], None]]] = {
    "a barrier less": (
        "cupy_rows", "        __syncthreads();\n        mine = lane", "        mine = lane",
        lambda: close(*both(mg.softmax, normal(2, 4099))),
    ),
    "a barrier less in column sums": (
        "cupy_columns", "    __syncthreads();\n", "",
        lambda: close(*both(lambda x, b: mg.linear_gelu(x, np.eye(8, dtype=x.dtype) if x.device == "cpu" else
                            mg.tensor(np.eye(8, dtype="float32"), device="cuda"), b), normal(70, 8), normal(8))),
    ),
    "a wrong shift": (
        "cupy_rows", "m == -INFINITE ? A(0) : m", "A(0)", lambda: close(*both(mg.softmax, normal(3, 40) + 200)),
    ),
    "a wrong index": (
        "cupy_scatter", "(2 * chunk + (row != before))", "(2 * chunk)", gradient_of_rows,
    ),
    "a scatter that forgets what went before": (
        "cupy_scatter", "T(A(o.at[k]) + sum[k])", "T(sum[k] * A(0.5))", gradient_of_rows,
    ),
    "a label off by one": ("cupy_losses", "i * V + k == label", "i * V + k == label + 1", lambda: close(*both(
        lambda x: mg.cross_entropy(x, np.arange(9) if x.device == "cpu" else mg.tensor(np.arange(9), device="cuda")),
        normal(9, 40)))),
    "a decay that is not decoupled": ("cupy_optimisers", "x[0] * shrink", "x[0]", adam),
    "a round less": ("cupy_random", "round < 10", "round < 9", dropout),
    "the bound of a loop": ("cupy_elementwise", "i < packs; i += all_items()", "i + 1 < packs; i += all_items()",
                            lambda: close(*both(mg.silu, normal(3, 5)))),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_kernel_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch, cupy: Any) -> None:
    module, old, new, check = FAULTS[name]
    check()
    kernels = importlib.import_module(f"microgradnd.kernels.{module}")
    family = getattr(kernels, module.replace("cupy_", "") + "_family")
    assert old in family.code
    monkeypatch.setattr(family, "code", family.code.replace(old, new, 1))
    monkeypatch.setattr(family, "_kernels", {})
    monkeypatch.setattr(family, "_module", functools.cache(family._compile))
    # Without the pool, whose memory may hold what was right before: fresh memory is poisoned.
    with cupy.cuda.using_allocator(None), pytest.raises(AssertionError):
        check()


def test_a_scatter_that_loses_what_repeats_is_noticed(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> None:
    from microgradnd.backends import cupy_backend

    def assigned(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
        out = cupy.zeros(shape, x.dtype)
        out[index] += x  # where an index repeats, one of the sums is left
        return out

    gradient_of_rows()
    monkeypatch.setattr(cupy_backend.namespace, "scatter_add", assigned)
    with pytest.raises(AssertionError):
        gradient_of_rows()


def test_an_array_of_the_host_in_a_step_is_noticed(counted: Any, cupy: Any) -> None:
    layer = nn.Linear(3, 2, rng=0).to("cuda")
    x = mg.tensor(np.ones((4, 3), np.float32), device="cuda")
    with pytest.raises(TypeError, match="arrays on different devices"):
        layer(x.numpy())
    with pytest.raises(TypeError, match="arrays on different devices"):
        x * np.ones(3, np.float32)
    for sneaky in (
        lambda: x[np.array([0, 2])],  # an index that is copied in every step
        lambda: mg.tensor(np.ones(3, np.float32), device="cuda") * x,
        lambda: x * x.sum().item(),
        lambda: x.numpy(),
        lambda: bool(x.sum() > 0),
    ):
        sneaky()
        with counted() as cost:
            sneaky()
        assert not cost.is_quiet()
    with counted() as cost:
        layer(x) * 2.0 + np.float32(1.0)
    assert cost.is_quiet()
