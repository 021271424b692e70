"""Preparing data: arrays in, arrays out; and batches on their way to a device."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

import microgradnd as mg
from microgradnd import Tensor
from microgradnd.arguments import integer
from microgradnd.backends import NAMESPACES, as_array
from microgradnd.devices import default
from microgradnd.dtypes import is_numeric
from microgradnd.randomness import generator

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def one_hot(labels: npt.ArrayLike, num_classes: int | None = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Rows of zeros with a one at each label: (...) integers -> (..., num_classes).

    ``num_classes`` is one more than the largest label where it is None. Raises TypeError for labels that
    are no integers, ValueError for labels outside of 0 to num_classes - 1.
    """
    index: Any = as_array(labels.data if isinstance(labels, Tensor) else labels)
    if index.dtype.kind not in "iu":
        raise TypeError(f"one_hot: labels must be integers, got {index.dtype}")
    if num_classes is None:
        num_classes = max(int(index.max()) + 1, 1) if index.size else 0
    num_classes = integer("one_hot", "num_classes", num_classes)
    if index.size and not (index.min() >= 0 and index.max() < num_classes):
        raise ValueError(f"one_hot: labels must lie in 0 to {num_classes - 1}, got {index.min()} to {index.max()}")
    rows: Array = (index[..., None] == NAMESPACES[index.__class__].arange(num_classes)).astype(dtype)
    return rows


def standardize(train: npt.ArrayLike, *others: npt.ArrayLike) -> Any:
    """Every feature shifted and scaled by the mean and standard deviation that it has in ``train``.

    >>> X_train, X_test = nn.standardize(X_train, X_test)

    Args:
        train: (n, ...) rows from which the mean and the deviation are taken; a feature that is constant
            there is only shifted.
        others: arrays of the same features, for example the test set, which must not be looked at.

    Returns:
        The standardised training rows, or with ``others`` a tuple of all arrays; floating-point, float64
        for integers.

    Raises:
        ValueError: for no rows, and for features of another shape.
        TypeError: for masked arrays, and for what are no real numbers.
    """
    given: list[Any] = [x.data if isinstance(x, Tensor) else x for x in (train, *others)]
    arrays: list[Any] = [x if x.__class__ in NAMESPACES else np.asarray(x) for x in given]
    if any(isinstance(x, np.ma.MaskedArray) for x in (train, *others)):
        raise TypeError("standardize: got a masked array, whose mask would be lost; fill it first: x.filled(value)")
    if any(x.dtype.kind == "c" or not (is_numeric(x.dtype) or x.dtype.kind == "O") for x in arrays):
        raise TypeError(f"standardize: expected real numbers, got {', '.join(str(x.dtype) for x in arrays)}")
    try:
        arrays = [x if x.dtype.kind == "f" else x.astype(np.float64) for x in arrays]
    except ValueError as error:  # of objects
        raise TypeError(f"standardize: expected real numbers: {error}") from None
    if arrays[0].ndim == 0 or len(arrays[0]) == 0:
        raise ValueError(f"standardize: expected rows to take the mean of, got shape {arrays[0].shape}")
    for x in arrays[1:]:
        if x.shape[1:] != arrays[0].shape[1:] or x.ndim == 0:
            raise ValueError(f"standardize: features differ: shapes {arrays[0].shape} and {x.shape}")
    # Added up in float64: along the first axis NumPy adds row by row, which loses bits over millions of them.
    mean, std = arrays[0].mean(axis=0, dtype=np.float64), arrays[0].std(axis=0, dtype=np.float64)
    # The deviation of a constant is not 0 where its mean is rounded, as that of 1/3 is.
    constant = arrays[0].min(axis=0) == arrays[0].max(axis=0)
    std = np.where(constant | (std == 0), np.ones_like(std), std)
    scaled = tuple(((x - mean) / std).astype(x.dtype, copy=False) for x in arrays)
    return scaled if others else scaled[0]


