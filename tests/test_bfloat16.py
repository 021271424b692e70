"""bfloat16 with and without its package: tensors, gathered rows, checkpoints."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from microgradnd.dtypes import as_dtype
from tests.conftest import Device
from tests.low_precision import wide


def test_bfloat16_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for call in (lambda: mg.autocast("bfloat16"), lambda: mg.tensor([1.0], "bfloat16")):
        with pytest.raises(ImportError, match=r"microgradnd\[bfloat16\]"):
            call()


def test_the_import_leaves_the_package_alone() -> None:
    code = "import sys, microgradnd, nn; microgradnd.autocast('float16'); print('ml_dtypes' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


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
    # Beside Python's floats it stays what it is since version 0.7 of ml_dtypes, and was float32 before.
    assert mg.where(x > 1, x, -1e9).dtype == (x * 2.0).dtype == (x.data * 2.0).dtype
    assert wide(mg.where(x > 1, x, -1e9)).tolist() == pytest.approx([-1e9, 2, 3], rel=0.01)
    assert mg.where(x > 1, 1, x).dtype == (x * 1).dtype == dtype
    for other in ("float16", "float32", "int8", "int64"):
        y = mg.tensor(device.array(np.array([4, 5, 6])), other)
        found = mg.where(x > 1, x, y)
        assert found.dtype == (x * y).dtype
        assert wide(found).tolist() == [4, 2, 3]
    assert mg.tensor(x.data.astype("float32")).astype("bfloat16").dtype == dtype


def test_attention_of_bfloat16_beside_float16() -> None:
    """An error where there is no common dtype, as before version 0.7 of ml_dtypes, else in float32."""
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it comes with the extra bfloat16")
    x = np.arange(4.0).reshape(2, 2)
    q, k, v = (mg.tensor(x, dtype) for dtype in ("bfloat16", "float16", "float16"))
    if tuple(map(int, version("ml_dtypes").split(".")[:2])) < (0, 7):
        with pytest.raises(TypeError, match="bfloat16"):
            mg.scaled_dot_product_attention(q, k, v)
    else:
        found = mg.scaled_dot_product_attention(q, k, v)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.numpy(), mg.scaled_dot_product_attention(x, x, x).numpy(), rtol=1e-3)


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
