"""Where and how the workers of an executor are started."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from executorlib.standalone.interactive.launcher import Launcher, make_launcher
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import Payload
from executorlib.task_scheduler.interactive.pool import Allotment

# Builds the command that starts a given program with the resources, where it was given its place; None where the worker
# may be forked.
CommandBuilder = Callable[[Resources, list[str], Allotment], "list[str] | None"]


class Site(NamedTuple):
    """Where and how workers are started.

    Attributes:
        command: builds the command line of a worker
        localhost: whether all workers run on this machine
        hostname_localhost: what the user said about that
        keep: whether workers get several tasks
        init_function: pickled function that each worker calls first
        make_launcher: makes a launcher in the place of one that was lost
        queued: whether a worker may have to wait for its start for any time, in the queue of a queueing system
    """

    command: CommandBuilder
    localhost: bool = True
    hostname_localhost: bool | None = None
    keep: bool = False
    init_function: Payload | None = None
    make_launcher: Callable[[], Launcher] = make_launcher
    queued: bool = False
