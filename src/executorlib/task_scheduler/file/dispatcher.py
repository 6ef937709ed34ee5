"""The thread that owns the tasks of an executor that works through files.

    inbox ──► admit ──┬── the same call is under way: its future joins
      ▲               ├── <key>_o.h5 is there: done
      │               └── <key>_i.h5 is written ──► inputs done? ──► JobLauncher ──► job
      │                                                                  │            │
      └── submit, input done, cancel, shutdown        OutputWatch ◄── its end     <key>_o.h5
                                                           └──► Future.set_result

Other threads only append to the inbox and wake it, so that nothing here needs a lock. It sleeps in one place, over the
launcher, its wake-up socket and the nearest deadline.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

from executorlib.task_scheduler.file.launcher import JobLauncher
from executorlib.task_scheduler.file.task import FileFuture, FileTask
from executorlib.task_scheduler.file.tasks import FileTasks
from executorlib.task_scheduler.inbox import Inbox
from executorlib.task_scheduler.observer import Observer
from executorlib.task_scheduler.tally import Tally

_LOG = logging.getLogger("executorlib")
# Processes whose tasks have ended get so long to end too; then they are left to themselves.
_LAST_SECONDS = 5.0
# Between submissions there is a look at what runs after such a time.
_LOOK_SECONDS = 0.1


class FileDispatcher:
    """The tasks of an executor and the thread that moves them on.

    Methods without an underscore may be called from any thread.

    Args:
        launcher: runs the jobs, from now on only for this dispatcher
        refresh_rate: shortest pause between two looks into the cache directory, in seconds
        observer: hears of what happens
    """

    def __init__(self, launcher: JobLauncher, refresh_rate: float, observer: Observer | None = None) -> None:
        self._launcher = launcher
        self._inbox: Inbox[FileTask | Sequence[FileTask]] = Inbox()
        self.post = self._inbox.post  # a task or several, or something to do in the dispatcher's thread
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox.reader, selectors.EVENT_READ)
        if (descriptor := launcher.fileno()) is not None:
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._tasks = FileTasks(self, launcher, refresh_rate, observer)
        self._closing = False
        self._cancelling = False  # set by other threads, never taken back
        self._looked_at = 0.0
        self._closed_at: float | None = None
        self._fatal: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="executorlib-files", daemon=True)
        self.thread.start()

    # From any thread

    def waiting(self) -> list[FileFuture]:
        """The futures of the tasks whose jobs have not begun."""
        return self._ask(self._tasks.waiting)

    def _ask(self, question: Callable[[], list[FileFuture]]) -> list[FileFuture]:
        """Have something answered in the dispatcher's thread."""
        if threading.current_thread() is self.thread:
            return question()
        answer: list[FileFuture] = self._inbox.ask(question, [])
        return answer

    def take_back(self, task: Any) -> bool:
        """A job that has begun is not taken back."""
        return False

    def cancel_running(self, future: FileFuture) -> bool:
        """Cancel a future, and end the job if nobody else waits for it; returns whether there was anything to end."""
        found = not self._inbox.ended
        self.post(lambda: self._tasks.give_up(future))
        return found

    def forget(self, task: Any) -> None:
        """A future of a task was cancelled by its user."""
        if task is not None:
            self.post(lambda: self._tasks.forget(task))

    def tally(self) -> Tally:
        """How far the run is. Read without a lock: a number may be that of a moment before."""
        return self._tasks.tally()

    def shutdown(self) -> None:
        """End when all tasks have ended."""
        self.post(self._close)

    def cancel(self, *, running: bool) -> None:
        """End; cancel the tasks that have not begun, and the jobs of the others too if asked for."""
        self._cancelling = True
        self.post(lambda: self._close(lambda: self._tasks.cancel(running)))

    def kill(self) -> None:
        """End now, and all jobs too."""
        self._cancelling = True
        self.post(lambda: self._close(self._tasks.kill))

    def leave(self) -> None:
        """End now; the jobs go on, and those that have not begun are begun without this program."""
        self.post(lambda: self._close(self._tasks.leave))

    def open_futures(self) -> set[int]:
        """The identities of the futures that will still be done."""
        return {id(future) for future in self._ask(self._tasks.futures)}

    def cancel_waiting(self, provided: set[int]) -> None:
        """Cancel the tasks with inputs that are neither done nor derived from futures of these identities."""
        self.post(lambda: self._tasks.cancel_waiting(provided))

    def after_fork(self) -> None:
        """In a child of the program: this executor is not the child's, nor are its jobs."""
        self._inbox.abandon()
        self._selector.close()

    # The loop

    def _run(self) -> None:
        try:
            while True:
                self._work_inbox()
                self._look_around()
                if not self._inbox.may_sleep():
                    continue
                if self._closing and self._is_over():
                    break
                self._sleep()
        except BaseException as error:
            _LOG.exception("the dispatcher has failed")
            self._fatal = error
        finally:
            self._end()

    def _is_over(self) -> bool:
        if self._tasks:
            return False
        now = time.monotonic()
        self._closed_at = self._closed_at or now
        return not self._launcher.busy or now > self._closed_at + _LAST_SECONDS

    def _sleep(self) -> None:
        moments = [self._tasks.due, self._launcher.deadline()]
        if self._closed_at is not None:
            moments.append(self._closed_at + _LAST_SECONDS)
        nearest = min((moment for moment in moments if moment is not None), default=None)
        self._selector.select(None if nearest is None else max(0.0, nearest - time.monotonic()))
        self._inbox.awake()
        self._inbox.hear()

    def _work_inbox(self) -> None:
        for item in self._inbox.take():
            if callable(item):
                item()
                continue
            tasks = [item] if isinstance(item, FileTask) else item
            if self._cancelling:  # that comes later in the inbox, and is not to find them submitted
                for task in tasks:
                    self._tasks.fail(task, CancelledError())
                continue
            if isinstance(item, FileTask):
                self._tasks.admit(item)
            else:
                self._tasks.admit_together(item)
            # To hand over a job may take its time, and there may be thousands.
            if time.monotonic() - self._looked_at > _LOOK_SECONDS:
                self._look_around()

    def _look_around(self) -> None:
        for change in self._launcher.changes():
            self._tasks.changed(change)
        self._tasks.look()
        self._looked_at = time.monotonic()

    def _end(self) -> None:
        self._tasks.close(self._fatal)  # first: of a launcher that is closed nothing can be asked
        with contextlib.suppress(Exception):
            self._launcher.close()
        self._inbox.end(self._refuse)
        self._selector.close()

    def _refuse(self, item: FileTask | Sequence[FileTask]) -> None:
        reason = self._fatal or "cannot schedule new futures after shutdown"
        for task in [item] if isinstance(item, FileTask) else item:
            self._tasks.fail(task, RuntimeError(str(reason)))

    def _close(self, how: Callable[[], None] | None = None) -> None:
        self._closing = True
        if how is not None:
            how()
