"""When kernels are compiled and taken, where they are kept on disk, and what happens without Numba or a place."""

from __future__ import annotations

import importlib.util
import inspect
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
from microgradnd import kernels as choice
from tests.numba_against_numpy import SMALL, normal, operations

# After the module above, which skips this one without Numba.
from microgradnd.kernels import numba_compiler, numba_fused, numba_heads, numba_norms, numba_parts, numba_threads  # isort: skip

pytestmark = pytest.mark.usefixtures("numba_kernels")

ROOT = Path(__file__).parents[1]


def test_small_arrays_and_float64_stay_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a compiled kernel was called")

    monkeypatch.setattr(numba_parts.Kernel, "__call__", refuse)
    for x in (normal(SMALL // 16, 16), normal(100, 100).astype(np.float64), normal(100, 100).astype(np.float16)):
        for f in operations.values():
            t = mg.tensor(x, requires_grad=True)
            f(t).sum().backward()
    with pytest.raises(AssertionError, match="was called"):
        mg.gelu(normal(100, 100))


def test_the_choice() -> None:
    assert choice.current == "numba"
    with mg.kernels("numpy"):
        assert choice.current == "numpy"
        with mg.kernels("auto"):
            assert choice.current == "auto"
        assert choice.current == "numpy"
    assert choice.current == "numba"
    with pytest.raises(ValueError, match="expected any of numpy, numba, auto, got 'cuda'"):
        mg.kernels("cuda")
    assert choice.current == "numba"


def test_a_choice_can_be_entered_again() -> None:
    numpy = mg.kernels("numpy")
    with numpy:
        assert choice.current == "numpy"
    assert choice.current == "numba"
    numpy = mg.kernels("numpy")
    mg.kernels("auto")
    with numpy:
        assert choice.current == "numpy"
    assert choice.current == "numba"
    with mg.kernels("auto"), numpy:
        with numpy:
            assert choice.current == "numpy"
        assert choice.current == "numpy"
    assert choice.current == "numba"


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(choice, "_compiled", None)
    with pytest.raises(ImportError, match=r"pip install 'numba"):
        mg.kernels("numba")
    with mg.kernels("auto"):
        x = normal(100, 100)
        found = mg.gelu(x).data
    with mg.kernels("numpy"):
        np.testing.assert_array_equal(found, mg.gelu(x).data)


@pytest.mark.parametrize("kind", [ImportError, SystemError])
def test_a_broken_numba_is_done_without(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise kind("Numba needs NumPy 1.0")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(choice, "_compiled", None)
    with mg.kernels("auto"), pytest.warns(RuntimeWarning, match="NumPy is used: Numba needs NumPy 1.0"):
        mg.gelu(normal(100, 100))
    mg.kernels("auto")
    mg.gelu(normal(100, 100))  # says it once
    monkeypatch.setattr(choice, "_compiled", None)
    with mg.kernels("numba"), pytest.raises(kind, match="Numba needs"):
        mg.gelu(normal(100, 100))


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, four_threads: Any) -> None:
    monkeypatch.setattr(numba_threads, "SHARE", 1)
    x, results = normal(200, 130), []
    for count in (1, 2, 7):
        monkeypatch.setattr(numba_threads, "team", numba_threads.Team(count))
        w = mg.tensor(np.ones(130, np.float32), requires_grad=True)
        t = mg.tensor(x, requires_grad=True)
        (mg.layer_norm(mg.gelu(t), w) * x).sum().backward()
        results.append([t.grad.data, w.grad.data])  # type: ignore[union-attr]
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(a, b)


def python(code: str, **environment: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={name: x for name, x in os.environ.items() if name != "NUMBA_CPU_FEATURES"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_numba_is_not_imported_before_it_is_needed() -> None:
    python(
        "import sys, numpy as np, microgradnd as mg, nn\n"
        "model = nn.MLP([64, 128, 10], rng=0)\n"
        "optimizer = nn.Adam(model.parameters())\n"
        "nn.cross_entropy(model(np.ones((32, 64), np.float32)), np.zeros(32, int)).backward()\n"
        "optimizer.step()\n"
        "assert 'numba' not in sys.modules\n"
        "mg.gelu(np.ones(20000, np.float32))\n"
        "assert 'numba' in sys.modules\n"
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_and_forks() -> None:
    python(
        "import os, threading, numpy as np, microgradnd as mg\n"
        "from microgradnd.kernels import numba_parts, numba_threads\n"
        "numba_threads.SHARE, numba_threads.team = 1, numba_threads.Team(4)\n"
        "x = np.linspace(-3, 3, 200_000).astype(np.float32)\n"
        "expected, failed = mg.gelu(x).data, []\n"
        "def work():\n"
        "    for _ in range(200):\n"
        "        if not (mg.gelu(x).data == expected).all(): failed.append(1)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for t in threads: t.start()\n"
        "for t in threads: t.join()\n"
        "assert not failed\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if (mg.gelu(x).data == expected).all() else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )


def test_without_a_place_for_the_cache() -> None:
    scope: dict[str, Any] = {}
    code = "def double(begin, end, x):\n    for i in range(begin, end):\n        x[i] += x[i]\n"
    exec(compile(code, "<no file>", "exec"), scope)
    x = np.ones(5, np.float32)
    numba_parts.Kernel(scope["double"])(5, 1, x)
    np.testing.assert_array_equal(x, 2)


def test_the_source_of_what_is_compiled_is_the_kernels_own() -> None:
    """Numba reads it for what it keeps on disk; text of other places, that is no Python, it refuses (from 3.12 on)."""
    for kernel in (numba_fused.kernels.silu, numba_heads.attention_kernels.attention):
        text = inspect.getsource(kernel.compiled.py_func)
        assert f"\ndef {kernel.__name__}(begin, end, " in text


@pytest.mark.parametrize("module", ["numba.core.types", "numba.np", "numba.core.registry"])
def test_an_interrupt_while_numba_is_imported_leaves_the_process_usable(module: str) -> None:
    script = f"""
import sys, numpy as np, microgradnd as mg
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and self in sys.meta_path:
            sys.meta_path.remove(self)
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
x = np.ones((100, 100), np.float32)
try:
    mg.gelu(x)
except KeyboardInterrupt:
    print("interrupted")
print(mg.gelu(x).sum().item())
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split()[0] == "interrupted"
    assert float(found.stdout.split()[1]) == pytest.approx(8413.4475, rel=1e-5)


def test_every_compiled_function_is_used() -> None:
    """Kernels that nothing calls would not be tested here."""
    from microgradnd.kernels import (
        numba_attention,
        numba_gelu,
        numba_kernels,
        numba_matmul,
        numba_optimisers,
        numba_updates,
    )

    count = 0
    for module, user, called in (
        (numba_kernels, numba_fused, "kernels"),
        (numba_gelu, numba_fused, "gelu_kernels"),
        (numba_norms, numba_fused, "norms"),
        (numba_optimisers, numba_updates, "kernels"),
    ):
        text = Path(user.__file__).read_text()
        kernels = {name: x for name, x in vars(module).items() if isinstance(x, numba_parts.Kernel)}
        assert [name for name in kernels if re.search(rf"\b{called}\.{name}\b", text) is None] == []
        count += len(kernels)
    assert count > 30
    # What a recording has to know; adam_all and the like are noted with the arrays themselves.
    everything = {**vars(numba_kernels), **vars(numba_norms), **vars(numba_attention), **vars(numba_matmul)}
    kernels = {name: x for name, x in everything.items() if isinstance(x, numba_parts.Kernel)}
    assert [name for name, kernel in kernels.items() if not kernel.writes] == []


def test_calls_from_several_threads_in_this_process() -> None:
    x = normal(300, 128)
    expected, found = mg.layer_norm(x).data, []
    workers = [threading.Thread(target=lambda: found.append(mg.layer_norm(x).data)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for result in found:
        np.testing.assert_array_equal(result, expected)


def test_what_is_in_use_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    mg.gelu(normal(100, 100))
    mg.show_config()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["microgradnd", "Python", "NumPy", "BLAS", "kernels", "CuPy"]
    assert lines["NumPy"] == np.__version__
    assert lines["kernels"] == f"'numba': Numba {numba_compiler.numba.__version__}, {numba_threads.THREADS} threads"
    with mg.kernels("numpy"):
        mg.show_config()
    assert "'numpy': NumPy\n" in capsys.readouterr().out


def test_a_damaged_cache_is_done_without(tmp_path: Path) -> None:
    code = "import numpy as np, microgradnd as mg; mg.softmax(np.ones((100, 100), np.float32))"
    python(code, NUMBA_CACHE_DIR=str(tmp_path))
    indices = list(tmp_path.rglob("*.nbi"))
    assert indices
    for index in indices:
        index.write_bytes(b"")
    python(code, NUMBA_CACHE_DIR=str(tmp_path))


def test_numba_used_by_others_keeps_its_settings() -> None:
    for first, changed in (("numba, ", "False"), ("", "'+avx512f' in features")):
        python(
            f"import {first}microgradnd as mg, numpy as np\n"
            "mg.gelu(np.ones(20000, np.float32))\n"
            "import numba\n"
            "from numba.core import codegen\n"
            "features = numba.config.CPU_FEATURES or codegen.get_host_cpu_features()\n"
            f"assert features.endswith(',-prefer-256-bit') == ({changed}), features\n"
        )
