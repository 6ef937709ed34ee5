"""Where and how the workers of an executor are started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from executorlib.standalone.hardware import program_environment, thread_environment
from executorlib.standalone.interactive.launcher import Launcher, make_launcher
from executorlib.standalone.interactive.messages import Setup
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

    def setup(self, place: int, resources: Resources, allotment: Allotment, *, forked: bool) -> Setup:
        """What a worker is told first.

        Args:
            place: its ``executorlib_worker_id``
            resources: its own
            allotment: its own
            forked: whether it has neither the program's environment nor its working directory
        """
        environment = None
        if forked:
            environment = program_environment()
            environment.update(thread_environment(resources.threads_per_core, environment))
        return Setup(
            worker_id=place,
            path=list(sys.path),
            environment=environment,
            cwd=resources.cwd or (_working_directory() if forked else None),
            init_function=self.init_function.data if self.init_function is not None else None,
            error_log_file=resources.error_log_file,
            gpus=allotment.gpus,
            keep=self.keep,
        )


def _working_directory() -> str | None:
    """The program's working directory; None if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None
