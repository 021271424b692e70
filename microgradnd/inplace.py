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
    records: dict[int, list[Any]] = {}  # noqa: RUF012 (one registry): id of the owner -> [weak reference, order]


changes = _Changes()


def next_change() -> int:
    """The order of a change in place that is about to be made, to be noted in the records of the arrays that change."""
    changes.latest = order = next_order()
    return order


def record_of(array: Any) -> list[Any]:
    """The record of the memory of ``array``: [weak reference, order of the latest change in place]."""
    owner = owner_of(array)
    key = id(owner)
    if key not in changes.records:
        changes.records[key] = [weakref.ref(owner, functools.partial(_forget, key)), 0]
    return changes.records[key]


def _forget(key: int, reference: Any) -> None:
    changes.records.pop(key, None)


def changed_since(array: Any, order: int) -> bool:
    """Whether the memory of ``array`` was changed in place after ``order``."""
    record = changes.records.get(id(owner_of(array)))
    return record is not None and record[1] < order


def is_changed_in_place(array: Any) -> bool:
    """Whether the memory of ``array`` has been changed in place before."""
    return id(owner_of(array)) in changes.records


def owner_of(array: Any) -> Any:
    """The array whose memory ``array`` is, or is a view of."""
    array = getattr(array, "value", array)  # of one that is being recorded, the array itself
    while (base := getattr(array, "base", None)) is not None:
        if not hasattr(base, "shape"):  # as_strided and sliding_window_view put an object of NumPy's in between
            base = getattr(base, "base", None) if type(base).__module__.startswith("numpy.") else None
            if not hasattr(base, "shape"):
                break
        array = base
    return array
