"""Devices by name: where tensors are made, how they move, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn


def test_names() -> None:
    assert mg.device("cuda:1").index == 1
    assert (mg.device("cuda").type, mg.device("cuda").index) == ("cuda", None)
    assert mg.device("cpu") == "cpu" == mg.device(mg.device("cpu"))
    assert mg.device("cuda:0") != mg.device("cuda:1") != "cpu"
    assert len({mg.device("cpu"), mg.device("cpu"), "cpu"}) == 1
    assert repr(mg.device("cuda:2")) == "device('cuda:2')"
    assert mg.device("cpu") != 3
    for name in ("gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "", None, 0):
        with pytest.raises(ValueError, match=r"device: expected 'cpu', 'cuda' or 'cuda:0'"):
            mg.device(name)  # type: ignore[arg-type]


def test_a_tensor_is_made_where_it_is_asked_for(device: Any) -> None:
    place = "cpu" if device.name == "cpu" else "cuda:0"
    for data in (1.0, [1, 2], np.ones((2, 3)), mg.tensor([1.0]), device.array(np.zeros(0)), np.float32(2)):
        tensor = mg.tensor(data, device=device.name)
        assert tensor.device == place
        assert type(tensor.data) is device.xp.ndarray
    half = mg.tensor([1.0], "float16", requires_grad=True, device=device.name)
    assert (half.dtype, half.requires_grad, half.device) == (np.float16, True, place)
    array = device.array(np.ones(3))
    assert mg.tensor(array, device=device.name).data is array
    assert mg.tensor(array).data is array
    assert mg.tensor(array, device="cpu").device == "cpu"


def test_the_block_says_where_new_tensors_are_made(device: Any) -> None:
    place = "cpu" if device.name == "cpu" else "cuda:0"
    found = []
    with mg.device(device.name) as entered:
        assert entered == device.name
        layer = nn.Linear(3, 2, rng=0)
        with mg.device("cpu"):
            assert mg.tensor([1.0]).device == "cpu"
        with pytest.raises(ZeroDivisionError), entered:
            1 / 0  # noqa: B018
        assert mg.tensor([1.0]).device == place
        thread = threading.Thread(target=lambda: found.append(mg.tensor(1.0).device))
        thread.start()
        thread.join()
        assert mg.tensor(mg.tensor([1.0], device="cpu")).device == place
    assert {p.device for p in layer.parameters()} == {mg.device(place)}
    np.testing.assert_array_equal(layer.weight.numpy(), nn.Linear(3, 2, rng=0).weight.data)  # drawn on the host
    assert found == ["cpu"]
    assert mg.tensor([1.0]).device == "cpu"


def test_threads_may_share_a_device_object(device: Any) -> None:
    shared, inside, left = mg.device("cpu"), threading.Event(), threading.Event()
    found = {}

    def first() -> None:
        with mg.device(device.name):
            with shared:
                inside.set()
                left.wait(10)
            found["first"] = mg.tensor(1.0).device.type

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with shared:
        left.set()
        thread.join()
    found["second"] = mg.tensor(1.0).device.type
    assert found == {"first": device.name, "second": "cpu"}


def test_moving_is_part_of_the_graph(device: Any) -> None:
    x = mg.tensor([1.0, -2.0, 3.0], requires_grad=True)
    there = x.to(device.name)
    assert (there is x) == (device.name == "cpu")
    assert type(there.data) is device.xp.ndarray
    (there * there * there).to("cpu").sum().backward(create_graph=True)
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.data, [3, 12, 27])
    gradient = x.grad
    x.zero_grad()
    (gradient * gradient).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * 3 * 6 * np.array([1.0, -8.0, 27.0]))  # of (3 x^2)^2
    mg.check_grads(lambda x: mg.exp(x.to("cpu")).to(device.name) * 2, device.array(np.array([0.3, -0.2])), order=2)
    assert x.to("cpu") is x
    assert not mg.tensor([1]).to(device.name).requires_grad


def test_a_model_moves_with_its_gradients_and_its_optimiser_follows(device: Any) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)
    losses = []
    for moves in (False, True):
        model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.LayerNorm(4), nn.Linear(4, 3, rng=1))
        model.note = mg.tensor([1, 2])
        optimizer = nn.Adam(model.parameters(), lr=0.01)
        parameters, where = model.parameters(), "cpu"
        for step in range(6):
            if moves and step in (2, 4):
                nn.mse_loss(model(mg.tensor(x, device=where)), mg.tensor(y, device=where)).backward()
                where = device.name if step == 2 else "cpu"
                assert model.to(where) is model
                place = "cuda:0" if where == "cuda" else "cpu"
                assert {t.device for t in (*parameters, model.note)} == {mg.device(place)}
                assert {p.grad.device for p in parameters} == {mg.device(place)}  # type: ignore[union-attr]
            optimizer.zero_grad()
            loss = nn.mse_loss(model(mg.tensor(x, device=where)), mg.tensor(y, device=where))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert losses[6:] == pytest.approx(losses[:6], rel=1e-5)
    assert losses[5] < losses[0]


def test_values_come_to_the_tensors_device(device: Any) -> None:
    x = mg.tensor([1.0, 2.0], device=device.name, requires_grad=True)
    x.data = np.array([3.0, 4.0])
    assert type(x.data) is device.xp.ndarray
    host = mg.tensor([0.0, 0.0], requires_grad=True)
    host.data = x.data
    host.grad = device.array(np.ones(2))
    assert type(host.data) is type(host.grad.data) is np.ndarray
    layer = nn.Linear(2, 2, rng=0)
    layer.load_state_dict(nn.Linear(2, 2, rng=1).to(device.name).state_dict())
    assert type(layer.weight.data) is np.ndarray
    np.testing.assert_array_equal(layer.weight.data, nn.Linear(2, 2, rng=1).weight.data)


def test_optimiser_state_comes_to_the_parameters_device(device: Any) -> None:
    def trained(place: str) -> tuple[Any, nn.Adam]:
        layer = nn.Linear(3, 2, rng=0).to(place)
        optimizer = nn.Adam(layer.parameters())
        layer(mg.tensor(np.ones((4, 3), np.float32), device=place)).sum().backward()
        optimizer.step()
        return layer, optimizer

    for source, target in ((device.name, "cpu"), ("cpu", device.name)):
        layer, optimizer = trained(target)
        optimizer.load_state_dict(trained(source)[1].state_dict())
        optimizer.step()
        assert type(optimizer.state_dict()["state"][0]["exp_avg"]) is type(layer.weight.data)


def test_float16_stays_float16(device: Any) -> None:
    x = mg.tensor(np.linspace(-2, 2, 9, dtype=np.float16), device=device.name)
    for f in (mg.erf, mg.exp, mg.tanh, mg.gelu, mg.silu, mg.sigmoid, mg.softmax, mg.layer_norm, mg.sqrt, mg.var):
        with np.errstate(invalid="ignore"):
            assert f(x).dtype == np.float16, f.__name__


def test_dlpack_shares_memory(device: Any) -> None:
    array = device.array(np.arange(6.0).reshape(2, 3))
    ours = mg.from_dlpack(array)
    assert ours.device == ("cpu" if device.name == "cpu" else "cuda:0")
    array[0, 0] = 7
    assert ours.data[0, 0] == 7
    assert device.xp.from_dlpack(mg.tensor(array))[0, 0] == 7
    assert ours.__dlpack_device__() == array.__dlpack_device__()
    with pytest.raises(BufferError, match="detach"):
        device.xp.from_dlpack(mg.tensor([1.0], requires_grad=True, device=device.name))
    with pytest.raises(TypeError, match="from_dlpack: expected an array with __dlpack__, got a list"):
        mg.from_dlpack([1.0])


def test_dlpack_with_pytorch() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.arange(4.0)
    ours = mg.from_dlpack(theirs)
    theirs[1] = 5
    assert ours.data.tolist() == [0, 5, 2, 3]
    again = torch.from_dlpack(mg.tensor(ours.data))
    again[0] = 9
    assert theirs[0] == 9


def test_several_devices_are_refused_by_name(cupy: Any) -> None:
    here, there = mg.tensor(np.ones((2, 2))), mg.tensor(np.ones((2, 2)), device="cuda")
    calls = {
        "add": lambda: here + there,
        "multiply": lambda: there * here.data,
        "matmul": lambda: here @ there,
        "concatenate": lambda: mg.concatenate([there, here]),
        "einsum": lambda: mg.einsum("ij,jk", there, here),
        "where": lambda: mg.where(here.data > 0, there, 0.0),
        "linear": lambda: nn.Linear(2, 2, dtype=np.float64)(there),
        "layer_norm": lambda: nn.LayerNorm(2, dtype=np.float64)(there),
        "cross_entropy": lambda: nn.cross_entropy(there, np.array([0, 1])),
        "less": lambda: there < here,
        "scaled_dot_product_attention": lambda: mg.scaled_dot_product_attention(there, there, here),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=rf"^{name}: arrays on different devices, .* on c.* on c"):
            call()
    with pytest.raises(TypeError, match=r"on cuda:0 becomes no NumPy array by itself: copy it with t\.numpy\(\)"):
        np.asarray(there)
    assert (there + 1).device == (1.0 * there).device == "cuda:0"
    assert (there * np.float64(2)).device == "cuda:0"


def test_a_gpu_that_is_not_there(cupy: Any) -> None:
    count = cupy.cuda.runtime.getDeviceCount()
    assert mg.cuda_is_available()
    for call in (lambda: mg.tensor([1.0]).to(f"cuda:{count}"), lambda: mg.device(f"cuda:{count}").__enter__()):
        with pytest.raises(RuntimeError, match=rf"device 'cuda:{count}': CuPy finds {count} GPUs?"):
            call()
    assert mg.tensor([1.0]).device == "cpu"


@pytest.mark.parametrize("there", [False, True])
def test_without_cupy_or_without_a_gpu(there: bool) -> None:
    if there:
        pytest.importorskip("cupy", reason="CuPy is not installed: it comes with the extra cuda12")
    script = (
        "import sys\n"
        "import microgradnd as mg, nn\n"
        "assert 'cupy' not in sys.modules\n"
        f"{'' if there else 'sys.modules.update(cupy=None)'}\n"
        "print(mg.cuda_is_available())\n"
        "there = mg.device('cuda')\n"
        "calls = lambda: mg.tensor(1.0, device=there), there.__enter__, lambda: nn.MLP([2, 2]).to(there)\n"
        "for call in calls:\n"
        "    try:\n"
        "        call()\n"
        "    except (ImportError, RuntimeError) as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(mg.__file__).parent.parent)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=hidden)
    available, *errors = result.stdout.splitlines()
    assert available == "False"
    if there:
        expected = r"RuntimeError device 'cuda': CuPy .* finds no GPU: .*; see cupy\.show_config\(\)"
    else:
        expected = (
            r"ImportError a GPU is used through CuPy, which is not installed: pip install 'microgradnd\[cuda12\]'"
        )
    assert len(errors) == 3
    for error in errors:
        assert re.match(expected, error), error
