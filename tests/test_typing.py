"""The public API as a type checker sees it: mypy checks this file too."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np

import microgradnd as mg
import nn


def test_types_of_the_engine() -> None:
    x = assert_type(mg.tensor([1.0, 2.0], requires_grad=True), mg.Tensor)
    y = assert_type(2.0 * x + np.ones(2) @ x - x[0], mg.Tensor)
    assert_type(mg.softmax(y, axis=-1), mg.Tensor)
    assert_type(y.sum(axis=0, keepdims=True).T, mg.Tensor)
    assert_type(mg.concatenate([x, y]), mg.Tensor)
    assert_type(np.ones(2) * x, mg.Tensor)
    y.sum().backward()
    assert_type(x.grad, mg.Tensor | None)
    assert x.grad is not None
    x.data -= 0.5 * x.grad.data
    assert float(x.data.mean()) < 9 + y.sum().item()  # of what was assigned, and of numbers
    assert_type(x.shape, tuple[int, ...])
    value, _ = mg.value_and_grad(lambda t: mg.exp(t).sum())(x)
    assert_type(value, mg.Tensor)
    with mg.no_grad():
        assert_type(x > 0, mg.Tensor)
    with mg.autocast("float16"), mg.allow_tf32(False):
        assert_type(mg.matmul(x, x), mg.Tensor)

    @mg.autocast(np.float16, enabled=False)
    def length(x: mg.Tensor) -> int:
        return len(x)

    assert_type(length(x), int)

    @mg.primitive(x=lambda g, x: 2 * g * x)
    def square(xp: Any, x: mg.Tensor | float) -> Any:
        return x * x

    assert_type(square(3.0), mg.Tensor)


def test_wrong_types_are_errors_for_the_checker_and_for_the_engine() -> None:
    x = mg.tensor([1.0])
    for call in (
        lambda: mg.exp("a"),  # type: ignore[arg-type]
        lambda: x + "a",  # type: ignore[operator]
        lambda: np.exp(x),  # type: ignore[call-overload]
        lambda: mg.softmax(x, dim=0),  # type: ignore[call-arg]
        lambda: mg.tensor(None),  # type: ignore[arg-type]
        lambda: nn.SGD(0.1, x),  # type: ignore[arg-type]
    ):
        try:
            call()
        except TypeError:
            continue
        raise AssertionError("a wrong type was accepted")


def test_types_of_nn() -> None:
    model = assert_type(nn.MLP([4, 8, 3], activation=nn.ReLU, rng=0), nn.MLP)
    optimizer = nn.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for rows, labels in nn.batches(np.ones((5, 4), np.float32), np.arange(5) % 3, 2, rng=np.random.default_rng(0)):
        loss = assert_type(nn.cross_entropy(model(rows), labels), mg.Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_type(model.state_dict(), dict[str, Any])
    scaler = nn.GradScaler(growth_interval=100)
    assert_type(scaler.get_scale(), float)
    assert_type(scaler.skipped, int)
