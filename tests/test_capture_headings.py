"""The text of a captured step: each part is headed with the operation, gradient or optimiser that it comes from."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import microgradnd as mg
import nn
from tests.training_steps import training_step


@mg.primitive(x=lambda g, x: 3 * g * x * x)
def cube(xp: Any, x: Any) -> Any:
    return x * x * x


def headings(step: Any) -> list[str]:
    return [line.strip() for line in step.source.split("\n") if line.strip().startswith("# ")]


def captured_headings(model: nn.Module) -> list[str]:
    step: Any = mg.capture(training_step(model, nn.SGD(model.parameters(), 0.1)))
    rng = np.random.default_rng(0)
    for _ in range(3):
        step(rng.standard_normal((300, 40), np.float32), rng.integers(0, 5, 300))
    return headings(step)


def of_operations(activation: Any) -> list[str]:
    """In the order in which they are computed; what follows under the same heading has none of its own."""
    if activation is nn.SiLU:
        layers, gradients = ["linear", "silu"] * 2 + ["linear"], ["linear"] + ["silu", "linear"] * 2
    else:
        name = "linear_relu" if activation is nn.ReLU else "linear_gelu"
        layers, gradients = [name, "linear"], ["linear", name]
    backward = [f"gradient of {name}" for name in ("cross_entropy", *gradients, "layer_norm")]
    return [f"# {name}" for name in ("layer_norm", *layers, "cross_entropy", *backward, "SGD")]


def model(activation: Any) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(40), *nn.MLP([40, 50, 50, 5], activation, rng=0))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
def test_parts_are_headed_with_operations_and_their_gradients(activation: Any, numpy_kernels: None) -> None:
    assert captured_headings(model(activation)) == of_operations(activation)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
def test_compiled_kernels_have_the_same_headings(activation: Any, request: pytest.FixtureRequest) -> None:
    """Several in a row are one call, which is headed with the first and the last one."""
    pytest.importorskip("numba")
    request.getfixturevalue("numba_kernels")
    found = [name for heading in captured_headings(model(activation)) for name in heading[2:].split(" to ")]
    assert {f"# {name}" for name in found} <= set(of_operations(activation))


def test_primitives_from_outside_have_their_names(numpy_kernels: None) -> None:
    found = captured_headings(nn.Sequential(nn.Linear(40, 30, rng=0), cube, nn.Linear(30, 5, rng=1)))
    forward = ["linear", "cube", "linear", "cross_entropy"]
    backward = [f"gradient of {name}" for name in ("cross_entropy", "linear", "cube", "linear")]
    assert found == [f"# {name}" for name in (*forward, *backward, "SGD")]


def test_sums_of_gradients_have_a_heading_of_their_own(request: pytest.FixtureRequest) -> None:
    """Of a layer that is used twice: the sums lie between the parts of one operation's gradient."""
    pytest.importorskip("numba")
    request.getfixturevalue("numba_kernels")
    shared = nn.Linear(40, 40, rng=0)
    found = captured_headings(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(40, 5, rng=1)))
    assert found[-5:] == [
        "# gradient of linear_relu",
        "# sum of gradients",
        "# gradient of linear_relu",
        "# sum of gradients",
        "# SGD",
    ]


def test_gradients_are_named_after_their_parameters_where_names_clash() -> None:
    a, b = nn.Linear(3, 3, rng=0), nn.Linear(3, 3, rng=1)
    a_weight = mg.tensor(np.ones((3, 3), np.float32), requires_grad=True)
    optimizer = nn.SGD([*a.parameters(), *b.parameters(), a_weight], 0.1)

    @mg.capture
    def step(x: Any) -> None:
        optimizer.zero_grad()
        mg.tanh(b(a(x)) @ a_weight).sum().backward()
        optimizer.step()

    for _ in range(3):
        step(np.ones((2, 3), np.float32))
    updates = re.findall(r"np\.multiply\(\w+, d_(\w+), (\w+)\).*\n +np\.subtract\((\w+), (\w+), \w+\)", step.source)
    assert len(updates) == 5
    for gradient, change, parameter, subtracted in updates:
        assert gradient == parameter
        assert change == subtracted


weights = {name: mg.tensor(np.ones(3, np.float32), requires_grad=True) for name in ("w1", "w2")}
optimizer = nn.SGD(list(weights.values()), 0.1)  # a step that names it after them finds it before them


def test_parameters_are_named_as_the_program_names_them_and_not_by_the_optimiser() -> None:
    @mg.capture
    def step(x: Any) -> None:
        for weight in weights.values():
            x = mg.tanh(x * weight)
        optimizer.zero_grad()
        x.sum().backward()
        optimizer.step()

    for _ in range(3):
        step(np.ones(3, np.float32))
    assert {"w1", "w2", "d_w1", "d_w2"} <= set(re.findall(r"\w+", step.source))
