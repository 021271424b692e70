"""Every operation and what is true of it: one row per operation, from which tests/test_ops.py derives its properties.

A row gives an independent reference in NumPy, sample arguments, and PyTorch's counterpart. Adding an
operation is adding a row to the file of its family; a test fails while one is missing.
"""

from . import arithmetic, attention, elementwise, indexing, linalg, losses, normalization, reductions, shaping
from .rows import BROADCASTING, ELEMENTWISE, Op, Sample

OPS = (
    *arithmetic.OPS,
    *elementwise.OPS,
    *normalization.OPS,
    *attention.OPS,
    *reductions.OPS,
    *shaping.OPS,
    *indexing.OPS,
    *linalg.OPS,
    *losses.OPS,
)

__all__ = ["BROADCASTING", "ELEMENTWISE", "OPS", "Op", "Sample"]
