"""What is kept of a run. All times are seconds since its beginning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

DONE, FAILED, DIED, TRIED_AGAIN = "done", "failed", "worker died", "worker died, tried again"


class Attempt(NamedTuple):
    """A task that ran, or the part of it until its worker died.

    Attributes:
        name: of the function
        place: of the worker
        worker: its number
        slots: cores that it took
        submitted: when it was submitted
        ready: when it could have started: its inputs were there
        start: when the function began
        end: when it had ended
        outcome: DONE, FAILED, DIED or TRIED_AGAIN
    """

    name: str
    place: int
    worker: int
    slots: int
    submitted: float
    ready: float
    start: float
    end: float
    outcome: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Life(NamedTuple):
    """The process of a worker."""

    number: int
    place: int
    pid: int
    host: str
    start: float
    end: float


@dataclass(slots=True)
class Run:
    """A run.

    Attributes:
        began: when it began, in seconds since 1970
        seconds: how long it was
        keep: whether workers ran one task after the other
        capacity: from when on how many cores could be used
        attempts: in the order of their ends
        lives: the workers
        dropped: of the tasks that never ran: when they were submitted, and when they ended
    """

    began: float
    seconds: float
    keep: bool
    capacity: list[tuple[float, int]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    dropped: list[tuple[float, float]] = field(default_factory=list)
