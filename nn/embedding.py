"""Vectors for tokens and for positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import microgradnd as mg
from microgradnd.arguments import integer
from microgradnd.backends import as_array
from microgradnd.devices import beside
from microgradnd.dtypes import is_floating
from microgradnd.ops.indexing import take_rows

from .init import drawn, normal
from .module import Module, as_tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng


class Embedding(Module):
    """A learned vector for each of ``num_embeddings`` tokens: integers (...) -> (..., embedding_dim).

    Args:
        num_embeddings, embedding_dim: the shape of ``weight``, both at least 1.
        padding_idx: a token whose vector is zero at first and gets no gradient.
        init: the initial vectors, a function of ``nn.init`` or one like them.
        dtype: of the vectors.
        rng: a ``numpy.random.Generator`` or a seed for the vectors; None draws a seed.

    Raises:
        ValueError: for sizes below 1, and a ``padding_idx`` out of range.
        TypeError: for sizes and a ``padding_idx`` that are no integers, and in forward for such tokens.
        IndexError: in forward, for tokens outside of 0 to num_embeddings - 1. Tokens that lie on a GPU are not waited
            for: there such a token gives a vector of NaN.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        init: Callable[..., Any] = normal,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        self.num_embeddings = integer("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = integer("Embedding", "embedding_dim", embedding_dim)
        self.padding_idx = None if padding_idx is None else integer("Embedding", "padding_idx", padding_idx)
        weight = drawn("Embedding", init, (self.num_embeddings, self.embedding_dim), rng, dtype)
        if self.padding_idx is not None:
            if not 0 <= self.padding_idx < self.num_embeddings:
                raise ValueError(
                    f"Embedding: padding_idx must lie in 0 to {self.num_embeddings - 1}, got {padding_idx}"
                )
            weight[self.padding_idx] = 0
        self.weight = mg.tensor(weight, dtype, requires_grad=True)

    def forward(self, tokens: Any) -> mg.Tensor:
        given = tokens.data if isinstance(tokens, mg.Tensor) else tokens
        index = as_array(given)
        if index.dtype.kind not in "iu":
            raise TypeError(f"Embedding: tokens must be integers, got {index.dtype}")
        on_host = index.__class__ is np.ndarray
        if on_host and index.size and not (index.min() >= 0 and index.max() < self.num_embeddings):
            raise IndexError(
                f"Embedding: tokens must lie in 0 to {self.num_embeddings - 1}, got {index.min()} to {index.max()}"
            )
        index = beside(index, self.weight.data)
        # It may be changed before backward; on the host others than arrays share their memory too.
        vectors = take_rows(self.weight, index.copy() if on_host or index is given else index)
        if self.padding_idx is None:
            return vectors
        return mg.where((index == self.padding_idx)[..., None], vectors.detach(), vectors)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class LearnedPositions(Module):
    """A learned vector for each position, added: (..., T, d_model) -> (..., T, d_model) (Gehring et al., 2017).

    Raises ValueError for sizes below 1, and in forward for positions of ``max_len`` and more.

    Args:
        max_len: how many positions there are.
        d_model: width of the vectors.
        init, dtype, rng: as for :class:`Linear`.
    """

    def __init__(
        self,
        max_len: int,
        d_model: int,
        *,
        init: Callable[..., Any] = normal,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng = None,
    ) -> None:
        shape = integer("LearnedPositions", "max_len", max_len), integer("LearnedPositions", "d_model", d_model)
        weight = drawn("LearnedPositions", init, shape, rng, dtype)
        self.weight = mg.tensor(weight, dtype, requires_grad=True)

    def forward(self, x: mg.Tensor, start: int = 0) -> mg.Tensor:
        """``start`` is the position of the first vector."""
        x = as_tensor(x)
        return x + self.weight[_positions(self, x, start, self.weight.shape)]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class SinusoidalPositions(Module):
    """sin and cos of the position at geometrically spaced frequencies, added (Vaswani et al., 2017).

    At position t element 2i gets sin(t / 10000^(2i / d_model)) and element 2i + 1 the cosine of the same. No
    parameters. Raises ValueError for an odd ``d_model``, and in forward for positions of ``max_len`` and more.

    Args:
        max_len: how many positions there are.
        d_model: width of the vectors.
    """

    def __init__(self, max_len: int, d_model: int) -> None:
        cos, sin = _waves("SinusoidalPositions", max_len, "d_model", d_model)
        self.table = np.stack([sin, cos], axis=-1).reshape(max_len, d_model)

    def forward(self, x: mg.Tensor, start: int = 0) -> mg.Tensor:
        """``start`` is the position of the first vector."""
        x = as_tensor(x)
        positions = _positions(self, x, start, self.table.shape)
        out: mg.Tensor = x + _beside(x, self, "table")[positions]
        return out

    def extra_repr(self) -> str:
        return f"{self.table.shape[0]}, {self.table.shape[1]}"


class RotaryPositions(Module):
    """Queries and keys turned by angles that grow with their position: (..., T, head_dim) (Su et al., 2021).

    At position t the elements i and i + head_dim / 2 are turned, as one point of the plane, by the angle
    t / base^(2i / head_dim), so that products of queries and keys depend on the distance of their positions alone.
    (The pairing of GPT-NeoX and of LLaMA in Hugging Face's layout.) No parameters. Raises ValueError for an odd
    ``head_dim``, and in forward for positions of ``max_len`` and more.

    Args:
        max_len: how many positions there are.
        head_dim: width of the queries and keys of one head.
        base: larger ones make the slowest angles slower, for longer texts.
    """

    def __init__(self, max_len: int, head_dim: int, base: float = 10000.0) -> None:
        self.cos, self.sin = _waves("RotaryPositions", max_len, "head_dim", head_dim, base)  # (max_len, head_dim / 2)

    def forward(self, x: mg.Tensor, start: int = 0) -> mg.Tensor:
        """``start`` is the position of the first vector."""
        x = as_tensor(x)
        positions = _positions(self, x, start, (len(self.cos), 2 * self.cos.shape[1]))
        cos, sin = _beside(x, self, "cos"), _beside(x, self, "sin")
        return mg.rotate_halves(x, cos[positions], sin[positions])

    def extra_repr(self) -> str:
        return f"{self.cos.shape[0]}, {2 * self.cos.shape[1]}"


def _waves(layer: str, max_len: int, argument: str, width: int, base: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine, each (max_len, width / 2), of t / base^(2i / width)."""
    max_len, width = integer(layer, "max_len", max_len), integer(layer, argument, width)
    if width % 2:
        raise ValueError(f"{layer}: {argument} must be even, got {width}")
    if max_len < 1 or width < 1 or not base > 0:
        raise ValueError(f"{layer}: max_len, {argument} and base must be positive, got {max_len}, {width} and {base}")
    angles = np.arange(max_len)[:, None] / base ** (np.arange(0, width, 2) / width)
    return np.cos(angles), np.sin(angles)


def _positions(module: Module, x: mg.Tensor, start: int, shape: tuple[int, ...]) -> slice:
    """Where the positions of x lie in a table of this shape, (max_len, width)."""
    name, (max_len, width) = type(module).__name__, shape
    if x.ndim < 2 or x.shape[-1] != width:
        raise ValueError(f"{name}: expected (..., T, {width}), got shape {x.shape}")
    stop = start + x.shape[-2]
    if not 0 <= start <= stop <= max_len:
        raise ValueError(f"{name}: there are {max_len} positions, got {start} to {stop}")
    return slice(start, stop)


def _beside(x: mg.Tensor, module: Module, name: str) -> Any:
    """A table of the module in the dtype and on the device of x: on a GPU copied once, not in every step."""
    table = getattr(module, name)
    dtype = x.dtype if is_floating(x.dtype) else table.dtype
    if x.data.__class__ is np.ndarray:
        return table.astype(dtype, copy=False)
    copies = vars(module).setdefault("_copies", {})
    key = name, str(x.device), dtype
    if key not in copies or copies[key][0] is not table:
        copies[key] = table, beside(table.astype(dtype), x.data)
    return copies[key][1]
