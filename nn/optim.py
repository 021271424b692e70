"""Optimisers: they change parameters in place, by the gradients that backward left in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np

from microgradnd import Tensor
from microgradnd.backends import NAMESPACES, as_array
from microgradnd.devices import beside
from microgradnd.inplace import next_change, record_of
from microgradnd.kernels import kernels_for_all
from microgradnd.noting import hook
from microgradnd.tensor import is_parameter

from .param_groups import ParamGroup, checked

Params: TypeAlias = Iterable[Tensor] | Iterable[Mapping[str, Any]]


def arrays_of(state: dict[str, Any], p: Any, *names: str) -> list[Any]:
    """A parameter's arrays under these names, made of zeros like p when they are first asked for."""
    for name in names:
        if name not in state:
            state[name] = NAMESPACES[p.__class__].zeros_like(p)
    return [state[name] for name in names]


def for_all(arrays: list[Any], largest: int) -> Any:
    """The kernels that take all of these arrays at once; None where there are none for them, or none is large."""
    if not arrays or (arrays[0].__class__ is np.ndarray and largest <= NAMESPACES[np.ndarray].SMALL):
        return None
    return kernels_for_all(*arrays)


class _Slot:
    """What an optimiser keeps for one parameter."""

    __slots__ = ("own", "parameter", "record", "state")
    unwatched = ("record",)  # mg.capture does not look into it

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.own: Any = None  # the parameter's array, where nobody else made it: to be changed in place
        self.record: list[Any] = []
        self.state: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied without the array: that it is nobody else's holds for one optimiser alone."""
        return _Slot, (self.parameter,), (None, {"state": self.state})


