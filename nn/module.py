"""The base of all layers: finds parameters by walking attributes, saves and restores their values."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import numpy as np

import microgradnd as mg
from microgradnd import Tensor
from microgradnd.autograd import Node
from microgradnd.devices import placed, resolved
from microgradnd.tensor import is_parameter, replace


class Module:
    """A layer or model: an object whose attributes hold its parameters, and a ``forward`` that uses them.

    Parameters are the tensors among the attributes that were made with ``requires_grad=True``, including those of
    modules and those inside lists, tuples and dicts, in the order in which the attributes were set; one that
    appears twice counts once, under its first name. They stay parameters where ``requires_grad`` is turned off.
    Subclasses define ``forward``; no ``super().__init__()`` is needed. Other tensors among the attributes, without a
    graph, are state too: ``state_dict`` has them. What ``forward`` keeps to be looked at should be an array,
    ``self.hidden = h.numpy()``, which is none.

    >>> class Scale(nn.Module):
    ...     def __init__(self):
    ...         self.factor = mg.tensor(1.0, requires_grad=True)
    ...
    ...     def forward(self, x):
    ...         return self.factor * x
    """

    training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output. Subclasses must define it."""
        raise TypeError(f"{type(self).__name__} defines no forward(self, ...)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of this module and of those in it, with dotted names such as ``layers.0.weight``."""
        found = ((name, value) for name, value in _walk(self) if isinstance(value, Tensor))
        # A result that forward kept in an attribute is no part of the model.
        return ((name, tensor) for name, tensor in found if not isinstance(tensor._node, Node))

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters with their names."""
        return ((name, tensor) for name, tensor in self.named_tensors() if is_parameter(tensor))

    def parameters(self) -> list[Tensor]:
        """The tensors that were made to require a gradient, frozen ones too: what an optimiser takes."""
        return [tensor for _, tensor in self.named_parameters()]

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze all parameters, with False, or train them again; returns self. Optimisers leave frozen ones alone."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def modules(self) -> Iterator[Module]:
        """This module and all those in it."""
        return (value for _, value in _walk(self) if isinstance(value, Module))

    def named_generators(self) -> Iterator[tuple[str, np.random.Generator]]:
        """The random generators among the attributes of this module and of those in it: the dropout layers'."""
        for path, value in _walk(self):
            for name, part in children(value, np.random.Generator) if isinstance(value, Module) else ():
                yield (f"{path}.{name}" if path else name), part

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters (sets them to None)."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def to(self, device: mg.device | str) -> Module:
        """Move all tensors of this module, with their gradients, to a device such as ``"cuda"``; returns self.

        The tensors stay the same objects, so that an optimiser that was given them goes on with them. Raises what
        :meth:`Tensor.to` raises; nothing has moved then.
        """
        device = resolved(device)
        tensors = [tensor for _, tensor in self.named_tensors()]
        moved = [placed(tensor.data, device) for tensor in tensors]
        for tensor, array in zip(tensors, moved, strict=True):
            gradient = tensor.grad
            replace(tensor, array)
            if gradient is not None:
                tensor.grad = gradient.to(device)
        return self

    def train(self, mode: bool = True) -> Module:
        """Switch this module and all those in it to training (or with False to evaluation) mode; returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch this module and all those in it to evaluation mode; returns self."""
        return self.train(False)

    def state_dict(self) -> dict[str, Any]:
        """Copies of the arrays of all tensors, by name. Raises ValueError where two have the same name."""
        return {name: tensor.data.copy() for name, tensor in self._tensors_by_name("state_dict").items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the values in ``state`` into the tensors of the same names, converted to their dtypes.

        Raises:
            ValueError: listing all missing, unexpected and mis-shaped names, and where two tensors have the same one;
                nothing has changed then.
            TypeError: for what is no mapping, and values that can't be converted to the tensor's dtype; nothing has
                changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: expected arrays by name, got {state!r}")
        tensors = self._tensors_by_name("load_state_dict")
        problems = [f"missing {name}" for name in tensors if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in tensors]
        for name, tensor in tensors.items():
            if name in state and np.shape(state[name]) != tensor.shape:
                problems.append(f"{name} has shape {np.shape(state[name])}, expected {tensor.shape}")
        if problems:
            raise ValueError(f"load_state_dict: nothing loaded into {type(self).__name__}: {'; '.join(problems)}")
        loaded = {}
        for name, tensor in tensors.items():
            loaded[name] = Tensor(tensor.data.copy())
            try:
                loaded[name].data = state[name]
            except (TypeError, ValueError) as error:
                raise type(error)(f"load_state_dict: nothing loaded: {name}: {error}") from None
        for name, tensor in tensors.items():
            tensor.data = loaded[name].data.copy()

    def _tensors_by_name(self, caller: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in self.named_tensors():
            if name in found:
                raise ValueError(f"{caller}: two tensors of {type(self).__name__} have the name {name}")
            found[name] = tensor
        return found

    def extra_repr(self) -> str:
        """What the repr shows between the parentheses of a module without submodules."""
        return ""

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        found = children(self, Module | FunctionType)
        inner = [(name, x) for name, x in found if isinstance(x, Module) or "." in name]  # functions in lists of layers
        if not inner:
            return f"{type(self).__name__}({self.extra_repr()})"
        shown = [(name, value.__name__ if isinstance(value, FunctionType) else repr(value)) for name, value in inner]
        lines = [f"  ({name}): {text}".replace("\n", "\n  ") for name, text in shown]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"])


def as_tensor(x: Any) -> Tensor:
    """What a layer is given, as a tensor; arrays are not copied."""
    return x if isinstance(x, Tensor) else Tensor(x)


def is_plain(layer: Any, *kinds: type[Module]) -> bool:
    """Whether a layer computes what its class, one of ``kinds``, does: no subclass, no ``forward`` of its own."""
    return layer.__class__ in kinds and "forward" not in layer.__dict__


def children(value: Any, kinds: Any = Tensor | Module) -> Iterator[tuple[str, Any]]:
    """The named parts of a module or container that are of some ``kinds``; containers inside it are opened."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Module):
        items = vars(value).items()
    elif isinstance(value, Mapping):
        items = value.items()
    else:
        items = enumerate(value)
    for name, part in items:
        if isinstance(part, kinds):
            yield str(name), part
        elif isinstance(part, Mapping | list | tuple):
            for inner, value_inside in children(part, kinds):
                yield f"{name}.{inner}", value_inside


def _walk(root: Module) -> Iterator[tuple[str, Any]]:
    """Every module and tensor under ``root``, each once, depth first in the order of definition."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        if isinstance(value, Module):
            parts = [(f"{path}.{name}" if path else name, part) for name, part in children(value)]
            stack.extend(reversed(parts))
