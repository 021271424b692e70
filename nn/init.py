"""Initial weights by their published names: functions of ``(shape, rng, dtype)``, shape = (fan_in, fan_out).

Numbers are drawn in float64 on the host and converted afterwards, so that one seed gives the same weights
in every dtype and on every device. ``rng`` is a ``numpy.random.Generator``, which is advanced, or a seed;
None draws a new seed from the operating system.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from microgradnd.dtypes import as_dtype, is_floating
from microgradnd.randomness import generator

if TYPE_CHECKING:
    import numpy.typing as npt

    from microgradnd.randomness import Rng

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def normal(shape: tuple[int, ...], rng: Rng = None, dtype: npt.DTypeLike = np.float32, *, std: float = 1.0) -> Array:
    """Normal with standard deviation ``std``; ``functools.partial(normal, std=0.02)`` makes another initialiser."""
    return (generator(rng).standard_normal(shape) * std).astype(dtype)


def lecun_normal(shape: tuple[int, int], rng: Rng = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Normal with standard deviation 1 / sqrt(fan_in): unit variance is kept going forward (LeCun et al., 1998)."""
    return _normal(shape, math.sqrt(shape[0]), rng, dtype)


def lecun_uniform(shape: tuple[int, int], rng: Rng = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Uniform within +-sqrt(3 / fan_in) (LeCun et al., 1998)."""
    return _uniform(shape, math.sqrt(3 / shape[0]), rng, dtype)


def glorot_normal(shape: tuple[int, int], rng: Rng = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Normal with standard deviation sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return _normal(shape, math.sqrt((shape[0] + shape[1]) / 2), rng, dtype)


def glorot_uniform(shape: tuple[int, int], rng: Rng = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Uniform within +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    return _uniform(shape, math.sqrt(6 / (shape[0] + shape[1])), rng, dtype)


def he_normal(shape: tuple[int, int], rng: Rng = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Normal with standard deviation sqrt(2 / fan_in), made for the rectifier (He et al., 2015)."""
    return _normal(shape, math.sqrt(shape[0] / 2), rng, dtype)


def he_uniform(shape: tuple[int, int], rng: Rng = None, dtype: npt.DTypeLike = np.float32) -> Array:
    """Uniform within +-sqrt(6 / fan_in), made for the rectifier (He et al., 2015)."""
    return _uniform(shape, math.sqrt(6 / shape[0]), rng, dtype)


def _normal(shape: tuple[int, int], divisor: float, rng: Rng, dtype: npt.DTypeLike) -> Array:
    return (generator(rng).standard_normal(shape) / divisor).astype(dtype)


def _uniform(shape: tuple[int, int], bound: float, rng: Rng, dtype: npt.DTypeLike) -> Array:
    return generator(rng).uniform(-bound, bound, shape).astype(dtype)


def drawn(name: str, init: Callable[..., Any], shape: tuple[int, ...], rng: Rng, dtype: npt.DTypeLike) -> Any:
    """An array of initial values for the layer ``name``.

    Raises ValueError for sizes below 1 and for other shapes, TypeError for dtypes that are not floating-point.
    """
    if not is_floating(as_dtype(dtype)):
        raise TypeError(f"{name}: dtype must be floating-point, got {as_dtype(dtype)}")
    if min(shape) < 1:
        raise ValueError(f"{name}: sizes must be at least 1, got {' and '.join(map(str, shape))}")
    values = init(shape, rng, dtype)
    if np.shape(values) != shape:
        raise ValueError(f"{name}: init gave the shape {np.shape(values)}, expected {shape}")
    return np.array(values)
