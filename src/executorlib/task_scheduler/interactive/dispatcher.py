"""The thread that owns everything: tasks, slots, workers and their connections.

    inbox ──► TaskLedger ──► ResourcePool ──► Worker ══► its process
      ▲                                         │
      └── submit, cancel, resize, shutdown      └──► Future.set_result

Other threads only append to its inbox and wake it, so that nothing here needs a lock. It sleeps in one place, over
its connections, the launcher, its wake-up socket and the nearest deadline.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from executorlib.standalone.interactive.launcher import Launcher
from executorlib.task_scheduler.inbox import Inbox
from executorlib.task_scheduler.interactive.assignment import Assignment
from executorlib.task_scheduler.interactive.ledger import TaskLedger
from executorlib.task_scheduler.interactive.pool import ResourcePool
from executorlib.task_scheduler.interactive.pool_events import Gone, Heard, NodeGone, PoolEvent, Returned
from executorlib.task_scheduler.interactive.site import Site
from executorlib.task_scheduler.interactive.starter import Policy
from executorlib.task_scheduler.interactive.task import Task
from executorlib.task_scheduler.interactive.worker_pool import WorkerPool
from executorlib.task_scheduler.observer import Observer
from executorlib.task_scheduler.tally import Tally

_LOG = logging.getLogger("executorlib")


class Dispatcher:
    """The state of an executor and the thread that changes it.

    Methods without an underscore may be called from any thread. Whatever happens to tasks and workers, an `Observer`
    hears of it, where there is one.
    """

    def __init__(
        self, policy: Policy, pool: ResourcePool, site: Site, launcher: Launcher, observer: Observer | None = None
    ) -> None:
        self._observer = observer
        self._pool = pool
        self._inbox: Inbox[Task | Sequence[Task]] = Inbox()
        self.post = self._inbox.post  # a task or several, or something to do in the dispatcher's thread
        self._workers = WorkerPool(site, self._inbox.reader, self._inbox.hear, launcher)
        self._ledger = TaskLedger(self.post, observer)
        self._assignment = Assignment(policy, pool, self._workers, self._ledger, observer)
        self._due: float | None = None
        self._closing = False
        self._fatal: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="executorlib", daemon=True)
        self.thread.start()

    # From any thread

    def ask(self, question: Callable[[], Any], default: Any = None) -> Any:
        """Have something answered in the dispatcher's thread; the default after its end."""
        if threading.current_thread() is self.thread:
            return question()
        return self._inbox.ask(question, default)

    def take_back(self, task: Task) -> bool:
        """Cancel a task that waits at a worker, where it has not begun; returns whether that was possible."""
        return bool(self.ask(lambda: self._assignment.cancel_sent(task), False))

    def cancel_map(self, tasks: Iterable[Any]) -> None:
        """Cancel those of some tasks that have not begun."""
        some = list(tasks)
        self.post(lambda: self._assignment.cancel_some(some, later=True))

    def cancel_running(self, task: Task) -> bool:
        """End the process that runs a task, and cancel the task; returns whether there was anything to end."""
        return bool(self.ask(lambda: self._assignment.cancel_running(task), False))

    def forget(self, task: Task | None) -> None:
        """A task was cancelled by its user."""
        if task is not None:
            self.post(lambda: self._ledger.forget(task))

    def queued(self) -> int:
        """Number of tasks that no worker has been sent."""
        return len(self.waiting())

    def waiting(self) -> list[Any]:
        """The futures of the tasks that no worker has been sent."""
        return list(self.ask(self._ledger.waiting, ()))

    def tally(self) -> Tally:
        """How far the run is. Read without a lock: a number may be that of a moment before."""
        ledger = self._ledger
        ended = ledger.ended
        workers = list(self._workers.workers.values())
        running = sum(bool(worker.queue) for worker in workers)
        return Tally(len(ledger.open) + ended, ended, ledger.failed, ledger.dropped, running, len(workers))

    def resize(self, slots: int, workers: int | None) -> None:
        """Change the limits; workers beyond them end when they have done their tasks."""
        self.post(lambda: self._assignment.resize(slots, workers))

    def shutdown(self, *, cancel: bool = False, kill: bool = False) -> None:
        """End when all tasks have ended, or cancel those that have not begun, or end running tasks too."""
        self.post(lambda: self._shutdown(cancel, kill))

    def open_futures(self) -> set[int]:
        """The identities of the futures that will still be done."""
        return set(self.ask(self._ledger.futures, ()))

    def cancel_waiting(self, provided: set[int]) -> None:
        """Cancel the tasks with inputs that are neither done nor derived from futures of these identities."""
        self.post(lambda: self._ledger.cancel_waiting(provided))

    def after_fork(self) -> None:
        """In a child of the program: this executor is not the child's, nor are its workers."""
        self._inbox.abandon()
        self._workers.abandon()

    # The loop

    def _run(self) -> None:
        if self._observer is not None:
            self._observer.capacity(self._pool.slots)
        try:
            while not (self._closing and not self._ledger.open and not self._workers.workers):
                self._work_inbox()
                self._assignment.assign()
                if self._closing and not self._ledger.open:
                    self._assignment.stop_all()
                    if not self._workers.workers:
                        break
                timeout = self._timeout()
                if not self._inbox.may_sleep():
                    timeout = 0.0
                self._handle(self._workers.poll(timeout))  # no variable here holds a result over the next wait
                self._expire()
        except BaseException as error:
            _LOG.exception("the dispatcher has failed")
            self._fatal = error
        finally:
            self._end()

    def _handle(self, events: list[PoolEvent]) -> None:
        self._inbox.awake()
        for event in events:
            if isinstance(event, Heard):
                self._assignment.heard(event.worker, event.messages)
            elif isinstance(event, Gone):
                self._assignment.gone(event.worker)
            elif isinstance(event, Returned):
                self._assignment.returned(event.worker, event.tasks)
            elif isinstance(event, NodeGone):
                self._pool.leave_out(event.node)
            else:
                self._assignment.connected(event.worker)

    def _end(self) -> None:
        with contextlib.suppress(Exception):
            self._workers.close()
        self._inbox.end(self._refuse)
        for task in list(self._ledger.open.values()):
            self._ledger.fail(task, RuntimeError(f"The executor has failed: {self._fatal!r}"))
        if self._observer is not None:
            self._observer.close()

    def _refuse(self, item: Task | Sequence[Task]) -> None:
        reason = self._fatal or "cannot schedule new futures after shutdown"
        for task in [item] if isinstance(item, Task) else item:
            self._ledger.fail(task, RuntimeError(str(reason)))

    def _work_inbox(self) -> None:
        for item in self._inbox.take():
            if isinstance(item, Task):
                self._ledger.admit(item)
            elif callable(item):
                item()
            else:
                for task in item:
                    self._ledger.admit(task)

    def _timeout(self) -> float | None:
        times = [self._workers.deadline(), self._assignment.steal_at, self._assignment.start_at]
        times += [worker.limit for worker in self._workers.workers.values()]
        self._due = min((t for t in times if t is not None), default=None)
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def _expire(self) -> None:
        """Look after what was due when the last wait began; what has come since is seen after the next."""
        now = time.monotonic()
        if self._due is None or now < self._due:
            return
        self._workers.expire(now)
        self._assignment.end_overdue(now)

    def _shutdown(self, cancel: bool, kill: bool) -> None:
        self._closing = True
        if cancel or kill:
            self._assignment.cancel_all()
        if kill:
            self._assignment.kill_all()
