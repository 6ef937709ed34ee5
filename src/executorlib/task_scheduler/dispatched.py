"""Schedulers with a dispatcher: a thread that does the work, and ends with the program and with the executor."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from executorlib.task_scheduler.base import TaskSchedulerBase
from executorlib.task_scheduler.tally import Tally


class Dispatching(Protocol):
    """What is asked of a dispatcher here."""

    @property
    def thread(self) -> threading.Thread: ...

    def open_futures(self) -> set[int]: ...

    def cancel_waiting(self, provided: set[int]) -> None: ...

    def after_fork(self) -> None: ...

    def tally(self) -> Tally: ...


class DispatchedScheduler(TaskSchedulerBase):
    """A scheduler that belongs to the process that made it, and whose tasks are finished at its end.

    Args:
        dispatcher: does the work; its thread does not hold the scheduler
        forgotten: called when the scheduler has no users any more: its tasks end, and then the dispatcher
        progress: whether a bar is shown
    """

    def __init__(self, dispatcher: Dispatching, forgotten: Callable[[], object], *, progress: bool) -> None:
        self._closed = False
        self._owner = os.getpid()
        self._ended = dispatcher
        self._progress = None
        if progress:
            from executorlib.task_scheduler.progress import Progress

            self._progress = Progress(dispatcher)
        self._finalizer = weakref.finalize(self, forgotten)
        self._finalizer.atexit = False
        _running.add(self)

    @abstractmethod
    def finish(self) -> None:
        """At the end of the program: do no more than what was submitted; does not wait."""

    def _end(self, how: Callable[[], object], wait: bool) -> None:
        self._closed = True
        if self._owner != os.getpid():
            return
        how()
        if wait:
            self._join()

    def _join(self) -> None:
        if self._owner == os.getpid() and threading.current_thread() is not self._ended.thread:
            self._ended.thread.join()
            if self._progress is not None:
                self._progress.join()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._owner != os.getpid():
            raise RuntimeError(
                "This executor belongs to the process that made it, not to one forked from it: "
                "make a new executor here."
            )


_running: weakref.WeakSet[DispatchedScheduler] = weakref.WeakSet()


def _end_all() -> None:
    """At the end of the program its tasks are finished, as with the executors of the standard library.

    Tasks that wait for a future which no executor will end are cancelled. After Ctrl-C all are ended: whoever pressed
    it wants the end now.
    """
    schedulers = [scheduler for scheduler in list(_running) if scheduler._owner == os.getpid()]
    if getattr(sys, "last_type", None) is KeyboardInterrupt:
        for scheduler in schedulers:
            scheduler.terminate_workers()
        return
    provided = set[int]().union(*(scheduler._ended.open_futures() for scheduler in schedulers))
    for scheduler in schedulers:
        scheduler._ended.cancel_waiting(provided)
        scheduler.finish()
    for scheduler in schedulers:
        scheduler._join()


def _after_fork() -> None:
    for scheduler in list(_running):
        scheduler._ended.after_fork()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
