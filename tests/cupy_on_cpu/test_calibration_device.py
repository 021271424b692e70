"""The device: what it counts, what it refuses to mix, how its memory behaves, and how it is installed."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.cupy_on_cpu import counters, install, stats

# ---- the differences that code for both must mind


def test_no_implicit_copy_to_the_host(cp):
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(cp.ones(3))


def test_host_and_device_do_not_mix(cp):
    with pytest.raises(TypeError):
        cp.ones(3) + np.ones(3)
    with pytest.raises(TypeError):
        cp.ones((3, 3)) @ np.ones((3, 3))
    with pytest.raises(TypeError):
        cp.concatenate([cp.ones(3), np.ones(3)])


def test_fresh_memory_is_poisoned(cp):
    cp.get_default_memory_pool().free_all_blocks()
    fresh = cp.empty(1_000_000, "uint8").get()
    assert (fresh == 0xA5).all()


def test_counters(cp):
    host = np.ones(1000, "float32")
    device = cp.asarray(host)
    _ = float((device + 1).sum()), device.reshape(10, 100) @ device.reshape(100, 10)  # compiled beforehand
    before = counters()
    device = cp.asarray(host)
    total = (device + 1).sum()
    _ = device.reshape(10, 100) @ device.reshape(100, 10)
    middle = counters()
    float(total)
    after = counters()
    first = {name: middle[name] - before[name] for name in middle}
    assert first["launches"] == 2
    assert first["library_calls"] == 1
    assert first["host_to_device"] == 1
    assert first["device_to_host"] == 0
    assert first["synchronizations"] == 0
    assert after["device_to_host"] - middle["device_to_host"] == 1
    assert after["synchronizations"] - middle["synchronizations"] == 1
    assert stats.kernels >= stats.compiled


def test_live_allocations_fall_when_memory_is_freed(cp):
    cp.get_default_memory_pool().free_all_blocks()
    before = counters()["live_allocations"]
    array = cp.empty(1 << 20)
    assert counters()["live_allocations"] == before + 1
    del array
    cp.get_default_memory_pool().free_all_blocks()
    assert counters()["live_allocations"] == before


def test_out_of_memory(cp):
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.empty(1 << 40)


def test_random_generator(cp):
    generator = cp.random.default_rng(3)
    drawn = generator.standard_normal(size=(100, 100), dtype="float32")
    assert drawn.dtype == "float32"
    assert abs(float(drawn.mean())) < 0.05
    assert abs(float(drawn.std()) - 1) < 0.05
    again = cp.random.default_rng(3).standard_normal(size=(100, 100), dtype="float32")
    assert (again == drawn).all()
    assert cp.random.Generator(cp.random.XORWOW(1)).random(5).shape == (5,)
    integers = generator.integers(0, 10, size=1000)
    assert int(integers.min()) == 0
    assert int(integers.max()) == 9
    with pytest.raises(AttributeError):
        generator.shuffle(drawn)


# ---- installing


def run_python(code):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)


def test_install_twice_gives_the_same_module(cp):
    assert install() is cp


def test_install_after_an_import_of_cupy_is_an_error(cp):
    run = run_python("import cupy_backends\nfrom tests.cupy_on_cpu import install\ninstall()")
    assert run.returncode != 0
    assert "must come before CuPy is imported" in run.stderr


def test_unavailable_does_not_import_cupy():
    code = "import sys; from tests.cupy_on_cpu import unavailable\nunavailable(); sys.exit('cupy' in sys.modules)"
    assert run_python(code).returncode == 0


def test_unavailable_names_another_version():
    code = (
        "import importlib.metadata as m; m.version = lambda name: '13.9.9'\n"
        "from tests.cupy_on_cpu import _requirements as r; r.CUPY_PACKAGES = ('cupy-cuda12x',)\n"
        "r.importlib.util.find_spec = lambda name: name\n"
        "print(r.unavailable())"
    )
    assert "cupy-cuda12x 13.9.9 is installed" in run_python(code).stdout
