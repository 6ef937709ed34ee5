"""Ends a worker whose program is gone, where no process beside it would: a job of a queueing system lives on by itself.

worker ══ connection ══ program           The worker may be busy with the user's code, or in a call that holds
   ╚═ connection, line ═ watcher           the interpreter. A thread would not do.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from typing import Any

from executorlib.standalone.command import WATCH_VARIABLE
from executorlib.standalone.interactive.wire import Connection

# A worker that reads the end of its connection ends by itself, and may have something to finish.
_GRACE_MILLISECONDS = 2000


def start_watcher() -> Callable[[Connection], None]:
    """Start a watcher if the launcher wants one; call what this returns with the connection.

    Call it early: what MPI and its network have set up would not survive a fork in every case.
    """
    if os.environ.pop(WATCH_VARIABLE, None) is None:
        return lambda connection: None
    ours, theirs = socket.socketpair()
    worker = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            # A child of the worker would be found by a task that waits for its own.
            if os.fork() == 0:
                _leave(theirs)
                _watch(worker)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs.close()
    return lambda connection: _hand_over(ours, connection)


def _hand_over(line: socket.socket, connection: Connection) -> None:
    socket.send_fds(line, [b"x"], [connection.fileno()])
    _lines.append(line)  # open as long as the worker lives


_lines: list[Any] = []


def _leave(line: socket.socket) -> None:
    """Let go of everything but the line: the job is not over while somebody has its output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(line.fileno(), 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))


def _watch(worker: int) -> None:
    line = socket.socket(fileno=3)
    data, fds, _, _ = socket.recv_fds(line, 1, 1)
    if not data or not fds:  # the worker has ended
        return
    poll = select.poll()
    poll.register(line, select.POLLIN)
    poll.register(fds[0], select.POLLRDHUP)  # what is sent is not for us
    if any(fd == line.fileno() for fd, _ in poll.poll()):
        return
    poll.unregister(fds[0])
    if poll.poll(_GRACE_MILLISECONDS):
        return
    with contextlib.suppress(OSError):
        if os.getpgrp() == worker:  # with what the task has started
            os.killpg(worker, signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
