"""``capture``: a step recorded once and replayed as straight-line code on buffers that are made beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def capture(step: Callable[..., Any], max_recordings: int = 8) -> Any:
    """``step`` as a function that records what it does, and from then on only repeats it.

    See :class:`microgradnd.recording.captured.Captured`.
    """
    from .captured import Captured

    return Captured(step, max_recordings)
