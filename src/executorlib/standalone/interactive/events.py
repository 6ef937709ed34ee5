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


Event = Started | StartFailed | Exited


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
