"""What a launcher tells of the processes that it has started."""

from __future__ import annotations

import signal
from typing import NamedTuple


class Started(NamedTuple):
    worker: int
    pid: int


class StartFailed(NamedTuple):
    worker: int
    reason: str


class Exited(NamedTuple):
    worker: int
    cause: str
    """How the process ended, in words: a signal's name or an exit code."""
    clean: bool
    begun: int | None = None
    """How many tasks it had begun, where the launcher knows."""


class TakenBack(NamedTuple):
    """What a worker had begun when tasks were taken back from it."""

    worker: int
    begun: int


class NodeLost(NamedTuple):
    """No worker can be started on a compute node."""

    node: str
    reason: str


Event = Started | StartFailed | Exited
NodeEvent = TakenBack | NodeLost


class LauncherLostError(Exception):
    """The fork server has died, and with it the knowledge of its children."""


def describe_exit(code: int) -> str:
    """An exit code as `subprocess` gives it, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == 9:
        return f"{name}, as the kernel sends it when memory runs out"
    return name
