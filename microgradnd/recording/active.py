"""The recording that is being made, and what ``capture`` raises, which it is told of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recorder import Recorder


class CaptureError(RuntimeError):
    """A step can't be recorded, or its recording does not repeat what the step does."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if is_recording() and active.recorder is not None and active.recorder.trouble is None:
            active.recorder.trouble = self  # also where the step catches it


class _Active:
    recorder: Recorder | None = None


active = _Active()


def recorder() -> Recorder:
    """The active recorder."""
    if active.recorder is None:
        raise CaptureError(
            "capture: this array belongs to a step that was recorded before; a captured step hands out what it returns"
        )
    return active.recorder


def is_recording() -> bool:
    """Whether a step is being recorded by this thread."""
    return active.recorder is not None and active.recorder.is_this_thread()
