"""In-place changes of arrays: what was changed when, so that backward can refuse values that are no longer there."""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import Any

# Orders of nodes and of changes count down, so that the newest is the smallest: what heapq takes first.
next_order = itertools.count(-1, -1).__next__


class _Changes:
    latest = 0  # the order of the latest change: one comparison per node rules changes out
    orders: dict[int, list[Any]] = {}  # noqa: RUF012 (one registry) id of the owner -> [weak reference, order]


changes = _Changes()


def mark_changed(*arrays: Any) -> None:
    """Note that ``arrays`` were just changed in place: a backward that saved their values before refuses."""
    changes.latest = order = next_order()
    orders = changes.orders
    for array in arrays:
        owner = array if array.base is None else _owner(array)
        key = id(owner)
        if key in orders:
            orders[key][1] = order
        else:
            orders[key] = [weakref.ref(owner, functools.partial(_forget, key)), order]


def _forget(key: int, reference: Any) -> None:
    changes.orders.pop(key, None)


def changed_since(array: Any, order: int) -> bool:
    """Whether the memory of ``array`` was changed in place after ``order``."""
    change = changes.orders.get(id(_owner(array)))
    return change is not None and change[1] < order


def _owner(array: Any) -> Any:
    """The array whose memory ``array`` is, or is a view of."""
    while hasattr(base := getattr(array, "base", None), "shape"):
        array = base
    return array
