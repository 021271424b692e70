"""How far what CuPy computes is from what NumPy does, operation by operation: units in the last place, or relative.

``python -m pytest --device cupy-cpu tests/test_devices_agreement.py -s`` prints the largest differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import microgradnd as mg
from tests.conftest import Device
from tests.op_gradients import drawn, evaluated
from tests.op_table import BROADCASTING, ELEMENTWISE, OPS, Op

ULP = 2.0
# A device's own functions are allowed more: CUDA's guide has up to 4 ulp for powf and 2 for tanhf.
SHARE_ON_A_GPU = 4.0
# NumPy has no erf: ours is a quotient of polynomials. CuPy's remainder is x - y floor(x / y), NumPy's is exact.
MORE_ULP = {"erf": 5.0, "gelu": 20.0, "remainder": 8.0, "swiglu": 3.0}
RELATIVE = {np.float32: 1e-6, np.float64: 1e-13}
MORE_RELATIVE = {"einsum": 4e-6, "matmul": 4e-6}  # float32 products of more than two arrays are taken in another order


def is_elementwise(op: Op) -> bool:
    first = op.samples[0]
    return first is ELEMENTWISE[0] or first is BROADCASTING[0] or op.name in ("floor_divide", "remainder")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernels", ["auto", "numpy"])
def test_differences(kernels: str, dtype: Any, cupy: Any, request: pytest.FixtureRequest) -> None:
    there = Device(request.config.getoption("--device"))
    share = SHARE_ON_A_GPU if there.chosen == "cuda" else 1.0
    largest: dict[bool, tuple[float, str]] = {}
    compared = set()
    for op in OPS:
        elementwise = is_elementwise(op)
        for sample in op.samples:
            if op.name == "dropout" or sample.options.get("dropout_p"):
                continue  # other elements are dropped
            args = drawn(op, sample, dtype)
            with mg.kernels(kernels):
                ours = evaluated(op, getattr(mg, op.name), [there.array(x) for x in args], sample.options).numpy()
                expected = evaluated(op, getattr(mg, op.name), args, sample.options).numpy()
            assert (ours.dtype, ours.shape) == (expected.dtype, expected.shape)
            compared.add(op.name)
            if expected.dtype.kind != "f":
                np.testing.assert_array_equal(ours, expected)
                continue
            distance = np.abs(ours.astype(np.float64) - expected)
            if elementwise:
                found = float((distance / np.spacing(np.abs(expected))).max(initial=0.0))
                assert found <= share * MORE_ULP.get(op.name, ULP), op.name
            else:
                found = float(distance.max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 1e-30))
                more = MORE_RELATIVE.get(op.name, 0.0) if dtype is np.float32 else 0.0
                assert found <= share * max(RELATIVE[dtype], more), op.name
            if op.name not in (MORE_ULP if elementwise else MORE_RELATIVE):
                largest[elementwise] = max(largest.get(elementwise, (0.0, "")), (found, op.name))
    print(f"\n{kernels}, {np.dtype(dtype)}: {len(compared)} operations; elementwise {largest[True][0]:.1f} ulp", end="")
    print(f" ({largest[True][1]}), others {largest[False][0]:.1e} ({largest[False][1]})")
    assert len(compared) >= 60
