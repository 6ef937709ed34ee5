"""The state of all jobs, asked for in a thread: seldom, and never while an answer is waited for."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Container, Iterable

from executorlib.standalone import slurm_queue
from executorlib.standalone.errors import QueueSilentError
from executorlib.standalone.slurm_queue import JobStatus
from executorlib.task_scheduler.file.launcher import NotNowError

_LOG = logging.getLogger("executorlib")
FIRST_PAUSE = 5.0
"""Seconds between two questions after something has changed."""
_LONGEST_PAUSE = 60.0
_GROWTH = 1.3
# The controller may take so long to list a job that it has just accepted, and to forget one that has ended.
_UNSEEN_SECONDS = 20.0
_RUNAWAY_SECONDS = 300.0
_SOON_SECONDS = 0.5
# What was asked so long ago is still news to who begins.
_FRESH_SECONDS = 2.0
AGAIN_SECONDS = 5.0
"""Seconds after which a controller that is away is asked again."""
_SILENT_SECONDS = 300.0


class SlurmQueue:
    """Asks Slurm for its jobs.

    Attributes:
        due: when to ask next, on the monotonic clock
        questions: how often it was asked
    """

    def __init__(self) -> None:
        self.due = 0.0
        self.questions = 0
        self._pause = FIRST_PAUSE
        self._asked: float | None = None  # while an answer is waited for
        self._answer: dict[str, JobStatus] | None = None
        self._last: dict[str, JobStatus] = {}
        self._known_at = float("-inf")
        self._silent_at = float("-inf")  # when it has last not answered somebody who waited for it
        self._silence: float | None = None  # since when that has been so
        self._said = ""
        self._missing: dict[str, float] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Readable when an answer has come."""
        return self._reader.fileno()

    def submitted(self) -> None:
        """There is a new job: it may begin, or fail, soon. The questions come no faster for that."""
        self._pause = FIRST_PAUSE
        self.due = min(self.due, time.monotonic() + self._pause) if self._asked is None else self.due
        self.due = max(self.due, self._known_at + FIRST_PAUSE)

    def ask_soon(self) -> None:
        """Something has happened that only Slurm can explain."""
        self._pause = FIRST_PAUSE
        if self._asked is None:
            self.due = min(self.due, time.monotonic() + _SOON_SECONDS)

    def status_now(self) -> dict[str, JobStatus]:
        """The jobs as they are now, or were a moment ago; waits for the answer.

        Raises:
            NotNowError: there is none, or was none a moment ago
            QueueSilentError: there has been none for minutes
        """
        if time.monotonic() - self._known_at <= _FRESH_SECONDS:
            return self._last
        if time.monotonic() - self._silent_at > AGAIN_SECONDS:
            self.questions += 1
            try:
                self._last = slurm_queue.query()
            except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
                self._silent_at = time.monotonic()
                if self._silence is None:
                    _LOG.warning("Slurm does not say which jobs run, it is asked again: %s", error)
                    self._silence = self._silent_at
                self._said = str(error)
            else:
                self._known_at = time.monotonic()
                self._silence = None
                return self._last
        if self._silence is not None and time.monotonic() - self._silence > _SILENT_SECONDS:
            raise QueueSilentError(
                f"Slurm has not answered for minutes, and a job of this call may run: {self._said}. Submit it again "
                "when squeue answers"
            )
        raise NotNowError

    def news(self, jobs: Iterable[str]) -> dict[str, JobStatus]:
        """Ask if it is time for it; the states of these jobs, if an answer has come.

        A job that is missing for some time has ended: the accounting is asked how, where there is one.
        """
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        now = time.monotonic()
        wanted = list(jobs)
        if self._asked is None and self.due <= now and wanted:
            self._asked = now
            self.due = now + 2 * _LONGEST_PAUSE  # until the answer comes
            try:
                threading.Thread(target=self._ask, name="executorlib-squeue", daemon=True).start()
            except RuntimeError:  # a limit of processes, or the end of the interpreter
                self._ask()
        answer, self._answer = self._answer, None
        if answer is None:
            return {}
        self._asked = None
        changed = any(answer.get(job) != self._last.get(job) for job in wanted) or bool(self._missing)
        self._pause = FIRST_PAUSE if changed else min(self._pause * _GROWTH, _LONGEST_PAUSE)
        self.due = now + self._pause
        if answer is self._last:  # there was none
            return {}
        self._last, self._known_at = answer, now
        found = {job: answer[job] for job in wanted if job in answer}
        gone = self._gone(wanted, answer, now)
        known = slurm_queue.query_ended(gone)
        for job in gone:
            status = known.get(job)
            # The accounting may miss the end of a job, and say for ever that it runs.
            if status is None or (not status.ended and now - self._missing[job] >= _RUNAWAY_SECONDS):
                status = JobStatus("UNKNOWN", 0.0, "Slurm knows it no more")
            found[job] = status
        return found

    def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def _gone(self, jobs: Iterable[str], answer: Container[str], now: float) -> list[str]:
        self._missing = {job: self._missing.get(job, now) for job in jobs if job not in answer}
        return [job for job, since in self._missing.items() if now - since >= _UNSEEN_SECONDS]

    def _ask(self) -> None:
        self.questions += 1
        try:
            answer = slurm_queue.query()
        except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
            _LOG.warning("Slurm does not say how the jobs are: %s", error)
            answer = self._last
        self._answer = answer
        with contextlib.suppress(OSError):  # closed meanwhile
            self._writer.send(b"x")
