"""A forked worker whose fork server is lost, as the dispatcher sees it."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from executorlib.standalone.interactive.messages import STARTED, STARTED_HEAD
from executorlib.standalone.interactive.wire import Connection
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.pool import Allotment
from executorlib.task_scheduler.interactive.worker import Worker, socket_pair

WORK = "import sys; from executorlib.backend.worker import work; sys.exit(work(int(sys.argv[1]), None))"


def test_what_it_said_before_is_heard_and_it_is_told_that_no_more_is() -> None:
    ours, theirs = socket_pair()
    worker = Worker(1, 0, Resources(), Allotment(1))
    worker.connection, its_end = Connection(ours), Connection(theirs)
    its_end.send(b"before")
    worker.stop_hearing()
    with pytest.raises(BrokenPipeError):
        its_end.send(b"after")
    assert [bytes(body) for body, _ in worker.last_messages()] == [b"before"]
    its_end.close()
    worker.close()


def start(channel: socket.socket) -> subprocess.Popen[bytes]:
    fd = channel.fileno()
    return subprocess.Popen([sys.executable, "-c", WORK, str(fd)], pass_fds=[fd])


def test_it_reads_no_task_if_it_cannot_say_that_it_is_there() -> None:
    """A task that was sent to it runs elsewhere then."""
    ours, theirs = socket_pair()
    worker = Worker(1, 0, Resources(), Allotment(1))
    worker.connection = Connection(ours)
    worker.connection.send(b"a task")
    worker.stop_hearing()
    try:
        assert start(theirs).wait(20) == 0
        assert b"a task" in theirs.recv(100)
    finally:
        theirs.close()
        worker.close()


def test_it_says_first_which_process_it_is() -> None:
    ours, theirs = socket_pair()
    connection = Connection(ours)
    process = start(theirs)
    theirs.close()
    ours.settimeout(20)
    try:
        body, _ = connection.receive()
    finally:
        connection.close()  # then it ends
    assert process.wait(20) == 0
    assert STARTED_HEAD.unpack(body) == (STARTED, process.pid)