def batches(
    X: Array, y: Array, batch_size: int, shuffle: bool = True, rng: Rng = None
) -> Iterator[tuple[Array, Array]]:
    """Mini-batches of rows of ``X`` and ``y``; the last one may be smaller.

    >>> rng = np.random.default_rng(0)
    >>> for epoch in range(10):
    ...     for X_batch, y_batch in nn.batches(X, y, 32, rng=rng):
    ...         ...

    With ``shuffle`` one permutation, ``rng.permutation(len(X))``, is drawn per call. Pass the same
    generator in every epoch: a seed gives the same order each time, None a new one.

    Raises ValueError, before the first batch, for different numbers of rows and for batch sizes below 1, and TypeError
    for a ``shuffle`` that is neither True nor False (1 and 0 are).
    """
    if not isinstance(shuffle, int | np.integer | np.bool_) or shuffle not in (True, False):
        raise TypeError(f"batches: shuffle must be True or False, got {shuffle!r}; a generator is rng=...")
    X, y = (x if hasattr(x, "dtype") and not hasattr(x, "iloc") else np.asarray(x) for x in (X, y))
    if len(X) != len(y):
        raise ValueError(f"batches: X has {len(X)} rows, y has {len(y)}")
    if integer("batches", "batch_size", batch_size) < 1:
        raise ValueError(f"batches: batch_size must be at least 1, got {batch_size}")
    order = generator(rng).permutation(len(X)) if shuffle else None
    return _slices(X, y, batch_size, order)


def prefetch(batches: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    """Each batch, a tuple of arrays, as tensors on the device of the ``with mg.device(...)`` block around.

    >>> with mg.device("cuda"):
    ...     for x, y in nn.prefetch(nn.batches(X, labels, 128, rng=rng)):
    ...         ...

    On a GPU the next batch is copied while the step with this one computes, through memory that the system does not
    move (pinned), on a stream of its own; arrays that lie there already are copied, too. On the host none is. Raises
    TypeError for batches that are mappings or arrays.
    """
    batches = map(_parts, batches)
    if default.current is None or default.current.type == "cpu":
        return (tuple(map(mg.tensor, batch)) for batch in batches)
    return _copied_ahead(batches)


def _parts(batch: Any) -> list[Any]:
    """The arrays of a batch."""
    if isinstance(batch, Mapping):
        raise TypeError(f"prefetch: expected tuples of arrays, got a mapping with {', '.join(map(str, batch))}")
    if hasattr(batch, "shape"):
        raise TypeError(f"prefetch: expected tuples of arrays, got an array of shape {batch.shape}; of one: (x,)")
    return [x.data if isinstance(x, Tensor) else x for x in batch]


def _copied_ahead(batches: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    under_way: deque[Any] = deque()  # pinned memory is not given back before it has been read

    def start(batch: Any) -> tuple[list[Any], Any]:
        """The copies, and the event after which they are there."""
        # What this stream gets from the pool may be a batch of before that a step still reads.
        stream.wait_event(cupy.cuda.get_current_stream().record())
        pinned = [x if isinstance(x, cupy.ndarray) else _pinned(cupy, np.asarray(x)) for x in batch]
        with stream:
            copies: list[Any] = [None if isinstance(x, cupy.ndarray) else cupy.empty(x.shape, x.dtype) for x in pinned]
        for i, x in enumerate(pinned):
            if copies[i] is None:
                copies[i] = x.copy()  # the source may write into it before its turn
            else:
                copies[i].set(x, stream=stream)
        there = stream.record()
        under_way.append((there, pinned))
        while under_way[0][0].done and len(under_way) > 1:
            under_way.popleft()
        return copies, there

    ahead = None
    try:
        for batch in itertools.chain(batches, [None]):
            now, ahead = ahead, None if batch is None else start(batch)
            if now is not None:
                copies, there = now
                cupy.cuda.get_current_stream().wait_event(there)
                yield tuple(map(mg.tensor, copies))
    finally:
        stream.synchronize()


def _pinned(cupy: Any, x: Any) -> Any:
    """A copy of x in memory that a GPU can read by itself."""
    memory = cupy.cuda.alloc_pinned_memory(max(1, x.nbytes))
    copy: Any = np.frombuffer(memory, x.dtype, x.size).reshape(x.shape)
    copy[...] = x
    return copy


def _slices(X: Array, y: Array, batch_size: int, order: Array | None) -> Iterator[tuple[Array, Array]]:
    for start in range(0, len(X), batch_size):
        stop = start + batch_size
        rows: Any = slice(start, stop) if order is None else order[start:stop]
        yield X[rows], y[rows]
