"""Which task runs at which worker: handing out, taking back, and settling what workers bring or leave."""

from __future__ import annotations

import logging
import pickle
import struct
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError

from executorlib.standalone.errors import WorkerDiedError, safe_repr
from executorlib.standalone.interactive.messages import (
    BEGUN,
    BEGUN_HEAD,
    DONE,
    RANK_ERROR,
    RANKS_DONE,
    RESULT_HEAD,
)
from executorlib.standalone.interactive.wire import Message
from executorlib.task_scheduler.interactive.ledger import TaskLedger
from executorlib.task_scheduler.interactive.outcome import death, deliver, error_of, fail
from executorlib.task_scheduler.interactive.pool import ResourcePool
from executorlib.task_scheduler.interactive.starter import Policy, Starter
from executorlib.task_scheduler.interactive.task import Task
from executorlib.task_scheduler.interactive.worker import STALL_SECONDS, Worker
from executorlib.task_scheduler.interactive.worker_pool import WorkerPool
from executorlib.task_scheduler.observer import Observer

_LOG = logging.getLogger("executorlib")
# When one rank has failed, the others get so long to come to an end themselves.
_RANK_SECONDS = 3.0
# How much of a smoothed run time is the last measurement.
_SMOOTHING = 0.2


class Assignment:
    """The tasks at the workers. Owned by the dispatcher's thread.

    Args:
        policy: what the executor does with its workers
        pool: the places for workers
        workers: the workers
        ledger: the tasks
        observer: hears of what happens

    Attributes:
        steal_at: when `assign` wants to be called to look for tasks that wait behind one that makes no progress
    """

    def __init__(
        self, policy: Policy, pool: ResourcePool, workers: WorkerPool, ledger: TaskLedger, observer: Observer | None
    ) -> None:
        self._policy = policy
        self._pool = pool
        self._workers = workers
        self._ledger = ledger
        self._observer = observer
        self._starter = Starter(policy, pool, workers, ledger, observer)
        self.steal_at: float | None = None
        self._look_at: float | None = None  # from when on it looks, if it is called anyhow; None: nothing waits so

    @property
    def start_at(self) -> float | None:
        """When `assign` wants to be called to start a worker after one that could not be; None: none is needed."""
        return self._starter.due

    # Handing out

    def assign(self) -> None:
        """Hand ready tasks to workers, as far as there is room."""
        if self._policy.keep:
            now = time.monotonic()
            # While there is something to hand out not more often: to look at each of many workers takes its time.
            if self._look_at is not None and (now >= self._look_at or not self._ledger.ready):
                self._rebalance(now)
            if self._ledger.ready:
                self._assign_to_kept(now)
                if not self._ledger.ready and self._look_at is not None:  # there may be idle workers now
                    self._want_look(self._look_at)
        else:
            self._assign_to_fresh()

    def _assign_to_fresh(self) -> None:
        self._starter.try_again()
        while (task := self._ledger.next_ready()) is not None:
            worker = self._starter.start(task.resources)
            if worker is None:
                if self._ledger.next_ready() is task:  # there is no place for it now, or no descriptor
                    return
                continue  # it has failed, because no worker could be started for it
            self._ledger.ready.pop()
            if self._ledger.begin(task):
                self._send(worker, [task])
            else:
                self._workers.stop(worker, time.monotonic())

    def _assign_to_kept(self, now: float) -> None:
        self._starter.start_kept()
        # Most of many workers are full: a look at each of them for each result would take longer than all the rest.
        able = [w for w in self._workers.workers.values() if not w.full and w.is_able() and not w.is_late(now)]
        if not able:
            return
        able.sort(key=lambda worker: len(worker.queue))
        share = -(-len(self._ledger.ready) // len(able))
        for worker in able:
            if not self._ledger.ready:
                break
            batch: list[Task] = []
            while len(batch) < share and (task := self._ledger.next_ready()) is not None:
                seconds = task.fn.seconds
                room = worker.room(seconds, len(batch))
                if room == 0:
                    worker.full = True
                    break
                for like in self._ledger.ready.pop_like(min(room, share - len(batch))):
                    if self._ledger.begin(like):
                        like.estimate = seconds or 0.0
                        batch.append(like)
                worker.backlog = sum(t.estimate for t in worker.queue) + sum(t.estimate for t in batch)
            if batch:
                self._send(worker, batch)

    def _send(self, worker: Worker, tasks: list[Task]) -> None:
        for task in tasks:
            task.worker = worker
        if worker.connection is None:  # it is sent them when it has connected
            worker.queue.extend(tasks)
            return
        idle = not worker.queue
        now = time.monotonic()
        self._workers.send_tasks(worker, tasks, now)
        if idle:
            self._begun(worker, now)
        if len(worker.queue) > 1:
            self._want_look(now + STALL_SECONDS)

    def connected(self, worker: Worker) -> None:
        """A worker has connected: send it the task that waits for it."""
        self._starter.succeeded()
        if worker.queue:
            tasks = list(worker.queue)
            worker.queue.clear()
            self._send(worker, tasks)

    def _begun(self, worker: Worker, now: float) -> None:
        """The first task of a worker's queue begins."""
        worker.progress = now
        task = worker.queue[0]
        seconds = task.resources.run_time_max
        worker.limit = None if seconds is None else now + seconds

    # Moving tasks that have not begun

    def _rebalance(self, now: float) -> None:
        """Take what waits behind a task that makes no progress, where somebody else could do it; it keeps its turn."""
        self.steal_at = self._look_at = None
        able = [worker for worker in self._workers.workers.values() if worker.is_able()]
        stalled = []
        for worker in able:
            if len(worker.queue) > 1 and worker.gives_back and not worker.asked:
                stall = worker.progress + STALL_SECONDS
                if stall <= now:
                    stalled.append(worker)
                else:
                    self._want_look(stall)
        if not stalled:
            return
        if all(worker.queue for worker in able):
            # Another will have room soon, or can be started: what is taken is not sent to wait here again.
            found, full = len(stalled), self._pool.is_full()
            if not full:
                for worker in stalled:
                    if not worker.is_late(now):
                        self._want_look(worker.late_at)
            hopeless = full and all(worker.is_late(now) for worker in able)
            stalled = [worker for worker in stalled if worker.is_late(now) and not hopeless]
            if len(stalled) < found:
                self._want_look(now + STALL_SECONDS, wake=False)
        for worker in stalled:
            self._put_back(worker)

    def _want_look(self, at: float, *, wake: bool = True) -> None:
        if self._look_at is None or at < self._look_at:
            self._look_at = at
        if wake and (self.steal_at is None or at < self.steal_at):
            self.steal_at = at

    def _put_back(self, worker: Worker) -> None:
        self._ledger.put_back(self._workers.take_back(worker))

    def returned(self, worker: Worker, tasks: Sequence[Task]) -> None:
        """A worker elsewhere has given back what it had not begun."""
        self._ledger.put_back(tasks)
        for task in worker.queue:  # it has begun these
            if not self._ledger.unwanted.get(task.number):
                self._ledger.unwanted.pop(task.number, None)
        self._end_unwanted(worker)
        if not worker.queue and worker.stopping:
            self._workers.stop(worker, time.monotonic())

    def cancel_sent(self, task: Task) -> bool:
        """Cancel a task that has not begun; returns whether that was possible."""
        self.cancel_some([task])
        return bool(task.future.cancelled())

    def cancel_some(self, tasks: Sequence[Task], *, later: bool = False) -> None:
        """Cancel those of some tasks that have not begun.

        Args:
            tasks: the tasks
            later: also those of which a worker elsewhere has to be asked whether it has begun them
        """
        for worker in {task.worker for task in tasks if task.worker is not None}:
            self._put_back(worker)
            if later and worker.asked:
                for task in tasks:
                    if task.worker is worker:
                        self._ledger.unwanted.setdefault(task.number, False)
        for task in tasks:
            if task.worker is None and task.number in self._ledger.open:
                self._ledger.fail(task, CancelledError())

    def cancel_running(self, task: Task) -> bool:
        """Cancel a task, and end the process that runs it; returns whether there was anything to end."""
        if self.cancel_sent(task):  # else it has begun, and will not come back when its worker has ended
            return True
        worker: Worker | None = task.worker
        if worker is None or not worker.queue:
            return False
        self._ledger.unwanted[task.number] = True
        if worker.queue[0] is task:
            self._end_first(worker)
        # Else its worker is asked for it, or has begun it while the result of the one before is still on its way.
        return True

    def _end_unwanted(self, worker: Worker) -> None:
        """End a worker if it has begun what was cancelled."""
        if worker.queue and not worker.asked and self._ledger.unwanted.get(worker.queue[0].number):
            self._end_first(worker)

    def _end_first(self, worker: Worker) -> None:
        number = worker.queue[0].number
        if worker.doomed and worker.accused == number:
            return  # a second signal would take from a launcher the time to end its ranks
        worker.accused = number
        worker.verdict = CancelledError()
        self._workers.kill(worker, time.monotonic())

    # Hearing from workers

    def heard(self, worker: Worker, messages: list[Message]) -> None:
        """Take in what a worker has sent. Thousands of results a second come this way."""
        queue, ledger = worker.queue, self._ledger
        worked = False
        for body, buffers in messages:
            try:
                if body[:1] == RANK_ERROR:
                    self._rank_failed(worker, body[1:])
                    continue
                if body[:1] == BEGUN:
                    worker.has_begun = BEGUN_HEAD.unpack_from(body)[1]
                    worker.preparing = False
                    continue
                _, status, number, start, seconds = RESULT_HEAD.unpack_from(body)
                if queue[0].number != number:
                    raise ValueError(f"the result of task {number}, which it does not run")
            except (IndexError, ValueError, struct.error, pickle.UnpicklingError) as error:
                self._give_up(worker, error)
                break
            task = queue.popleft()
            worked = True
            worker.backlog -= task.estimate
            if worker.accused == number and not worker.doomed:  # the other ranks have come to an end
                worker.verdict = worker.accused = worker.deadline = None
            fn = task.fn
            before = fn.seconds
            fn.seconds = seconds if before is None else before + _SMOOTHING * (seconds - before)
            if ledger.ran(task, worker, start, seconds, status in (DONE, RANKS_DONE)):
                deliver(task, status, body[RESULT_HEAD.size :], buffers)
            else:
                fail(task, CancelledError())
        if not worked:
            return
        worker.worked = True
        worker.full = False
        if queue:
            self._begun(worker, time.monotonic())
            self._end_unwanted(worker)
            return
        worker.backlog, worker.limit = 0.0, None
        if worker.stopping or not self._policy.keep:
            self._workers.stop(worker, time.monotonic())

    def _rank_failed(self, worker: Worker, data: bytes) -> None:
        """One rank has failed. If the others wait for it, they wait for ever: give them a moment."""
        if worker.verdict is None and worker.queue:
            try:
                number, dumped = pickle.loads(data)
                error = error_of(worker.queue[0].fn.name, dumped)
            except BaseException as reason:  # whatever is in it
                raise ValueError(f"an error of a rank that cannot be unpickled: {safe_repr(reason)}") from reason
            if worker.queue[0].number == number:
                worker.accused = number
                worker.verdict = error
                worker.deadline = time.monotonic() + _RANK_SECONDS

    def _give_up(self, worker: Worker, error: Exception) -> None:
        """A worker has sent what none would send: nothing that it says from now on means anything."""
        if not worker.doomed:
            _LOG.warning("%r is ended, because it has sent what no worker sends: %s", worker, error)
            self._workers.kill(worker, time.monotonic())

    def gone(self, worker: Worker) -> None:
        """A worker's process has ended: settle its tasks, and free its place."""
        self._pool.give_back(worker.allotment)
        if self._observer is not None:
            self._observer.worker_gone(worker)
        if worker.worked:  # else its start may be to blame, and the task must not start one after the other
            self._put_back(worker)
        gives_back = worker.gives_back  # what is left in the queue then was running
        worker.close_claims()
        queue, worker.queue = list(worker.queue), type(worker.queue)()
        if worker.stopping and not queue:
            return
        spared = worker.spared and worker.verdict is None and not worker.has_started
        if spared or (worker.connection is None and self._pool.is_left_out(worker.allotment)):
            self._ledger.put_back(queue)  # there are other nodes, or there will be another launcher
            return
        if worker.verdict is not None:
            error = worker.verdict
        elif not worker.has_started:
            error = self._workers.start_error(worker, f"ended before it had started: {worker.cause}")
            if self._policy.keep:  # none of its tasks has begun
                self._ledger.put_back(queue)
                queue = []
        else:
            error = None
        if not queue and worker.preparing and worker.verdict is None and self._ledger.next_ready() is not None:
            queue = [self._ledger.ready.pop()]  # what it was started for: else one worker would follow the other
        if not queue:
            _LOG.warning("%r ended while idle: %s", worker, worker.cause)
            if error is not None and not worker.has_started:
                self._starter.failed(error)
            return
        # Only the first was running: a worker whose tasks cannot be taken back has the others still in its queue.
        # And a task whose time was up may have ended just before its worker: then nobody is to blame.
        blamed = queue[:1] if worker.accused in (None, queue[0].number) else []
        if error is None and worker.worked and not gives_back and worker.has_begun != queue[0].number:
            blamed = []  # the worker was killed while idle, or so short a time before that it had not begun
        self._ledger.put_back(queue[len(blamed) :])
        for task in blamed:
            self._blame(task, worker, error)

    def _blame(self, task: Task, worker: Worker, error: BaseException | None) -> None:
        task.worker = None
        if self._ledger.unwanted.get(task.number):
            error = CancelledError()
        again = error is None and task.attempts < self._policy.restart_limit
        if self._observer is not None and worker.connection is not None:
            self._observer.died(task.number, worker, worker.progress, again)
        if error is None:
            task.attempts += 1
            error = death(task, worker)
            _LOG.warning("%s", error)
            if again:
                _LOG.info("%s is tried again (%d of %d)", task.fn.name, task.attempts, self._policy.restart_limit)
                task.future.put_back()
                self._ledger.ready.push_front(task)
                return
        self._ledger.fail_run(task, error)

    # Limits and the end

    def end_overdue(self, now: float) -> None:
        """End the workers whose task has used up its time."""
        for worker in list(self._workers.workers.values()):
            if worker.limit is None or worker.limit > now:
                continue
            worker.limit = None
            if worker.queue and worker.verdict is None:
                task = worker.queue[0]
                worker.accused = task.number
                worker.verdict = TimeoutError(
                    f"{task.fn.name} was ended after its run_time_max of {task.resources.run_time_max:g} s"
                )
                self._workers.kill(worker, now)

    def resize(self, slots: int, workers: int | None) -> None:
        """Change the limits; workers beyond them end when they have done their tasks."""
        self._pool.slots, self._pool.workers = slots, workers
        if self._observer is not None:
            self._observer.capacity(slots)
        if not self._policy.keep:
            return
        active = [w for w in self._workers.workers.values() if not w.stopping]
        active.sort(key=lambda worker: (bool(worker.queue), worker.place))
        surplus = max(0, len(active) - self._most_workers())
        for worker in active[:surplus]:
            self._put_back(worker)
            self._workers.stop(worker, time.monotonic())

    def _most_workers(self) -> int:
        most = max(1, self._pool.slots // self._policy.resources.slots)
        return most if self._pool.workers is None else min(most, self._pool.workers)

    def cancel_all(self) -> None:
        """Cancel every task that has not begun."""
        for worker in list(self._workers.workers.values()):
            self._put_back(worker)
            if worker.asked:
                for task in worker.queue:
                    self._ledger.unwanted.setdefault(task.number, False)
        self._ledger.ready.clear()
        for task in list(self._ledger.open.values()):
            if task.worker is None:
                self._ledger.fail(task, CancelledError())

    def kill_all(self) -> None:
        """End the workers, and with them what they run."""
        for worker in list(self._workers.workers.values()):
            busy = f" while it ran {worker.queue[0].fn.name}" if worker.queue else ""
            worker.verdict = worker.verdict or WorkerDiedError(f"{worker!r} was ended by the program{busy}")
            self._workers.kill(worker, time.monotonic())

    def stop_all(self) -> None:
        """Tell the workers to end."""
        for worker in list(self._workers.workers.values()):
            if not worker.stopping:
                self._workers.stop(worker, time.monotonic())
