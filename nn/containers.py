"""Layers made of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import microgradnd as mg

from .activations import GELU, ReLU, made
from .linear import Linear
from .module import Module

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng


class Sequential(Module):
    """Layers applied one after another; ``len()``, indexing, slicing and iteration give the layers.

    Raises TypeError for a layer that can't be called.
    """

    pytorch_names: ClassVar = {"layers.": ""}  # see nn.pytorch

    def __init__(self, *layers: Callable[[Any], Any]) -> None:
        for position, layer in enumerate(layers):
            if not callable(layer) or isinstance(layer, type):
                raise TypeError(f"Sequential: layer {position} must be a module or function, got {layer!r}")
        self.layers = list(layers)

    def forward(self, x: Any) -> Any:
        done = False  # whether the layer before did this one's work too
        layers: list[Any] = [*self.layers, None]
        for layer, following in pairwise(layers):
            if done:
                done = False
            elif layer.__class__ is not Linear or "forward" in layer.__dict__:  # is_plain, without the time of a call
                x = layer(x)
            elif following.__class__ is ReLU and "forward" not in following.__dict__:
                x, done = mg.linear_relu(x, layer.weight, layer.bias), True  # one operation instead of two
            elif following.__class__ is GELU and "forward" not in following.__dict__:
                x, done = mg.linear_gelu(x, layer.weight, layer.bias, following.approximate), True
            else:
                x = mg.linear(x, layer.weight, layer.bias)  # two calls less than layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        return Sequential(*self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __iter__(self) -> Iterator[Callable[[Any], Any]]:
        return iter(self.layers)


class MLP(Sequential):
    """A multilayer perceptron: linear layers of the given sizes with an activation between them.

    ``MLP([64, 128, 10])`` maps (..., 64) to (..., 10) logits through 128 hidden units; there is no
    activation after the last layer.

    Args:
        sizes: of the input, the hidden layers and the output; at least two.
        activation: makes an activation layer, called once per hidden layer.
        init, dtype, rng: as for :class:`Linear`; the layers draw from ``rng`` in turn.

    Raises:
        ValueError: for fewer than two sizes.
        TypeError: for an ``activation`` that makes no layer.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: Callable[[], Callable[[Any], Any]] = ReLU,
        *,
        init: Callable[..., Any] | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        if not isinstance(sizes, Iterable):
            raise TypeError(f"MLP: expected sizes, such as [64, 128, 10], got {sizes!r}")
        sizes = list(sizes)
        if len(sizes) < 2:
            raise ValueError(f"MLP: expected at least an input and an output size, got {sizes}")
        rng = np.random.default_rng(rng)
        options: dict[str, Any] = {"dtype": dtype, "rng": rng} | ({} if init is None else {"init": init})
        layers: list[Callable[[Any], Any]] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [Linear(fan_in, fan_out, **options), made("MLP", activation)]
        super().__init__(*layers[:-1])
