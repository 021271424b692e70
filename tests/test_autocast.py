"""Mixed precision: which operations compute in which dtype, and that values, gradients and training are right."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.autocast import autocast_mode, in_float32, in_low_precision
from microgradnd.dtypes import as_dtype
from microgradnd.ops import attention
from tests.conftest import Device

LOW = ("float16", "bfloat16")
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


@pytest.fixture(params=LOW)
def low(request: pytest.FixtureRequest) -> Any:
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it comes with the extra bfloat16")
    return as_dtype(request.param)


def operands(device: Device, dtype: Any) -> list[mg.Tensor]:
    rng = np.random.default_rng(0)
    return [
        mg.tensor(device.array(rng.uniform(0.5, 2, shape).astype(dtype)), requires_grad=True)
        for shape in ((3, 4), (4, 4))
    ]


def wide(x: Any) -> Any:
    """Values on the host, in float64."""
    x = x.data if isinstance(x, mg.Tensor) else x
    return (x.get() if hasattr(x, "get") else x).astype(np.float64)


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


# ---- the setting


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
    assert autocast_mode.dtype is None


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


def test_bfloat16_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for call in (lambda: mg.autocast("bfloat16"), lambda: mg.tensor([1.0], "bfloat16")):
        with pytest.raises(ImportError, match=r"microgradnd\[bfloat16\]"):
            call()


def test_the_import_leaves_the_package_alone() -> None:
    code = "import sys, microgradnd, nn; microgradnd.autocast('float16'); print('ml_dtypes' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


# ---- checkpoint and capture


def test_checkpoint_computes_again_as_in_forward(low: Any) -> None:
    x, y = operands(Device("numpy"), np.float32)
    dtypes = []

    def block(x: mg.Tensor) -> mg.Tensor:
        out = mg.softmax(mg.linear_gelu(x, y))
        dtypes.append(mg.matmul(x, y).dtype)
        return out @ y

    expected = []
    for inside, outside in ((low, None), (None, low), (low, low)):
        for function in (block, mg.checkpoint(block)):
            x.grad = y.grad = None
            with mg.autocast(inside):
                out = function(x)
            with mg.autocast(outside):
                out.backward(np.ones(out.shape, np.float32))
            assert x.grad is not None
            expected.append((wide(out), wide(x.grad), wide(y.grad)))
        for plain, repeated in zip(*expected[-2:], strict=True):
            np.testing.assert_array_equal(plain, repeated)
        assert dtypes == [np.dtype(inside or np.float32)] * 3
        dtypes.clear()


def test_captured_steps_are_recorded_anew_under_another_setting(low: Any) -> None:
    model = nn.MLP([4, 8, 4], rng=0)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)

    @mg.capture
    def step(x: Any) -> mg.Tensor:
        return model(x)

    for dtype in (None, low, None, low, low, None, low):
        with mg.autocast(dtype):
            out, expected = step(x), model(x)
        assert out.dtype == expected.dtype == np.dtype(dtype or np.float32)
        np.testing.assert_array_equal(wide(out), wide(expected))
    assert len(step.recordings) == 2
    assert sum(recording.calls for recording in step.recordings) == 4


def test_captured_training_is_the_same(low: Any) -> None:
    losses = []
    for wrapper in (lambda f: f, mg.capture):
        model = nn.MLP([8, 16, 4], rng=0)
        optimizer = nn.Adam(model.parameters(), lr=1e-2)

        def step(x: Any, y: Any) -> mg.Tensor:
            with mg.autocast(low):
                loss = nn.cross_entropy(model(x), y)  # noqa: B023
            optimizer.zero_grad()  # noqa: B023
            (loss * 1024.0).backward()
            optimizer.step()  # noqa: B023
            return loss

        wrapped, rng = wrapper(step), np.random.default_rng(0)
        batches = [rng.standard_normal((6, 8)).astype(np.float32) for _ in range(5)]
        losses.append([wrapped(x, x[:, :4].argmax(axis=1)).item() for x in batches])
    assert losses[0] == losses[1]


# ---- training


def on_device(model: nn.Module, device: Device) -> Any:
    for parameter in model.parameters():
        parameter._data = device.array(parameter._data)
    return model


def train(device: Device, model: Any, batches: list[Any], dtype: Any) -> tuple[list[float], nn.GradScaler]:
    on_device(model, device)
    optimizer = nn.AdamW(nn.decay_groups(model, 0.1), lr=3e-3)
    scaler = nn.GradScaler(enabled=dtype == "float16")
    losses = []
    for x, y in batches:
        with mg.autocast(dtype):
            loss = nn.cross_entropy(model(mg.tensor(device.array(x))), device.array(y))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.clip_grad_norm(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == np.float32
    return losses, scaler


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_training_follows_the_run_in_float32(device: Device, low: Any, kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "mlp":
        x = rng.standard_normal((64, 8)).astype(np.float32)
        batches = [(x, x[:, :4].argmax(axis=1))] * 30
    else:
        tokens = [(np.arange(13) + rng.integers(0, 11, (6, 1))) % 11 for _ in range(30)]
        batches = [(t[:, :-1], t[:, 1:]) for t in tokens]

    def model() -> Any:
        if kind == "mlp":
            return nn.MLP([8, 32, 4], rng=0)
        return nn.Transformer(vocab_size=11, d_model=16, num_heads=2, num_layers=2, max_len=12, rng=1)

    expected, _ = train(device, model(), batches, None)
    found, scaler = train(device, model(), batches, low.name)
    assert found != expected
    assert found[-1] < 0.8 * found[0]
    assert scaler.skipped == 0
    np.testing.assert_allclose(found, expected, rtol=0.02)


# ---- bfloat16 as such


def test_tensors_of_bfloat16(device: Device) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it comes with the extra bfloat16")
    dtype = as_dtype("bfloat16")
    x = mg.tensor(device.array(np.array([1.0, 2.0, 3.0])), "bfloat16", requires_grad=True)
    assert x.dtype == dtype
    y = (mg.silu(x) * x + mg.erf(x)).sum()
    y.backward()
    assert x.grad is not None
    assert y.dtype == x.grad.dtype == dtype
    exact = mg.tensor(wide(x), requires_grad=True)
    (mg.silu(exact) * exact + mg.erf(exact)).sum().backward()
    np.testing.assert_allclose(wide(x.grad), wide(exact.grad), rtol=0.03)
    assert x.astype(np.float32).dtype == np.float32
    assert mg.where(x > 1, x, -x).dtype == mg.relu(x).dtype == dtype
    assert mg.where(x > 1, x, -1e9).dtype == (x * 2.0).dtype == np.float32  # beside Python's floats
    assert mg.tensor(x.data.astype("float32")).astype("bfloat16").dtype == dtype
    with pytest.raises(TypeError, match="bfloat16"):
        mg.scaled_dot_product_attention(*[np.ones((2, 2), d) for d in (dtype, np.float16, np.float16)])


def test_gathered_rows_of_bfloat16_get_their_gradients(device: Device) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it comes with the extra bfloat16")
    table = mg.tensor(device.array(np.ones((3, 2))), "bfloat16", requires_grad=True)
    table[device.array(np.array([0] * 300 + [2]))].sum().backward()
    np.testing.assert_array_equal(wide(table.grad), [[300, 300], [0, 0], [1, 1]])


def test_checkpoints_hold_bfloat16(tmp_path: Any) -> None:
    for name in ("ml_dtypes", "safetensors"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    layer, other = (nn.Linear(3, 2, dtype=as_dtype("bfloat16"), rng=rng) for rng in (0, 1))
    nn.save_checkpoint(tmp_path / "a.safetensors", layer=layer)
    nn.load_checkpoint(tmp_path / "a.safetensors", layer=other)
    assert other.weight.dtype == as_dtype("bfloat16")
    np.testing.assert_array_equal(wide(layer.weight), wide(other.weight))


# ---- TF32


def test_tf32_is_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from microgradnd.backends import tf32

    assert not tf32.in_use()
    with mg.allow_tf32(True):
        assert tf32.in_use()
        mg.show_config()
        assert "products of float32 in TF32" in capsys.readouterr().out
        with mg.allow_tf32(False):
            assert not tf32.in_use()
        assert tf32.in_use()
    assert not tf32.in_use()
    mg.show_config()
    assert "products of float32 in float32" in capsys.readouterr().out
    with pytest.raises(TypeError, match="True or False"):
        mg.allow_tf32("yes")  # type: ignore[arg-type]


def test_tf32_chosen_before_cupy_is_imported() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    code = (
        "import sys; from tests.cupy_on_cpu import install, unavailable\n"
        "import microgradnd as mg\n"
        "mg.allow_tf32(True); assert 'cupy' not in sys.modules\n"
        "if unavailable(): raise SystemExit('skip')\n"
        "cp = install(); mg.tensor(cp.ones(3))\n"
        "from microgradnd.backends import tf32; assert tf32.in_use()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if run.stderr == "skip\n":
        pytest.skip("CuPy on host memory is not available")
    assert (run.returncode, run.stderr) == (0, "")


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
