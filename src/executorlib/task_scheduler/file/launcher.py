"""What the scheduler needs of whoever runs its jobs: this machine, or a queueing system."""

from __future__ import annotations

import enum
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.cache_queue import JobNumber
from executorlib.standalone.command import get_command_path
from executorlib.standalone.resources import Resources

_LOG_LINES = 20
_LOG_BYTES = 4000
# A link, or a pipe, in the place of a log is that of another user.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Job:
    """A task for a launcher.

    Attributes:
        paths: the task's files; its input is written
        resources: what it needs
        depends_on: jobs of this launcher that have to end well first
        name: that of the task's function
    """

    paths: CachePaths
    resources: Resources
    depends_on: tuple[JobNumber, ...] = ()
    name: str = ""

    @property
    def program(self) -> list[str]:
        """The command line of the job, or of each of its ranks."""
        name = "cache_serial.py" if self.resources.cores == 1 else "cache_parallel.py"
        return [sys.executable, get_command_path(name), self.paths.input]


@dataclass(frozen=True, slots=True)
class LeftJob:
    """A job that is to be started although the program that submitted it does not wait for it.

    Attributes:
        job: the job
        inputs: the output files of tasks that have to end first
    """

    job: Job
    inputs: tuple[str, ...]


class JobState(enum.Enum):
    BEGUN = "begun"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class JobChange:
    """News of a job.

    Attributes:
        job: its number
        state: what has become of it
        cause: how it ended, in words
        error: what its future is to raise where the launcher itself has ended it, or could not start it
        where: its process and host, or its number in the queue, in words
    """

    job: JobNumber
    state: JobState
    cause: str = ""
    error: BaseException | None = None
    where: str = ""


class NotNowError(Exception):
    """The queueing system cannot be asked now. It is to be tried again."""


class JobLauncher(ABC):
    """Starts jobs, watches them, ends them. All methods are called by one thread, the dispatcher's.

    Attributes:
        orders_jobs: whether jobs may be submitted before those they depend on have ended
        output_seconds: how long after the end of a job its output may still come into sight
        slots: cores that jobs may use at a time; None where that is not known
    """

    orders_jobs: ClassVar[bool] = False
    output_seconds: ClassVar[float] = 0.0
    slots: int | None = None

    def fileno(self) -> int | None:
        """A descriptor that is readable when `changes` has something to tell; None where there is none."""
        return None

    def deadline(self) -> float | None:
        """When `changes` is to be called at the latest, on the monotonic clock."""
        return None

    @abstractmethod
    def find(self, job: Job) -> JobNumber | None:
        """The number of the living job that another program has started for a task; from now on it is watched.

        Raises:
            NotNowError: that cannot be told now
            Exception: it cannot be told for so long that the task is to fail
        """

    @abstractmethod
    def submit(self, job: Job) -> JobNumber:
        """Start a job, or let it wait for its turn; returns its number.

        Raises:
            Exception: it is refused
        """

    def submit_together(self, jobs: Sequence[Job]) -> list[JobNumber | Exception]:
        """Start jobs that were submitted together; returns the number of each, or why it is refused."""
        found: list[JobNumber | Exception] = []
        for job in jobs:
            try:
                found.append(self.submit(job))
            except Exception as error:
                found.append(error)
        return found

    @abstractmethod
    def changes(self) -> list[JobChange]:
        """What has happened since the last call: one question for all jobs. Each job ends once."""

    @abstractmethod
    def cancel(self, job: JobNumber) -> None:
        """End a job; its end is told by `changes`, unless it has not begun: then it is forgotten."""

    def withdraw(self, job: JobNumber) -> None:
        """A job is needed no more, as its output is there. If it runs it may go on where that can be told."""
        self.cancel(job)

    def settled(self, job: JobNumber) -> bool:
        """The output of a job is there; returns whether its end will not be told any more."""
        return False

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether processes of jobs have to be waited for."""

    @abstractmethod
    def leave(self, jobs: Sequence[LeftJob]) -> None:
        """See to it that these jobs, some of which may run, are done without this program; watch no job any more."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held. Jobs that run go on."""


def described(name: str, paths: CachePaths, where: str = "") -> str:
    """A job in a message: its function, its name in the cache, and where it runs."""
    return f"{name or 'a call'} ({', '.join(filter(None, (f'task {paths.stem}', where)))})"


def end_of_log(path: str) -> str:
    """The last lines that a job has printed, as the end of a sentence; empty if there are none."""
    try:
        with open(os.open(path, _READ_FLAGS), "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f"; its output ({path}) ends with:\n" + "\n".join(lines[-_LOG_LINES:]) if lines else ""


def remove_if_empty(path: str) -> None:
    """Remove the log of a job that has printed nothing."""
    try:
        if os.path.getsize(path) == 0:
            os.unlink(path)
    except OSError:
        pass