class Optimizer:
    """The base of all optimisers: groups of parameters, each with its settings.

    Subclasses define ``limits``, the range of each setting, and ``_update``, which changes parameters.
    An optimiser works on arrays of its own: the first step replaces each parameter's array by a copy, so that
    an array which the parameter was made of, or which two parameters share, never changes behind your back.

    Args:
        params: tensors made with ``requires_grad=True``, each once; or groups of them, mappings such as
            ``{"params": [...], "lr": 0.1}`` with settings of their own. Those that have no gradient, such as frozen
            ones, a step leaves as they are.
        settings: of all groups that do not say otherwise.

    Attributes:
        param_groups: a tuple of a dict for each group, with its parameters under ``"params"`` and its settings, which
            may be changed between steps, ``optimizer.param_groups[0]["lr"] = 0.01``, and are checked then too.

    Raises:
        ValueError: for no parameters (a group may be empty), a parameter given twice, and values out of range.
        TypeError: for parameters that are no tensors or never required a gradient, and for unknown settings.
    """

    # What mg.capture does not look into, and what it looks at only where another attribute has changed.
    unwatched: ClassVar = ("_name", "_largest", "defaults")
    looked_at_later: ClassVar = ("_slots",)
    limits: ClassVar[dict[str, Any]] = {}  # of each setting: at least 0 and below this; a tuple of such; or bool
    needed: ClassVar[tuple[str, ...]] = ()  # what the state of each parameter has after a step
    optional: ClassVar[tuple[str, ...]] = ()  # arrays that it has after a step with some settings

    def __init__(self, params: Params, **settings: Any) -> None:
        self.defaults = settings
        self.param_groups: tuple[ParamGroup, ...] = ()
        self._slots: list[list[_Slot]] = []  # of each group
        self._name = type(self).__name__
        self._loaded = np.empty(0)  # another array after each load_state_dict: mg.capture looks at the states again
        self._largest = 0  # elements of a parameter: if one is worth compiled kernels, they take all of them
        if isinstance(params, Tensor):
            raise TypeError(f"{self._name}: params must be a list of tensors, got a single tensor")
        if hasattr(params, "parameters"):
            raise TypeError(f"{self._name}: params must be a list of tensors, got a module: give model.parameters()")
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError(f"{self._name}: got no parameters; a generator can be used only once")
        grouped = isinstance(entries[0], Mapping)
        if any(isinstance(entry, Mapping) != grouped for entry in entries):
            raise TypeError(f"{self._name}: params must be tensors or groups, got both")
        for group in entries if grouped else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Take more parameters: ``{"params": tensors, ...}`` with the settings in which they differ."""
        if not isinstance(group, Mapping):
            raise TypeError(f"{self._name}: a group is a mapping, got {group!r}")
        unknown = set(group) - {"params", *self.defaults}
        if unknown or "params" not in group:
            raise TypeError(
                f"{self._name}: a group has params and any of {', '.join(self.defaults)}, got {', '.join(group)}"
            )
        settings = {
            name: checked(type(self), name, group.get(name, default)) for name, default in self.defaults.items()
        }
        tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        known = {id(slot.parameter) for slots in self._slots for slot in slots}
        for position, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor) or not is_parameter(tensor):
                raise TypeError(
                    f"{self._name}: parameter {position} must be a tensor made with requires_grad=True, got {tensor!r}"
                )
            if id(tensor) in known:
                raise ValueError(f"{self._name}: a parameter was given twice")
            known.add(id(tensor))
        self._slots.append([_Slot(tensor) for tensor in tensors])
        self._largest = max(self._largest, *(tensor.size for tensor in tensors), 0)
        # Tuples: to what is appended there the optimiser would pay no attention.
        group = ParamGroup(type(self), {"params": tuple(tensors), **settings})
        self.param_groups = (*self.param_groups, group)

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            settings = [f"{name}={value}" for name, value in group.items() if name != "params"]
            groups.append(f"{len(group['params'])} parameters, {', '.join(settings)}")
        return f"{self._name}({'; '.join(groups)})"

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group, slots in zip(self.param_groups, self._slots, strict=True):
            work = []
            order = next_change()
            for slot in slots:
                parameter = slot.parameter
                leaf: Any = parameter._node
                if leaf is None or (g := leaf.grad) is None:
                    continue
                p = parameter._data
                if p is not slot.own:
                    if hook.once is not None:
                        hook.once()
                    p = p.copy()
                    # In the same dict, where a captured step looks for it.
                    slot.state.update({name: beside(x, p) for name, x in slot.state.items() if hasattr(x, "shape")})
                    leaf.assigned = order
                    slot.record = record_of(p)
                    parameter._data = slot.own = p  # last: should a signal come in between, the next step does it again
                work.append((p, g._data if g.__class__ is Tensor else g, slot.state))
                slot.record[1] = order
            self._update(group, work)

    def _update(self, group: dict[str, Any], work: list[tuple[Any, Any, dict[str, Any]]]) -> None:
        """Change each array of ``work`` by its gradient, in place; its state keeps what the next step needs."""
        raise TypeError(f"{self._name} defines no _update")

    def live_numbers(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Where numbers lie that change from step to step: ``mg.capture`` reads them anew each time."""
        for group, slots in zip(self.param_groups, self._slots, strict=True):
            yield group, "lr"
            for slot in slots:
                if "step" in slot.state:
                    yield slot.state, "step"

    def state_dict(self) -> dict[str, Any]:
        """Copies of what the steps so far left, and the settings.

        ``{"state": [{...}, ...], "param_groups": [{"lr": ..., "params": [0, ...]}, ...]}`` with parameters by
        number.
        """
        groups: list[dict[str, Any]] = []
        state: list[dict[str, Any]] = []
        for group, slots in zip(self.param_groups, self._slots, strict=True):
            numbers = list(range(len(state), len(state) + len(slots)))
            groups.append({**group, "params": numbers})
            for slot in slots:
                state.append({name: x.copy() if hasattr(x, "copy") else x for name, x in slot.state.items()})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where an optimiser of the same groups of parameters stood.

        Raises ValueError, and changes nothing, for the state of other groups, shapes or optimisers.
        """
        sizes = [len(slots) for slots in self._slots]
        if not isinstance(state, Mapping) or set(state) != {"param_groups", "state"}:
            raise ValueError(f"load_state_dict: expected what state_dict of {self._name} gives, got {_summary(state)}")
        saved_groups, saved_state = state["param_groups"], state["state"]
        for part in (saved_groups, saved_state):
            if not isinstance(part, list | tuple) or not all(isinstance(x, Mapping) for x in part):
                raise ValueError(f"load_state_dict: expected a list of what {self._name} keeps, got {part!r:.200}")
        numbers = [group.get("params") for group in saved_groups]
        counts = [len(x) if isinstance(x, list | tuple) else None for x in numbers]
        if counts != sizes or len(saved_state) != sum(sizes):
            raise ValueError(f"load_state_dict: expected groups of {sizes} parameters for this {self._name}")
        loaded_groups: list[dict[str, Any]] = []
        for saved, group in zip(saved_groups, self.param_groups, strict=True):
            if set(saved) != set(group):
                raise ValueError(f"load_state_dict: this is no state of {self._name}: it has {', '.join(saved)}")
            settings = {name: checked(type(self), name, saved[name]) for name in self.defaults}
            loaded_groups.append({name: x for name, x in {**saved, **settings}.items() if name != "params"})
        all_slots = [slot for slots in self._slots for slot in slots]
        states = [self._copied(x, slot.parameter) for x, slot in zip(saved_state, all_slots, strict=True)]
        # In the same dicts, where a captured step looks for them.
        for group, loaded in zip(self.param_groups, loaded_groups, strict=True):
            group.update(loaded)
        for slot, loaded in zip(all_slots, states, strict=True):
            slot.state.clear()
            slot.state.update(loaded)
        self._loaded = np.empty(0)

    def _copied(self, state: Mapping[str, Any], parameter: Tensor) -> dict[str, Any]:
        """Copies of a parameter's state, on its device; numbers as they are."""
        missing = [name for name in self.needed if state and name not in state]
        if missing:
            raise ValueError(f"load_state_dict: this is no state of {self._name}: there is no {', '.join(missing)}")
        steps = state.get("step", 0) if "step" in self.needed else 0
        if not isinstance(steps, int | np.integer) or steps < 0:
            raise ValueError(f"load_state_dict: step must be an integer of at least 0, got {steps!r}")
        loaded = {}
        for name, value in state.items():
            if hasattr(value, "shape"):
                if value.shape != parameter.shape or value.dtype.newbyteorder("=") != parameter.dtype.newbyteorder("="):
                    raise ValueError(
                        f"load_state_dict: {name} has {value.dtype} {value.shape}, expected {parameter.dtype} "
                        f"{parameter.shape}"
                    )
                value = beside(as_array(value), parameter.data)
                value = NAMESPACES[parameter.data.__class__].array(value, parameter.dtype.newbyteorder("="), order="C")
            elif name in (*self.needed, *self.optional) and name != "step":
                raise ValueError(f"load_state_dict: {name} must be an array, got {value!r}")
            loaded[name] = value
        return loaded

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters (sets them to None)."""
        for slots in self._slots:
            for slot in slots:
                if slot.parameter._node is not None:
                    slot.parameter._node.grad = None  # type: ignore[union-attr]


def _summary(state: Any) -> str:
    return f"a mapping with {', '.join(map(str, state)) or 'nothing'}" if isinstance(state, Mapping) else repr(state)
