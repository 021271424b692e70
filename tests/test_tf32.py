"""TF32 is a choice, which may be made before CuPy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import microgradnd as mg


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
