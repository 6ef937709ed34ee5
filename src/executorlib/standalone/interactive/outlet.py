"""Writing without waiting for who reads."""

from __future__ import annotations

import contextlib
import os
import select

# A pipe that is ready takes so much without waiting (PIPE_BUF of Linux).
_PIECE_BYTES = 4096
# More is not kept for somebody who does not read.
_MOST_BYTES = 1 << 24


class Outlet:
    """A descriptor that is written to as far as it takes something; the rest waits.

    Args:
        fd: it, or a duplicate that belongs to the outlet
        poll: reports that it takes more; `flush` is to be called then
        own: whether the outlet closes it
    """

    def __init__(self, fd: int, poll: select.epoll, *, own: bool) -> None:
        self._fd = fd
        self._poll = poll
        self._own = own
        self._pending = bytearray()
        self._waiting: int | None = None  # a duplicate of it: it may be closed, or be another file, at any time
        self._ended = False

    def write(self, data: bytes) -> None:
        """Write now or later; nothing if it is closed, or if too much waits already."""
        if not self._ended and len(self._pending) < _MOST_BYTES:
            self._pending += data
            self.flush()

    def flush(self) -> None:
        """Write as much of what waits as goes now."""
        fd = self._fd if self._waiting is None else self._waiting
        try:
            while self._pending and _takes_a_piece(fd):
                del self._pending[: os.write(fd, self._pending[:_PIECE_BYTES])]
            if self._pending and self._waiting is None:
                self._waiting = os.dup(fd)
                self._poll.register(self._waiting, select.EPOLLOUT)
        except OSError:  # nobody reads it any more
            self._pending.clear()
        if not self._pending:
            self._wait_no_more()
            if self._ended:
                self._close()

    def end(self, *, now: bool = False) -> None:
        """Nothing more comes; it is closed when all is written, or at once."""
        self._ended = True
        if now:
            self._pending.clear()
        self.flush()

    @property
    def closed(self) -> bool:
        return self._ended and not self._pending

    def abandon(self) -> None:
        """In a child of the program: let go of it, and of nothing that is shared with the parent."""
        self._close()
        if self._waiting is not None:
            os.close(self._waiting)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(self._waiting)
            os.close(self._waiting)
            self._waiting = None

    def _close(self) -> None:
        if self._own:
            self._own = False
            os.close(self._fd)


def _takes_a_piece(fd: int) -> bool:
    """Whether a write returns at once, be it with an error."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
