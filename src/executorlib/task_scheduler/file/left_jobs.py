"""Program that begins the jobs which a program has left behind before they had begun, and ends when they have ended.

Those that run already are watched, so that they are ended after their `run_time_max`.

It is started by `LocalJobs.leave` and reads what is to be done from its standard input: the number of cores, and the
jobs in the order of their submission.
"""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import pickle
from collections.abc import Sequence

from executorlib.standalone.command import PATH_VARIABLE
from executorlib.task_scheduler.file.dispatcher import FileDispatcher
from executorlib.task_scheduler.file.launcher import LeftJob
from executorlib.task_scheduler.file.local_jobs import LocalJobs
from executorlib.task_scheduler.file.task import FileFuture, FileTask


def run(slots: int, jobs: Sequence[LeftJob]) -> None:
    """Run the jobs, each when those that it depends on have ended, and wait for all."""
    dispatcher = FileDispatcher(LocalJobs(slots), 0.05)
    futures: dict[str, FileFuture] = {}
    for left in jobs:
        future = futures[left.job.paths.output] = FileFuture()
        future.paths = left.job.paths
        inputs = [futures[output] for output in left.inputs if output in futures]
        task = FileTask(None, left.job.resources, future, list(inputs), left.job.paths)
        future.bind(dispatcher, task)  # type: ignore[arg-type]
        dispatcher.post(task)
    dispatcher.shutdown()
    dispatcher.thread.join()


if __name__ == "__main__":
    found = pickle.load(sys.stdin.buffer)
    sys.path[:] = json.loads(os.environ.pop(PATH_VARIABLE))
    run(*found)
