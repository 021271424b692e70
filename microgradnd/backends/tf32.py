"""TF32: float32 products on a device with ten bits of mantissa, where that is allowed."""

from __future__ import annotations

import sys
from typing import Any

from ..modes import Choice


class allow_tf32(Choice):
    """Let CuPy multiply float32 matrices in TF32: for the process, or within a ``with`` block.

    >>> mg.allow_tf32(True)  # from now on
    >>> with mg.allow_tf32(False):
    ...     loss = step()

    Tensor cores then round the factors to ten bits of mantissa, as float16 has, with float32's range, and add up in
    float32: several times the speed from NVIDIA's Ampere on, for an error of about 1e-3 instead of 1e-7. Until this is
    called CuPy's own default holds, float32 throughout unless the environment variable ``CUPY_TF32`` is 1.
    ``mg.show_config()`` shows it. CuPy is not imported by this; what is chosen before holds once it is in use here.
    On NumPy nothing changes.
    """

    current: bool | None = None  # None: CuPy's default

    def __init__(self, allowed: bool = True) -> None:
        if not isinstance(allowed, bool):
            raise TypeError(f"allow_tf32: expected True or False, got {allowed!r}")
        super().__init__(allowed)

    @classmethod
    def choose(cls, choice: bool | None) -> None:
        super().choose(choice)
        if "cupy" in sys.modules:
            apply()


def apply() -> None:
    """Tell CuPy what was chosen. CuPy 14.2 keeps a compute type for each dtype; 0 leaves it to the environment."""
    core: Any = sys.modules["cupy"]._core
    default, tf32 = 1, 7  # COMPUTE_TYPE_DEFAULT, COMPUTE_TYPE_TF32 of cupy/_core/_routines_linalg.pxd
    core.set_compute_type("float32", {None: 0, False: default, True: tf32}[allow_tf32.current])


def in_use() -> bool:
    """Whether CuPy, which has been imported, multiplies so."""
    core: Any = sys.modules["cupy"]._core
    linalg: Any = sys.modules["cupy._core._routines_linalg"]
    return bool(linalg.compute_type_to_str(core.get_compute_type("float32")) == "COMPUTE_TYPE_TF32")
