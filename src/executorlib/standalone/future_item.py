"""A reference to the result of another task, by its file: what stands in a task's input for a future.

executorlib 1.11 pickles an object of the class ``executorlib.task_scheduler.file.shared.FutureItem`` there, with the
state ``{"_file_name": ..., "_selector": ...}``. The pickle is part of a task's key, so both are kept.
"""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_outcome import Outcome, read_outcome

HOME = "executorlib.task_scheduler.file.shared"
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0


class FutureItem:
    """The result of a task, or an item of it, in the cache.

    Args:
        file_name: path of the task's output file
        selector: key or index of an item of the result; None for the whole
    """

    def __init__(self, file_name: str, selector: int | str | None = None) -> None:
        self._file_name = file_name
        self._selector = selector

    @property
    def file_name(self) -> str:
        """Path of the task's output file."""
        return self._file_name

    @property
    def selector(self) -> int | str | None:
        """Key or index of an item of the result; None for the whole."""
        return self._selector

    def __repr__(self) -> str:
        return f"FutureItem({self._file_name!r}, {self._selector!r})"

    def done(self) -> bool:
        """Whether the task has ended."""
        return os.path.exists(self._file_name)

    def result(self) -> Any:
        """The task's result.

        Raises:
            FileNotFoundError: the task has not ended
            CacheFileError: its file cannot be read
            Exception: what the task has raised
        """
        return self._of(read_outcome(self._file_name))

    def _of(self, outcome: Outcome) -> Any:
        if not outcome.succeeded:
            raise outcome.value
        return outcome.value if self._selector is None else outcome.value[self._selector]

    def _wait(self, seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        while not self.done() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        try:
            outcome = read_outcome(self._file_name)
        except (FileNotFoundError, CacheFileError) as error:
            raise MissingInputError(f"the result of {self._file_name} cannot be read: {error!r}") from error
        return self._of(outcome)


class MissingInputError(RuntimeError):
    """The file with the result of another task is not there, or cannot be read."""


FutureItem.__module__ = HOME


def resolve(args: Any, kwargs: Any, seconds: float) -> tuple[Any, Any]:
    """Arguments with results in the places of references, wherever these stand.

    Args:
        args: positional arguments
        kwargs: keyword arguments
        seconds: how long to wait for a file that a network file system does not show yet

    Raises:
        MissingInputError: the file of a task is not there, or cannot be read
        Exception: what a task has raised
    """
    return substituted(args, kwargs, lambda item: item._wait(seconds))


def substituted(args: Any, kwargs: Any, substitute: Callable[[FutureItem], Any]) -> tuple[Any, Any]:
    """Copies of arguments with something else in the places of references, wherever these stand.

    Args:
        args: positional arguments
        kwargs: keyword arguments
        substitute: called with each reference
    """
    import cloudpickle

    items: list[FutureItem] = []
    buffers: list[pickle.PickleBuffer] = []

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> int | None:
            if type(obj) is not FutureItem:
                return None
            items.append(obj)
            return len(items) - 1

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: int) -> Any:
            return values[pid]

    stream = io.BytesIO()
    Pickler(stream, protocol=5, buffer_callback=buffers.append).dump((args, kwargs))
    values = [substitute(item) for item in items]
    stream.seek(0)
    found: tuple[Any, Any] = Unpickler(stream, buffers=buffers).load()
    return found
