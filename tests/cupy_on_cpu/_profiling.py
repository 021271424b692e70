"""What is C on a device, hidden from Python's profilers."""

import functools
import sys
from collections.abc import Callable
from typing import Any

__name__ = "cupy"  # what a profiler takes the function below to be part of


def unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of which a profiler sees this call alone."""

    get, put = sys.getprofile, sys.setprofile  # held here, for calls while the interpreter ends

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        profiler = get()
        put(None)
        try:
            return function(*args, **keywords)
        finally:
            put(profiler)

    return call
