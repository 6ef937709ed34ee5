"""Keeps what happens in a run, and writes it to a file at the end."""

from __future__ import annotations

import logging
import socket
import time
from array import array

from executorlib.standalone.timeline import Attempt, Life, Run, check_filename, write_timeline
from executorlib.standalone.timeline.record import DIED, DONE, FAILED, TRIED_AGAIN
from executorlib.task_scheduler.observer import JobInfo, Observer, WorkerInfo

_LOG = logging.getLogger("executorlib")
_OUTCOMES = (DONE, FAILED, DIED, TRIED_AGAIN)


class Timeline(Observer):
    """Keeps some 60 bytes of each task.

    Args:
        filename: the file, which is written when the executor ends; its ending is the format, see `check_filename`
        keep: whether workers run one task after the other

    Raises:
        ValueError, FileNotFoundError: from `check_filename`
    """

    def __init__(self, filename: str, *, keep: bool) -> None:
        self._path = check_filename(filename)
        self._keep = keep
        self._zero = time.monotonic()
        self._began = time.time()
        self._names: dict[str, int] = {}
        self._open: dict[int, tuple[int, int, float, float]] = {}  # name, slots, submitted, ready
        # One column for each field of an attempt; a list of tuples would take five times the memory.
        self._whole = array("q")  # name, slots, worker, place, outcome
        self._times = array("d")  # submitted, ready, start, end
        self._dropped: list[tuple[float, float]] = []
        self._started: dict[int, tuple[WorkerInfo, float]] = {}
        self._lives: list[tuple[JobInfo, float, float]] = []
        self._lags: dict[int, float] = {}
        self._capacity: list[tuple[float, int]] = []

    def capacity(self, slots: int) -> None:
        self._capacity.append((time.monotonic(), slots))

    def submitted(self, task: int, name: str, slots: int) -> None:
        now = time.monotonic()
        self._open[task] = (self._names.setdefault(name, len(self._names)), slots, now, now)

    def ready(self, task: int) -> None:
        name, slots, submitted, _ = self._open[task]
        self._open[task] = (name, slots, submitted, time.monotonic())

    def ran(self, task: int, worker: WorkerInfo, start: float, seconds: float, succeeded: bool) -> None:
        known = self._open.pop(task, None)
        if known is None:
            return
        end = start + seconds
        # The clock of another host shows another time; the least delay of a message is the best guess of by how much.
        lag = time.monotonic() - end
        number = worker.number
        if lag < self._lags.get(number, lag + 1.0):
            self._lags[number] = lag
        name, slots, submitted, ready = known
        self._whole.extend((name, slots, number, worker.place, 0 if succeeded else 1))
        self._times.extend((submitted, ready, start, end))

    def died(self, task: int, worker: WorkerInfo, start: float, again: bool) -> None:
        known = self._open.get(task) if again else self._open.pop(task, None)
        if known is None:
            return
        now = time.monotonic()
        name, slots, submitted, ready = known
        offset = self._offset(worker)  # this time is of this host's clock
        self._whole.extend((name, slots, worker.number, worker.place, 3 if again else 2))
        self._times.extend((submitted, ready, max(start, ready) - offset, now - offset))
        if again:
            self._open[task] = (name, slots, submitted, now)

    def dropped(self, task: int, succeeded: bool = False) -> None:
        known = self._open.pop(task, None)
        if known is not None:
            self._dropped.append((known[2], time.monotonic()))

    def worker_started(self, worker: WorkerInfo) -> None:
        self._started[worker.number] = (worker, time.monotonic())

    def worker_gone(self, worker: WorkerInfo) -> None:
        known = self._started.pop(worker.number, None)
        if known is not None:
            info = JobInfo(worker.number, worker.place, worker.pid, worker.host)
            self._lives.append((info, known[1], time.monotonic()))

    def close(self) -> None:
        for worker, _ in list(self._started.values()):
            self.worker_gone(worker)
        try:
            write_timeline(self.run(), self._path)
        except Exception:  # what the program has computed is worth more than a picture of how
            _LOG.exception("the timeline %s cannot be written", self._path)

    def run(self) -> Run:
        """What has been kept so far."""
        zero, now = self._zero, time.monotonic()
        run = Run(self._began, now - zero, self._keep, [(time - zero, slots) for time, slots in self._capacity])
        run.dropped = [(submitted - zero, ended - zero) for submitted, ended in self._dropped]
        offsets: dict[int, float] = {}
        gone_at: dict[int, float] = {}
        for worker, started, gone in self._lives:
            offsets[worker.number] = self._offset(worker)
            gone_at[worker.number] = gone - zero
            run.lives.append(Life(worker.number, worker.place, worker.pid, worker.host, started - zero, gone - zero))
        names = list(self._names)
        for at in range(len(self._times) // 4):
            name, slots, number, place, outcome = self._whole[5 * at : 5 * at + 5]
            submitted, ready, start, end = self._times[4 * at : 4 * at + 4]
            offset = offsets.get(number, 0.0) - zero
            # A task lies in the life of its worker, whatever the clocks say.
            end = min(end + offset, gone_at.get(number, now - zero))
            start = min(max(start + offset, ready - zero), end)
            times = (submitted - zero, ready - zero, start, end)
            run.attempts.append(Attempt(names[name], place, number, slots, *times, _OUTCOMES[outcome]))
        return run

    def _offset(self, worker: WorkerInfo) -> float:
        """Seconds by which this host's monotonic clock is ahead of the worker's."""
        here = worker.host in ("", "localhost", socket.gethostname())
        return 0.0 if here else self._lags.get(worker.number, 0.0)
