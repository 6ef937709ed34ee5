"""How rank 0 wakes the ranks of its machine: they wait in the kernel, while MPI itself would keep a core busy."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Any


class Bell:
    """A pipe from rank 0 to each other rank on the same machine, one byte for each message that is about to come.

    The ranks are children of MPI's launcher, which passes no descriptors on: a rank opens its pipe by the name that
    the descriptor of rank 0 has under /proc. Where that is not possible (another machine, another system, a process
    that may not be looked at) there is no bell, and the rank has to look for messages itself.

    Made by all ranks together.

    Args:
        comm: a communicator of this library alone
    """

    def __init__(self, comm: Any) -> None:
        self._heard: int | None = None
        self._rung: list[int] = []
        pipes = [os.pipe() for _ in range(1, comm.size)] if comm.rank == 0 else []
        mine = (socket.gethostname(), os.getpid(), [(end, _identity(end)) for end, _ in pipes])
        host, pid, ends = comm.bcast(mine)
        if comm.rank != 0 and host == socket.gethostname():
            self._heard = _opened(f"/proc/{pid}/fd/{ends[comm.rank - 1][0]}", ends[comm.rank - 1][1])
        hearing = comm.gather(self._heard is not None)
        for (end, ring), hears in zip(pipes, (hearing or [])[1:], strict=True):
            os.close(end)
            if hears:
                self._rung.append(ring)
            else:
                os.close(ring)

    def ring(self) -> None:
        """Wake the others for a message (rank 0)."""
        for ring in self._rung:
            with contextlib.suppress(OSError):  # it has ended, which its launcher will notice
                os.write(ring, b"x")

    def wait(self) -> None:
        """Sleep until a message is about to come, where there is a bell (any other rank)."""
        if self._heard is not None and not os.read(self._heard, 1):
            self._heard = None  # rank 0 has ended, and will be followed by this one


def _identity(end: int) -> tuple[int, int]:
    found = os.fstat(end)
    return found.st_dev, found.st_ino


def _opened(path: str, identity: tuple[int, int]) -> int | None:
    """The pipe of that name, if it is that pipe: a number means another process in another namespace."""
    try:
        found = os.stat(path)
        if not stat.S_ISFIFO(found.st_mode) or (found.st_dev, found.st_ino) != identity:
            return None
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None
