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
        host = socket.gethostname()
        # An error in one rank would let the others wait in the next call for ever: there is none that is not caught.
        hosts = comm.gather(host) or []
        pipes = [_pipe() if other == host else None for other in hosts[1:]]
        pid, names = comm.bcast((os.getpid(), [pipe and (pipe[0], _identity(pipe[0])) for pipe in pipes]))
        name = names[comm.rank - 1] if comm.rank != 0 else None
        if name is not None:
            self._heard = _opened(f"/proc/{pid}/fd/{name[0]}", name[1])
        hearing = comm.gather(self._heard is not None) or []
        for pipe, hears in zip(pipes, hearing[1:], strict=True):
            if pipe is not None:
                os.close(pipe[0])
                if hears:
                    self._rung.append(pipe[1])
                else:
                    os.close(pipe[1])

    def ring(self) -> None:
        """Wake the others for a message (rank 0), before it is sent: MPI may wait for them to receive it."""
        for ring in self._rung:
            with contextlib.suppress(OSError):  # it has ended, which its launcher will notice
                os.write(ring, b"x")

    def wait(self) -> None:
        """Sleep until a message is about to come, where there is a bell (any other rank)."""
        if self._heard is not None and not os.read(self._heard, 1):  # rank 0 has ended: this one will follow
            os.close(self._heard)
            self._heard = None


def _pipe() -> tuple[int, int] | None:
    """A pipe, if there are descriptors left for it."""
    try:
        return os.pipe()
    except OSError:
        return None


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
