"""Leaves of a graph: what gradients are collected in."""

from __future__ import annotations

from typing import Any

import microgradnd as mg


def leaf(value: Any = 2.0) -> mg.Tensor:
    return mg.tensor(value, requires_grad=True)
