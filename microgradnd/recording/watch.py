"""What has to stay as it is for a recording to hold, as Python expressions and as a list of what differs."""

from __future__ import annotations

from typing import Any

from .places import GONE, WHOLE, Place, are_keys, is_equal, is_unchanged, is_uncleared
from .reach import Reach


class Watch:
    """What is found in a reach has to stay as it is, but for what replays read anew.

    Attributes:
        conditions: Python expressions, which hold as long as it does.
        scope: the objects that they name.
    """

    def __init__(self, reach: Reach, ignored: set[int]) -> None:
        found = reach.of_role("plain", "array", "tuple", "node", "generator")
        self.places = [place for place in found if id(place) not in ignored]
        self._reach = reach
        self.scope: dict[str, Any] = {f.__name__: f for f in (are_keys, is_unchanged, is_uncleared)}
        self.conditions: list[str] = []
        self._owners: dict[int, str] = {}
        for i, place in enumerate(self.places):
            if not place.is_guarded:  # differences() alone looks at it
                continue
            self.scope[f"value_{i}"] = place.value
            key = "" if type(place.key) in (str, int) else f"key_{i}"  # of others the text is no expression
            self.scope |= {key: place.key} if key else {}
            self.conditions.append(f"{place.expression(self._name(place.owner), key)} is value_{i}")
        for i, (look, x, expected, _) in enumerate([*reach.looks, *reach.kinds]):
            text = repr(expected)
            if look is WHOLE or type(expected) not in (int, str):  # some are compared by being the same object
                text = f"expected_{i}"
                self.scope[text] = expected
            self.conditions.append(look.text.format(self._name(x), text))

    def _name(self, owner: Any) -> str:
        name = self._owners.setdefault(id(owner), f"owner_{len(self._owners)}")
        self.scope[name] = owner
        return name

    def differences(self) -> list[tuple[Place | None, str]]:
        """The places that hold something else now, and the names of what has another length or content."""
        found: list[tuple[Place | None, str]] = [(None, path) for path in self._reach.different()]
        for place in self.places:
            value = place.look()
            if value is not place.value and not is_equal(value, place.value):
                found.append((None if value is GONE else place, place.path))
        return found

    def update(self, scope: dict[str, Any]) -> None:
        """Take what lies in the places now for what is expected, also in the ``scope`` of conditions made before."""
        for i, place in enumerate(self.places):
            place.value = place.get()
            if place.is_guarded:
                self.scope[f"value_{i}"] = scope[f"value_{i}"] = place.value
