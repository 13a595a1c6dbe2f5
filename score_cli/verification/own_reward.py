"""A user's own reward function, on its side of the wall: loaded and called here, in a process that may be killed.

Nothing but a worker of `own_grader` calls this module.
"""

import asyncio
import contextlib
import functools
import hashlib
import importlib
import inspect
import numbers
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Reward = Callable[[dict[str, Any], str], Any]


class OwnRewardError(Exception):
    """The function cannot be had, or has given no reward; says why."""


@functools.cache
def load(name: str, source: bytes | None) -> Reward:
    """The function that a name stands for.

    Args:
        name: `FILE.py:FUNCTION` or `package.module:function`.
        source: what stands in the file; None for a module.
    Raises:
        OwnRewardError: there is no such function, or it does not take a problem and a response.
    """
    place, _, attribute = name.rpartition(":")
    try:
        module = importlib.import_module(place) if source is None else _run_file(place, source)
    except BaseException as error:  # the user's own code may raise anything while it is imported
        raise OwnRewardError(f"importing {place} raised {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        names = [key for key in own if callable(getattr(module, key))]
        raise OwnRewardError(f"{place} has no function {attribute}; it has {', '.join(names) or 'none'}")
    with contextlib.suppress(ValueError):  # a builtin tells nothing of its parameters
        try:
            inspect.signature(found).bind({}, "")
        except TypeError as error:
            raise OwnRewardError(f"{attribute} cannot be called as {attribute}(problem, response): {error}") from error
    return found  # type: ignore[no-any-return]


def _run_file(place: str, source: bytes) -> types.ModuleType:
    """A file as a module that can import its neighbours; the text is the one that was hashed."""
    path = Path(place)
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    sys.path.insert(0, str(path.parent))
    sys.modules[path.stem] = module
    exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    return module


def prepare(name: str, source: bytes | None) -> str | None:
    """Load the function; the sha256 of its module's source, where that can be read."""
    function = load(name, source)
    if source is not None:
        return hashlib.sha256(source).hexdigest()
    module = sys.modules[name.rpartition(":")[0]]
    file = getattr(module, "__file__", None) or inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def grade_one(name: str, source: bytes | None, problem: Mapping[str, Any], response: str) -> float:
    """The reward of one response, from 0 to 1.

    Raises:
        OwnRewardError: the function gave something else, or raised an exception.
        MemoryError, BaseException: from the function, where no `Exception`.
    """
    function = load(name, source)
    try:
        value = function(dict(problem), response)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
    except MemoryError:
        raise
    except Exception as error:
        raise OwnRewardError(f"{_line(name, error)}{type(error).__name__}: {error}") from error
    if value is None:
        raise OwnRewardError("returned None")
    number = _number(value)
    if number is None:
        raise OwnRewardError(f"returned {type(value).__name__}, expected a bool or a number from 0 to 1")
    if not 0.0 <= number <= 1.0:
        raise OwnRewardError(f"returned {number:g}, expected a number from 0 to 1")
    return number


def _line(name: str, error: Exception) -> str:
    """The line of the function's file that an exception came from, if that is known, and a colon."""
    place = name.rpartition(":")[0]
    file = getattr(sys.modules.get(place), "__file__", place)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(Path(file))]
    return f"{Path(file).name} line {lines[-1]}: " if lines else ""


def _number(value: Any) -> float | None:
    """A bool, a number, or what arrays call a scalar, as a float; None for anything else."""
    if isinstance(value, numbers.Real):
        return float(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", 0) == 0:
        inner = item()
        return float(inner) if isinstance(inner, numbers.Real) else None
    return None
