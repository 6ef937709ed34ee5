"""What the workers' pool has to tell the dispatcher."""

from __future__ import annotations

from typing import NamedTuple

from executorlib.standalone.interactive.wire import Message
from executorlib.task_scheduler.interactive.task import Task
from executorlib.task_scheduler.interactive.worker import Worker


class Ready(NamedTuple):
    """A worker has connected, some time after its start."""

    worker: Worker


class Heard(NamedTuple):
    """A worker has sent something."""

    worker: Worker
    messages: list[Message]


class Gone(NamedTuple):
    """A worker's process has ended, and all that it sent before has been heard."""

    worker: Worker


class Returned(NamedTuple):
    """Tasks that a worker had not begun were taken back; its queue does not have them any more."""

    worker: Worker
    tasks: list[Task]


class NodeGone(NamedTuple):
    """No worker can be started on a compute node."""

    node: str


PoolEvent = Ready | Heard | Gone | Returned | NodeGone
