"""Tensors for tests of low precision, and what they hold in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

import microgradnd as mg
from tests.conftest import Device


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
