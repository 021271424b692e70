"""Groups of parameters with settings of their own, which are checked wherever they are assigned."""

from __future__ import annotations

from typing import Any

from microgradnd.arguments import number


def checked(optimizer: Any, name: str, value: Any) -> Any:
    """A setting of an optimiser, a class, within its ``limits``.

    As Python's floats: a NumPy float64 would turn float32 gradients into float64 ones. A number that is being recorded
    stays what it is.
    """
    if name not in optimizer.limits:
        raise TypeError(f"{optimizer.__name__} defines no limits for {name}")
    return _within(optimizer.limits[name], optimizer.__name__, name, value)


def _within(limit: Any, optimizer: str, name: str, value: Any) -> Any:
    if limit is bool:
        if not isinstance(value, bool):
            raise TypeError(f"{optimizer}: {name} must be True or False, got {value!r}")
        return value
    if isinstance(limit, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(limit):
            raise ValueError(f"{optimizer}: {name} must be {len(limit)} numbers, got {value!r}")
        return tuple(_within(part, optimizer, name, x) for part, x in zip(limit, value, strict=True))
    value = number(optimizer, name, value)
    if not hasattr(value, "variable") and not 0 <= value < limit:
        raise ValueError(f"{optimizer}: {name} must be at least 0 and below {limit}, got {value}")
    return value


class ParamGroup(dict[str, Any]):
    """``{"params": (tensors), ...}`` with all settings of an optimiser.

    A setting may be assigned: it is checked as those given to the optimiser are, and none is removed. Parameters are
    added as another group. Under other names may lie what you like. ``copy`` and ``{**group}`` give plain dicts.

    Raises:
        ValueError, TypeError: for values out of range, and for changes of ``"params"``; nothing changes.
    """

    __slots__ = ("_optimizer",)

    def __init__(self, optimizer: Any, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._optimizer = optimizer  # the class

    def __reduce__(self) -> tuple[Any, ...]:
        return ParamGroup, (self._optimizer, dict(self))

    def _checked(self, name: str, value: Any) -> Any:
        if name == "params":
            raise TypeError(f"{self._optimizer.__name__}: a group keeps its parameters; add others by add_param_group")
        return checked(self._optimizer, name, value) if name in self._optimizer.limits else value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, self._checked(name, value))

    def update(self, *others: Any, **settings: Any) -> None:
        super().update({name: self._checked(name, value) for name, value in dict(*others, **settings).items()})

    def __ior__(self, other: Any) -> ParamGroup:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def pop(self, name: str, *default: Any) -> Any:
        if name == "params" or name in self._optimizer.limits:
            raise TypeError(f"{self._optimizer.__name__}: {name} can't be removed from a group; assign another value")
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, Any]:
        name = next(reversed(self))
        return name, self.pop(name)

    def clear(self) -> None:
        raise TypeError(f"{self._optimizer.__name__}: a group keeps its settings; assign other values")
