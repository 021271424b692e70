"""Timed comparisons, run by hand from the repository root: ``python -m tests.benchmarks [name ...]``.

Each prints medians, their spread and ratios, beside the bar that a figure is to be compared with; nothing
fails on a time, since that depends on what else the machine is doing. PyTorch and threadpoolctl are optional.
"""
