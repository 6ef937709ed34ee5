"""What may be heard of a run while it goes on: the one interface between dispatchers and those who only watch."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class WorkerInfo(Protocol):
    """What is known of a worker."""

    @property
    def number(self) -> int:
        """Unique in the executor's life."""

    @property
    def place(self) -> int:
        """Its place among those that run at a time, from 0 up."""

    @property
    def pid(self) -> int: ...

    @property
    def host(self) -> str: ...


class JobInfo(NamedTuple):
    """A job that works through files, as a worker."""

    number: int
    place: int
    pid: int = 0
    host: str = ""


class Observer:
    """Hears of what happens to the tasks of an executor. All methods are called by its dispatcher's thread.

    A task is known by its number. Its way is ``submitted`` [``ready``] (``died``)* ``ran``, or ``dropped`` at any point
    before. Methods must return quickly: thousands of tasks a second come this way.
    """

    def capacity(self, slots: int) -> None:
        """So many cores may be used at a time, from now on."""

    def submitted(self, task: int, name: str, slots: int) -> None:
        """A task has arrived that calls a function of this name and takes so many cores."""

    def ready(self, task: int) -> None:
        """The inputs that the task has waited for are there."""

    def ran(self, task: int, worker: WorkerInfo, start: float, seconds: float, succeeded: bool) -> None:
        """The function has returned or raised; it began at this moment of the worker's monotonic clock."""

    def died(self, task: int, worker: WorkerInfo, start: float, again: bool) -> None:
        """The worker has ended in the middle of the task, which is tried again or fails."""

    def dropped(self, task: int, succeeded: bool = False) -> None:
        """The task ends without having run: it was cancelled, its inputs failed, or its result was found in the cache.

        Tasks that have ended may be named too.
        """

    def worker_started(self, worker: WorkerInfo) -> None:
        """The process of a worker is being started."""

    def worker_gone(self, worker: WorkerInfo) -> None:
        """The process of a worker has ended."""

    def close(self) -> None:
        """The executor has ended."""


def timeline(filename: str | None, *, keep: bool) -> Observer | None:
    """The observer that writes a run to a file at its end; None without a file.

    Args:
        filename: the file; its ending is the format
        keep: whether workers run one task after the other

    Raises:
        ValueError: the ending stands for no format
        FileNotFoundError: the file's directory does not exist
    """
    if filename is None:
        return None
    from executorlib.task_scheduler.timeline import Timeline

    return Timeline(filename, keep=keep)
