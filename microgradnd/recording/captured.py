"""A captured step: which of its recordings holds for a call, and what is done where none does."""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar, cast

import numpy as np

from ..arguments import integer
from ..backends.memory import give_back_freed_memory
from ..kernels import kernels
from ..noting import noting_once
from .active import CaptureError, active, is_recording
from .comparing import State, differences, fingerprints
from .guard import MISSED, generators_in, layout, leaves
from .recording import ARGUMENTS, PARTED, UNEQUAL, Diverged, Recording
from .results import detached
from .saving import save
from .scout import Executed, uncollected
from .session import Session

P = ParamSpec("P")
R = TypeVar("R")

OFTEN = 50  # calls that went another way
PAYS = 500  # replays, for which another recording may be dropped
PATIENCE = 8  # recordings in a row that did not hold for the next call


class Captured(Generic[P, R]):
    """A step that is recorded when it is called, and replayed in later calls: see :func:`microgradnd.capture`.

    Attributes:
        recordings: the latest first; each has its ``source``, how many ``calls`` it replayed, and whether it was
            ``verified``.
        max_recordings: how many are kept.
        graph: whether replays are CUDA graphs.
    """

    def __init__(self, step: Callable[P, R], max_recordings: int = 8, graph: bool = False) -> None:
        if not callable(step) or isinstance(step, type):
            raise TypeError(f"capture: expected a function, got {step!r}")
        kinds = isgeneratorfunction, iscoroutinefunction, isasyncgenfunction
        if any(is_kind(x) for is_kind in kinds for x in (step, type(step).__call__)):
            raise TypeError(f"capture: {step!r} is a generator or coroutine function, which runs after the call")
        max_recordings = integer("capture", "max_recordings", max_recordings)
        if max_recordings < 1:
            raise ValueError(f"capture: max_recordings must be at least 1, got {max_recordings}")
        functools.update_wrapper(self, step)
        self.recordings: list[Recording] = []
        self.max_recordings = max_recordings
        self.graph = graph
        self._step = step
        self._latest: Recording | None = None  # verified, and what held for the last call
        # Why the last recordings did not hold for the next call of their kind, and that kind: what changes once leaves
        # a reason for each kind of calls.
        self._reasons: list[tuple[Any, str]] = []
        self._lock = threading.RLock()  # buffers serve one call at a time
        self._executed: Executed | None = None  # what of the program it runs, once it has run
        self._once = False  # whether the last call was expected to do what the next one does not
        self._is_searching = False
        self._dropped = self._dropped_calls = 0  # recordings that had to make room, and how often they were replayed
        self._steady = 0  # calls in a row of one kind that were not recorded
        self._latest_call: Any = None
        self._warned = False
        self._merge = True  # whether equal step counts of an optimiser are read once for all of its parameters
        self._key = ""  # of a method: under which an object keeps its own

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if active.recorder is not None and is_recording():  # part of another step; the first half is sooner asked
            return self._itself(args, kwargs)
        with self._lock:
            latest = self._latest
            if (
                latest is not None
                and len(kwargs) == len(latest.keywords)
                and not (latest.in_order and tuple(kwargs) != latest.keywords)
            ):
                try:
                    values = (*args, *map(kwargs.__getitem__, latest.keywords)) if kwargs else args
                    result = latest.attempt(*values)
                except Exception as error:
                    if latest.failed_at(error) is not None:  # else other arguments, or something was deleted
                        return self._otherwise(latest, error, args, kwargs, stacklevel=3)
                else:
                    if result is not MISSED:
                        return result  # type: ignore[no-any-return]
            if self._is_searching:  # a step that calls itself
                return self._itself(args, kwargs)
            try:
                self._is_searching = True
                return self._search(args, kwargs)
            finally:
                self._is_searching = False

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_captured {owner.__qualname__}.{name}"  # a subclass may have one of the same name

    def _find_name(self, owner: type) -> None:
        """Of a method that was given to a class after its body: C.step = mg.capture(C.step)."""
        names = [(kind, name) for kind in owner.__mro__ for name, x in vars(kind).items() if x is self]
        self.__set_name__(*(names[0] if names else (owner, getattr(self._step, "__qualname__", "step"))))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method: a captured step for each object, kept among its attributes."""
        if instance is None:
            return self
        if isinstance(instance, type):  # of a class method: the class is an argument
            return MethodType(self, instance)
        if not hasattr(instance, "__dict__"):
            raise TypeError(f"capture: a {type(instance).__name__} has no attributes, to keep its captured step in")
        if not self._key:
            self._find_name(type(instance))
        found = instance.__dict__.get(self._key)
        if found is None or found._step.__self__ is not instance:  # that of the object that this is a copy of
            method: Any = MethodType(self._step, instance)
            found = instance.__dict__[self._key] = Captured(method, self.max_recordings, self.graph)
            found._key = self._key
        return found

    def __reduce__(self) -> Any:
        """Copied and pickled without what was recorded; by its name, where that is what a decorator gave it."""
        if isinstance(self._step, MethodType) and self._key:
            return _of_object, (self._step.__self__, self._key)
        found: Any = sys.modules.get(self.__module__)
        name: str = getattr(self, "__qualname__", "")
        for part in name.split("."):
            found = getattr(found, part, None)
        return name if found is self else (Captured, (self._step, self.max_recordings, self.graph))

    def __repr__(self) -> str:
        calls = ", ".join(f"{recording.calls} replays" for recording in self.recordings)
        return f"<captured {getattr(self._step, '__name__', self._step)}: {calls or 'nothing recorded so far'}>"

    @property
    def source(self) -> str:
        """The latest recording as Python: buffers, then the function.

        Raises CaptureError before anything has been recorded, which the second call does at the earliest.
        """
        return self._recorded().source

    def save(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the latest recording as a module, ``path``, that needs NumPy alone, and its arrays to ``.npz`` beside.

        The module's ``step`` goes on from the parameters, optimiser state and random generators of this moment, takes
        the arguments of this one, of lists and dicts what is in them, one by one, refuses arrays of another shape or
        dtype (ValueError), and returns arrays. Where the recording calls compiled kernels, hand over the arguments of a
        call too, under the same settings: the step runs with them three times, to be recorded with NumPy's functions,
        and what it changes is put back; else they are not looked at. Raises CaptureError without them, and where the
        call is unlike the recorded one.
        """
        recording = self._recorded()
        if recording.kernels and (args or kwargs or not recording.parameters):
            recording = self._recorded_with_numpy(recording, args, kwargs)
        recording.take_arrays()
        save(recording, path)

    def _recorded_with_numpy(self, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """A recording, without compiled kernels, of a call for which this one holds; all is as it was before."""
        with self._lock:
            reason = recording.why_not(args, kwargs)
            if reason is not None:
                raise CaptureError(f"save: this call is unlike the recorded one in {reason}")
            before = State(recording, leaves(*args, *kwargs.values()))
            other: Captured[..., Any] = Captured(self._step)
            with kernels("numpy"):
                try:
                    for _ in range(3):  # seen, recorded, and compared
                        other(*args, **kwargs)
                finally:
                    before.put_back()
            if not (other.recordings and other.recordings[0].verified):
                raise CaptureError("save: with NumPy's functions the step is another one in each of three calls")
            return other.recordings[0]

    def _recorded(self) -> Recording:
        if not self.recordings:
            raise CaptureError("capture: nothing has been recorded yet; call the step twice first")
        return self._latest or self.recordings[0]

    def _search(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """The result by the recording that holds, by a new one where none does."""
        self._latest = None
        reasons, kind = [], layout(args, kwargs)
        for recording in self.recordings:
            reason = recording.why_not(args, kwargs)
            if reason is None:
                self.recordings.remove(recording)
                self.recordings.insert(0, recording)
                self._reasons = [entry for entry in self._reasons if entry[0] != kind]
                self._once = False
                with uncollected():  # or what replay and step are compared by might change in between
                    return self._first_replay(recording, args, kwargs)
            if reason == UNEQUAL:
                self._merge = False
            elif reason == PARTED and recording.verified and not self._once:
                # The optimiser copies what was loaded, once: to record that would take 100 times as long as the call.
                self._once = True
                return self._itself(args, kwargs)
            elif reason != ARGUMENTS:
                reasons.append(reason)
        if self._runs_without_capture(kind):
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"capture: {self._dropped} recordings were dropped for others, since {self.max_recordings} are "
                    "kept and there are more kinds of calls: by shapes, by an integer, a string or an object among "
                    "the arguments, or by settings such as model.training. Those without a recording run without "
                    "capture now; keep more, by max_recordings, or let there be fewer kinds",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return self._itself(args, kwargs)
        if sum(entry[0] == kind for entry in self._reasons) + bool(reasons) >= PATIENCE:
            reason = reasons[0] if reasons else self._reasons.pop()[1]
            raise CaptureError(
                f"capture: {reason} changes from call to call, so that no recording holds for the next one. Let it be "
                "an argument, or change it where the step does not look at it; state that is a tensor can be kept by "
                "t.data = ..."
            )
        if self._executed is None:
            self._executed = Executed(self._step)
            with uncollected(), self._executed.noted():  # not recorded: it is not known yet what it may look at
                return self._itself(args, kwargs)
        give_back_freed_memory()  # freed parts of other sizes lie between those that this call needs
        session = Session(self._step, args, kwargs, self._executed, self._merge)
        if reasons:  # now, since a call that raises tells nothing of the next one
            self._reasons.append((kind, reasons[0]))
        if session.once and not self._once:
            self._once = True  # should the next call do it too, that is what the step does
        elif session.left_at is not None:  # an optimiser's first step, or what is never repeated
            self._reasons.append((kind, session.left_at))
        elif not session.met_functions:
            self._once = False
            self.recordings.insert(0, Recording(session, self.graph))
            for recording in self.recordings[self.max_recordings :]:
                self._dropped += 1
                self._dropped_calls += recording.calls
            del self.recordings[self.max_recordings :]
        return cast("R", detached(session.result))

    def _runs_without_capture(self, kind: Any) -> bool:
        """Whether another recording would not pay: it costs as much as some 100 calls, and drops one that may be used.

        One is made in any case for the third call in a row of one kind.
        """
        replayed = self._dropped_calls + sum(recording.calls for recording in self.recordings)
        if len(self.recordings) < self.max_recordings or self._dropped < self.max_recordings + replayed // PAYS:
            return False
        call = kind, replayed  # in a row: nothing was replayed in between
        self._steady = self._steady + 1 if call == self._latest_call else 0
        self._latest_call = call
        return self._steady < 2

    def _first_replay(self, recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """A replay after something else: verified if it is the first one at all."""
        given = leaves(*args, *kwargs.values())
        generators = [*recording.generators, *generators_in(given)]
        parts = recording.reach, generators, [x for x in given if not isinstance(x, np.random.Generator)]
        if recording.verified:
            before = None
        else:
            before = State(recording, given)
            give_back_freed_memory()  # what the recorded call took: a replay has buffers of its own
        try:
            replayed = recording.replay(recording.arrays(args, kwargs))
        except Exception as error:
            if before is not None:
                before.put_back()
            return self._otherwise(recording, error, args, kwargs, before is not None, stacklevel=5)
        recording.set_gradients()
        self._latest = recording
        if before is None:
            return cast("R", replayed)
        found = fingerprints(*parts, replayed)
        before.put_back()
        del before, replayed
        recording.release()  # the step takes memory too
        give_back_freed_memory()
        with noting_once() as done_once:
            result = self._itself(args, kwargs)
        if recording.once and not done_once:  # the step did so twice, such as after two loads, and does so no more
            self.recordings.remove(recording)
            self._latest = None
            return result
        if different := list(differences(found, fingerprints(*parts, result))):
            self.recordings.remove(recording)
            self._latest = None
            raise CaptureError(
                f"capture: a replay does not do what the step does: they differ in {', '.join(different[:5])}. The "
                "step depends on something that the recording does not see, such as an iterator, or random numbers and "
                "arrays that it can't reach; hand it to the step as an argument. (This call was done without capture.)"
            )
        recording.verified = True
        give_back_freed_memory()  # replays take less
        return result

    def _itself(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """The result of the step itself, without capture."""
        return cast("R", detached(self._step(*args, **kwargs)))

    def _otherwise(
        self,
        recording: Recording,
        error: Exception,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        is_put_back: bool = False,
        *,
        stacklevel: int,
    ) -> R:
        """The step itself, where a replay came to another branch or failed, and all is as it was before."""
        if isinstance(error, Diverged):
            recording.diverged += 1
            if recording.diverged == OFTEN and recording.calls < OFTEN:
                warnings.warn(
                    f"capture: of {OFTEN + recording.calls} calls {OFTEN} took another way than the recording: a "
                    "branch on a tensor's value, a number asked for by float(), or a shape that depends on values, as "
                    "that of x[mask], is another one nearly every time",
                    RuntimeWarning,
                    stacklevel,
                )
            return self._itself(args, kwargs)
        line = recording.failed_at(error)
        if line is not None and (is_put_back or not recording.had_changed(line)):
            result = self._itself(args, kwargs)  # most likely raises an error that says what is wrong
            self._latest = None
            self.recordings.remove(recording)
            warnings.warn(f"capture: a replay failed and is recorded anew: {error!r}", RuntimeWarning, stacklevel)
            return result
        error.add_note("(in a replay of a captured step, which had changed some of what it changes)")
        raise error


def _of_object(instance: Any, key: str) -> Any:
    """The captured method of an object that it keeps under ``key``."""
    methods = (x for kind in type(instance).__mro__ for x in vars(kind).values() if isinstance(x, Captured))
    return next(x for x in methods if x._key == key).__get__(instance)
