"""Which of its tasks a worker has begun, where the dispatcher is on another machine.

A worker of the dispatcher's machine takes tokens out of a pipe, see `executorlib.backend.runner.Claims`. Here the agent
that has forked the worker answers for the dispatcher. It cannot hold tokens for messages that are still under way, so
both share a few bytes of memory instead: how many tasks the worker has begun, and up to which they are taken back. The
lock of a file sees to it that they agree, and the kernel takes it from a process that dies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time

from executorlib.backend.runner import Claims
from executorlib.standalone.interactive.messages import UNCLAIMED

_STATE = struct.Struct("<QQ")  # tasks begun; the last that was taken back
# The lock is held for microseconds, unless somebody has stopped the worker in that moment.
_LOCK_SECONDS = 0.05


class Turns(Claims):
    """Made by the agent before it forks; then both sides have it.

    The tasks that a worker is sent are counted from 1. Their message has the number of its first task.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self._file = os.memfd_create("executorlib-turns")
        os.ftruncate(self._file, _STATE.size)
        self._memory = mmap.mmap(self._file, _STATE.size)
        self._message = UNCLAIMED
        self._next = 0

    # In the worker

    def take(self, batch: int) -> bool:
        """Begin the next task of a message; False if it was taken back."""
        if batch == UNCLAIMED:
            return True
        if batch != self._message:
            self._message = self._next = batch
        number = self._next
        self._next += 1
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            _, last = _STATE.unpack(self._memory)
            if number <= last:
                return False
            self._memory[:] = _STATE.pack(number, last)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return True

    # In the agent

    def begun(self) -> int:
        """The last task that the worker has begun."""
        return int(_STATE.unpack(self._memory)[0])

    def take_back(self, last: int) -> int:
        """Take back the tasks up to this one that have not begun; returns the last that has."""
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:  # nothing is taken back
                    return last
                time.sleep(0.0001)
        try:
            begun, before = _STATE.unpack(self._memory)
            self._memory[:] = _STATE.pack(begun, max(last, before))
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return int(begun)

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)
