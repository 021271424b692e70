"""First and second order of every operation that PyTorch has too, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import Device
from tests.op_gradients import assert_close, drawn, gradients, varied, weights
from tests.op_table import OPS, Op, Sample

CASES = [
    pytest.param(op, sample, id=f"{op}-{i}")
    for op in OPS
    if op.torch is not None
    for i, sample in enumerate(op.samples)
]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("op", "sample"), CASES)
def test_equals_pytorch(op: Op, sample: Sample, order: int) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    args = drawn(op, sample)
    positions = varied(op, args)
    out, ours = gradients(op, sample, args, Device("numpy"), order)

    theirs: list[Any] = [torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x for x in args]
    for i in positions:
        theirs[i].requires_grad_()
    their_out = op.torch(torch, theirs, **sample.options) if op.sequence else op.torch(torch, *theirs, **sample.options)
    assert_close(out.numpy(), their_out.detach().numpy(), 1e-12)
    inputs = [theirs[i] for i in positions]
    loss = (their_out * torch.from_numpy(weights(tuple(their_out.shape)))).sum()
    found = torch.autograd.grad(loss, inputs, create_graph=order == 2, allow_unused=True)
    if order == 2:
        varying = [g for g in found if g is not None and g.requires_grad]
        total = sum((g * g * torch.from_numpy(weights(tuple(g.shape)))).sum() for g in varying)
        found = torch.autograd.grad(total, inputs, allow_unused=True) if varying else [None] * len(inputs)
    for gradient, theirs_gradient, x in zip(ours, found, inputs, strict=True):
        expected = np.zeros(tuple(x.shape)) if theirs_gradient is None else theirs_gradient.numpy(force=True)
        assert_close(gradient, expected, 1e-12)
