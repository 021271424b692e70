"""Mixed precision: which operations compute in which dtype, that values and gradients are right; the setting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.autocast import autocast_mode, in_float32, in_low_precision
from microgradnd.ops import attention
from tests.conftest import Device
from tests.low_precision import operands, wide
from tests.training_steps import bits

PRODUCTS = ("matmul", "linear", "linear_relu", "linear_gelu", "einsum")
IN_FLOAT32 = (
    "exp", "log", "log1p", "power", "sum", "mean", "std", "var", "softmax", "log_softmax", "logsumexp", "cross_entropy",
    "layer_norm", "rms_norm",
)  # fmt: skip
CALLS: dict[str, Callable[..., Any]] = {
    "matmul": lambda x, y: mg.matmul(x, y),
    "matmul of a batch": lambda x, y: mg.reshape(x, (3, 1, 4)) @ y,
    "operator": lambda x, y: x @ y,
    "linear": lambda x, y: mg.linear(x, y, y[0]),
    "linear_relu": lambda x, y: mg.linear_relu(x, y),
    "linear_gelu": lambda x, y: mg.linear_gelu(x, y, y[0]),
    "einsum": lambda x, y: mg.einsum("ij,jk->ki", x, y),
    "scaled_dot_product_attention": lambda x, y: mg.scaled_dot_product_attention(x, y, y),
    "self_attention": lambda x, y: mg.self_attention(x[:, :3], num_heads=1),
    "exp": lambda x, y: mg.exp(x),
    "log": lambda x, y: mg.log(x),
    "power": lambda x, y: x**2,
    "sum": lambda x, y: x.sum(axis=0),
    "mean": lambda x, y: x.mean(),
    "log1p": lambda x, y: mg.log1p(x),
    "std": lambda x, y: x.std(axis=1),
    "var": lambda x, y: x.var(axis=1),
    "softmax": lambda x, y: mg.softmax(x),
    "log_softmax": lambda x, y: mg.log_softmax(x),
    "logsumexp": lambda x, y: mg.logsumexp(x, axis=1),
    "cross_entropy": lambda x, y: nn.cross_entropy(x, y.data[:3].argmax(axis=1)),
    "layer_norm": lambda x, y: mg.layer_norm(x),
    "rms_norm": lambda x, y: mg.rms_norm(x),
    "mse_loss": lambda x, y: nn.mse_loss(x, x[::-1]),
}
OTHERS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + x,
    "multiply": lambda x, y: x * x,
    "relu": lambda x, y: mg.relu(x),
    "gelu": lambda x, y: mg.gelu(x),
    "silu": lambda x, y: mg.silu(x),
    "tanh": lambda x, y: mg.tanh(x),
    "sigmoid": lambda x, y: mg.sigmoid(x),
    "max": lambda x, y: x.max(axis=0),
    "getitem": lambda x, y: x[1:],
    "concatenate": lambda x, y: mg.concatenate([x, x]),
}


@pytest.mark.parametrize("name", CALLS | OTHERS)
def test_dtypes_of_results_and_gradients(device: Device, low: Any, name: str) -> None:
    call = (CALLS | OTHERS)[name]
    products = name in (*PRODUCTS, "operator", "matmul of a batch", "scaled_dot_product_attention", "self_attention")
    for dtype in (np.dtype(np.float32), low, np.dtype(np.float64)):
        x, y = operands(device, dtype)
        with mg.autocast(low):
            out = call(x, y)
        if name in OTHERS or dtype == np.float64:
            assert out.dtype == dtype
        else:
            assert out.dtype == (low if products else np.float32)
        out.backward(np.ones(out.shape, np.float32) if device.name == "numpy" else device.xp.ones(out.shape, "float32"))
        assert x.grad is not None
        assert x.grad.dtype == dtype
        exact = call(*(mg.tensor(wide(z)) for z in (x, y)))
        rounding = 2.0 ** (-7 if low.char == "E" else -10)
        np.testing.assert_allclose(wide(out), exact.data, rtol=4 * rounding, atol=4 * rounding)


def test_every_declared_operation_is_in_a_list_and_others_pay_nothing() -> None:
    declared = {}
    for name in mg.__all__:
        operation = getattr(getattr(mg, name), "operation", None)
        if operation is not None:
            declared[name] = operation.conversion
            assert ("autocast" in operation.source()) == (operation.conversion is not None)
    assert {name for name, how in declared.items() if how is in_low_precision} == set(PRODUCTS)
    assert {name for name, how in declared.items() if how is in_float32} == set(IN_FLOAT32)
    hidden: Any
    for hidden in (attention._scaled_dot_product_attention, attention._self_attention):
        assert hidden.operation.conversion is in_low_precision


def test_products_add_up_in_float32_and_round_once(device: Device, low: Any) -> None:
    rng = np.random.default_rng(1)
    x, y = (device.array(rng.standard_normal(shape).astype(low)) for shape in ((5, 300), (300, 7)))
    ones = device.array(np.ones((2, 5000), low))
    half_unit = 2.0 ** (-8 if low.char == "E" else -11)
    for out, exact in (
        (mg.matmul(x, y), wide(x) @ wide(y)),
        (mg.linear(x, y), wide(x) @ wide(y)),
        (mg.einsum("ij,jk->ik", x, y), wide(x) @ wide(y)),
        (mg.matmul(ones, ones.T), np.full((2, 2), 5000.0)),
        (mg.sum(ones, axis=1), np.full(2, 5000.0)),
        (mg.sum(ones.T, axis=0), np.full(2, 5000.0)),
        (mg.mean(ones), np.ones(())),
    ):
        assert out.dtype == low
        np.testing.assert_allclose(wide(out), exact, rtol=1.01 * half_unit, atol=1e-5)
    assert mg.var(x).dtype == low
    np.testing.assert_allclose(wide(mg.var(x)), wide(x).var(), rtol=4 * half_unit)


def test_gradients_of_a_broadcast_add_up_in_float32(device: Device, low: Any) -> None:
    bias = mg.tensor(device.array(np.zeros(2, low)), requires_grad=True)
    (mg.tensor(device.array(np.ones((4096, 2), low))) + bias).sum().backward()
    np.testing.assert_array_equal(wide(bias.grad), [4096.0, 4096.0])


def test_gradients_of_parameters_are_those_of_the_rounded_factors(device: Device, low: Any) -> None:
    rng = np.random.default_rng(2)
    x, g = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (6, 3)))
    weight = mg.tensor(device.array(rng.standard_normal((4, 3)).astype(np.float32)), requires_grad=True)
    with mg.autocast(low):
        out = mg.linear(device.array(x), weight)
    out.backward(device.array(g))
    assert weight.grad is not None
    assert weight.grad.dtype == np.float32
    exact = wide(x.astype(low)).T @ wide(g.astype(low))
    np.testing.assert_array_equal(wide(weight.grad), wide(exact.astype(np.float32).astype(low)))


def test_gradients_of_gradients(device: Device, low: Any) -> None:
    x, y = operands(device, np.float32)
    for call in (CALLS["linear_gelu"], CALLS["matmul"], CALLS["layer_norm"]):
        found = []
        for dtype in (low, None):
            x.grad = None
            with mg.autocast(dtype):
                out = (call(x, y) ** 2).mean()
            out.backward(create_graph=True)
            assert x.grad is not None
            (x.grad * x.grad).sum().backward()
            assert x.grad.dtype == np.float32
            found.append(wide(x.grad))
            x.grad = None
        np.testing.assert_allclose(*found, rtol=0.05, atol=0.02)


def test_masks_and_targets_keep_their_dtype(low: Any) -> None:
    x, mask = np.ones((1, 3, 4), np.float32), np.array([0.0, -1e9, -1e9], np.float32)
    with mg.autocast(low):
        out = mg.scaled_dot_product_attention(x, x, np.arange(12.0, dtype=np.float32).reshape(1, 3, 4), mask[None])
    np.testing.assert_array_equal(wide(out)[0], [np.arange(4.0)] * 3)


def test_attention_by_compiled_kernels_gives_gradients_in_low_precision(low: Any) -> None:
    """For as many queries as the kernels take, which compute in float32."""
    layer = nn.MultiHeadAttention(16, 2, rng=0)
    x = mg.tensor(np.random.default_rng(0).standard_normal((2, 130, 16), np.float32))
    gradients = []
    for setting in (None, low):
        layer.zero_grad()
        with mg.autocast(setting):
            loss = (layer(x, is_causal=True) ** 2).mean()
        loss.backward()
        gradients.append([p.grad.numpy() for p in layer.parameters()])  # type: ignore[union-attr]
    for exact, rounded in zip(*gradients, strict=True):
        np.testing.assert_allclose(rounded, exact, rtol=0, atol=0.02 * np.abs(exact).max())


# ---- the setting


def test_definitions_compute_in_float32_as_kernels_do() -> None:
    """A mask with a gradient, and gradients of gradients, go by the definition: its scores are beyond float16."""
    rng = np.random.default_rng(0)
    q, k, v = (
        np.full((20, 64), 60, "f4"),
        rng.uniform(50, 60, (20, 64)).astype("f4"),
        rng.standard_normal((20, 8), "f4"),
    )
    bias = mg.tensor(np.zeros((20, 20), "f4"), requires_grad=True)
    x = mg.tensor(v, requires_grad=True)
    with mg.autocast("float16"):
        plain = mg.scaled_dot_product_attention(q, k, x, scale=1.0)
        assert bits(mg.scaled_dot_product_attention(q, k, x, bias, scale=1.0)) == bits(plain)
        plain.sum().backward(create_graph=True)
    assert x.grad is not None
    assert np.isfinite(x.grad.numpy()).all()


def test_nesting_decorators_and_exceptions() -> None:
    x = np.ones((2, 2), np.float32)

    @mg.autocast("float16")
    def inside() -> Any:
        """Documented."""
        return mg.matmul(x, x).dtype

    with mg.autocast("float16"):
        with mg.autocast(None):
            assert mg.matmul(x, x).dtype == np.float32
            assert inside() == np.float16
        with mg.autocast(np.float16, enabled=False):
            assert mg.matmul(x, x).dtype == np.float32
        assert mg.matmul(x, x).dtype == np.float16
        with pytest.raises(RuntimeError, match="on purpose"), mg.autocast(None):
            raise RuntimeError("on purpose")
        assert mg.matmul(x, x).dtype == np.float16
    assert mg.matmul(x, x).dtype == np.float32
    assert inside.__doc__ == "Documented."
    again = mg.autocast("float16")
    with again, again:
        pass
    assert autocast_mode.current is None


def test_holds_for_its_thread_alone() -> None:
    x, found = np.ones((2, 2), np.float32), []
    with mg.autocast("float16"):
        worker = threading.Thread(target=lambda: found.append(mg.matmul(x, x).dtype))
        worker.start()
        worker.join()
    assert found == [np.float32]


@pytest.mark.parametrize("dtype", ["float32", "int8", "half precision", np.float64])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="autocast: expected float16 or bfloat16"):
        mg.autocast(dtype)


def test_generators_are_refused() -> None:
    with pytest.raises(TypeError, match="autocast: numbers is a generator"):

        @mg.autocast("float16")
        def numbers() -> Any:
            yield 1
