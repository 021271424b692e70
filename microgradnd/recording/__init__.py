"""``capture``: a step recorded once and replayed as straight-line code on buffers that are made beforehand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from .active import CaptureError

if TYPE_CHECKING:
    from .captured import Captured

__all__ = ["CaptureError", "capture"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def capture(step: Callable[P, R], max_recordings: int = 8, graph: bool = False) -> Captured[P, R]: ...


@overload
def capture(*, max_recordings: int = 8, graph: bool = False) -> Callable[[Callable[P, R]], Captured[P, R]]: ...


def capture(step: Any = None, max_recordings: int = 8, graph: bool = False) -> Any:
    """``step`` as a function that records what it does to arrays, and from then on only repeats it.

    >>> @mg.capture
    ... def step(X, y):
    ...     optimizer.zero_grad()
    ...     loss = nn.cross_entropy(model(X), y)
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss

    With settings: ``@mg.capture(max_recordings=20)``.

    The first calls run the step itself and record it: all that it does to arrays, forward, backward and update. Later
    calls run a straight line of NumPy's functions that does the same, with memory for all but large results planned
    beforehand, elementwise operations in a row on large arrays done in blocks that stay in the cache, and compiled
    kernels in a row on small ones done by one call; what is neither returned nor left anywhere is not computed.
    ``print(step.source)`` shows it. On a GPU these are CuPy's functions: a replay launches no more kernels than the
    step itself, and copies nothing but what the step copies from the host. Parameters, optimisers, gradients and random
    generators are changed as by the step itself, bit for bit: before a recording is trusted, its first replay is
    compared with the step.

    Args:
        step: any function of arrays, constant tensors, numbers, and lists, tuples and dicts of these; it may use and
            change whatever it can reach. Its results are constants: no gradient flows through them. What a replay
            computes is an array of its own, also where the step returns a gradient; an array that was there before is
            returned as it is.
        max_recordings: how many recordings are kept, for other shapes and dtypes, modes of layers, and settings. Where
            calls are of more kinds, those without a recording run the step itself, with a warning.
        graph: on a GPU, launch all of a replay at once, as a CUDA graph: for steps on CuPy arrays without numbers that
            change (learning rates, step counts, random numbers), such as predictions, or a loss and its gradients
            without dropout and the optimiser's step; others are refused. Experimental: no test has run it on a GPU.

    A replay is valid as long as everything that the step's functions name, and what can be reached from there, is what
    it was in the recording; this is looked at before each replay. The values of arrays, learning rates and floats among
    the arguments are read anew. What has changed is recorded anew, and where nothing holds for the next call that is
    refused. A branch on the value of a tensor (``if loss < 1:``) is looked at in each replay, and the step itself runs
    where it goes another way; after the first update of parameters it is refused.

    Not looked at: what the world outside of the program says, such as a file; functions of Python's library, NumPy and
    microgradnd that are replaced (``mg.relu = f``); what is in objects of other libraries and of ctypes and
    multiprocessing, such as PyTorch's tensors; results that a cache (``lru_cache``) has dropped or is given later;
    locks and events; weak references to what nobody else holds any more; weak proxies; iterators of itertools and over
    ``array.flat``; attributes of objects that are numbers, strings or arrays too; values of enumerations; which arrays
    among the arguments are one (``k is q``), may be written to, or lie in another's memory; what ``eval`` runs in
    variables of its own; modules that are found by ``import_module`` or ``sys.modules``; contexts of ``decimal``; what
    C code compares or shows of objects, as ``namespace == other``; what NumPy warns of where the step itself has an
    ``np.errstate`` somewhere; names that are put together at run time (``getattr(o, "a" + "b")`` is seen, of a module
    it is not; an ``operator.attrgetter`` made elsewhere and ``"{0.a}".format(o)`` are not); what stands for arrays and
    numbers while a call is recorded, for who asks by ``type`` under another name (``builtins.type``, ``t=type``), or by
    ``hasattr`` for ``value``, ``variable`` and special names. While a call is recorded, other threads can't compute
    with what it reaches.

    Raises:
        CaptureError: for what can't be replayed: the value of a tensor as a Python number (``loss.item()``, ``print``),
            values that change from call to call (``schedule.step()`` counts: call it after the step), branches on
            values, and shapes that depend on them (``x[mask]``), after an update, random numbers and arrays that a
            recording does not see, attributes of arrays and methods of numbers that are not recorded (``x.real``,
            ``k.is_integer()``), arguments that require a gradient, kernels for CuPy arrays that are not recorded,
            arrays on another GPU than CuPy's current one, arrays of the step that ``lru_cache`` with a limit keeps
            while a call is recorded.
        TypeError: for what is no function, and for generator and coroutine functions.
        ValueError: for ``max_recordings`` below 1.
    """
    from .captured import Captured

    if step is None:
        return functools.partial(Captured, max_recordings=max_recordings, graph=graph)
    return Captured(step, max_recordings, graph)
