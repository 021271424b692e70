"""A captured step: which of its recordings holds for a call, and what is done where none does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..tensor import Tensor
from .arrays import CaptureError, Recorder
from .recording import Diverged, Recording

PATIENCE = 4  # recordings in a row that did not hold for the next call


class Captured:
    """A step that is recorded when it is called, and replayed in later calls."""

    def __init__(self, step: Callable[..., Any], max_recordings: int = 8) -> None:
        if not callable(step):
            raise TypeError(f"capture: expected a function, got {step!r}")
        functools.update_wrapper(self, step)
        self._step = step
        self._max_recordings = max_recordings
        self._reasons: list[str] = []
        self.recordings: list[Recording] = []  # the latest first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if Recorder.active is not None:
            return self._step(*args, **kwargs)
        recordings = self.recordings
        if recordings and recordings[0].verified and recordings[0].holds(args, kwargs):
            return self._replay(recordings[0], args, kwargs)
        return self._search(args, kwargs)

    def _search(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        reasons = []
        for recording in self.recordings:
            reason = recording.why_not(args, kwargs)
            if reason is None:
                self.recordings.remove(recording)
                self.recordings.insert(0, recording)
                self._reasons.clear()
                if recording.verified:
                    return self._replay(recording, args, kwargs)
                return self._verify(recording, args, kwargs)
            reasons.append(reason)
        if reasons and reasons[0] != "the arguments":
            self._reasons.append(reasons[0])
        if len(self._reasons) >= PATIENCE:
            raise CaptureError(
                f"capture: {self._reasons[-1]} changes from call to call, so that no recording holds for the next one; "
                "let it be an argument, or change it outside of the step"
            )
        recording = Recording(self._step, args, kwargs)
        self.recordings.insert(0, recording)
        del self.recordings[self._max_recordings :]
        return recording.result

    def _replay(self, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return recording.replay(args, kwargs)
        except Diverged:
            return self._step(*args, **kwargs)

    def _verify(self, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The step itself, and beside it the replay from the same state: they have to agree bit for bit."""
        before = recording.snapshot()
        try:
            replayed = recording.replay(args, kwargs)
        except Diverged:
            return self._step(*args, **kwargs)
        after = recording.values()
        recording.restore(before)
        result = self._step(*args, **kwargs)
        expected = recording.values()
        different = [name for name in expected if not _same(after[name], expected[name])]
        if not _same(replayed, result):
            different.insert(0, "the result")
        if different:
            self.recordings.remove(recording)
            raise CaptureError(
                f"capture: a replay does not do what the step does: they differ in {', '.join(different[:5])}. The "
                "step depends on something that the recording does not see, such as an iterator, or random numbers and "
                "arrays that it can't reach; hand it to the step as an argument. (This call was done without capture.)"
            )
        recording.verified = True
        return _detached(result)

    @property
    def source(self) -> str:
        """The latest recording as Python."""
        if not self.recordings:
            raise CaptureError("capture: nothing has been recorded yet; call the step first")
        return self.recordings[0].source


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if value.__class__ in (tuple, list):
        return value.__class__([_detached(part) for part in value])
    if value.__class__ is dict:
        return {key: _detached(part) for key, part in value.items()}
    return value


def _same(x: Any, y: Any) -> bool:
    """Whether two results are equal, arrays bit for bit."""
    x, y = (z._data if z.__class__ is Tensor else z for z in (x, y))
    if isinstance(x, np.ndarray | np.generic):
        return (
            isinstance(y, np.ndarray | np.generic)
            and x.shape == y.shape
            and x.dtype == y.dtype
            and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        )
    if x.__class__ is not y.__class__:
        return False
    if isinstance(x, tuple | list):
        return len(x) == len(y) and all(map(_same, x, y))
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(_same(x[key], y[key]) for key in x)
    return bool(x == y)
