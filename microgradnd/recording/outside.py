"""Graphs that were made outside of a step: what they saved is not the step's, so its backward may not go into them."""

from __future__ import annotations

from typing import Any

from ..autograd import Leaf, Node
from .active import CaptureError


def _refuse(*args: Any) -> Any:
    raise CaptureError(
        "capture: backward comes to a tensor that was computed outside of the step, from others that need a gradient; "
        "compute it within the step, or take its detach()"
    )


class _Outside:
    """The operation of a node whose gradient is refused."""

    name = "a tensor from outside of the step"
    arguments = ("it",)
    vjps = (_refuse,)
    vjp_of_tensors = staticmethod(_refuse)


def outer(node: Node | Leaf | None) -> Node | None:
    """What stands, while a step is recorded, for the node of a tensor that was computed before; None for others."""
    return Node(_Outside(), (node, 0, (), ()), node.shape, node.dtype) if isinstance(node, Node) else None
