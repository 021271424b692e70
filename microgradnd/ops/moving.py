"""Moving tensors between devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..devices import device_of, placed, resolved
from ..primitive import primitive
from ..tensor import Tensor

if TYPE_CHECKING:
    from ..devices import Device
    from ..tensor import Operand


def _back(g, source):
    return g.to(source) if g.__class__ is Tensor else placed(g, source)


@primitive(x=_back)
def _to(xp: Any, x: Operand, device: Any, source: Any) -> Any:
    return placed(x, device)


def to(self: Tensor, device: Device) -> Tensor:
    """The tensor on a device, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: itself, if it is there already.

    A copy is part of the graph: gradients come back to the device of the original.

    Raises ValueError for other names, ImportError or RuntimeError for a GPU that can't be used.
    """
    source, target = device_of(self.data), resolved(device)
    return self if source == target else _to(self, target, source)
