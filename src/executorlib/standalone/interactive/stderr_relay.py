"""What processes that were not forked here write to their standard error: passed on, and its end kept for errors."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from executorlib.standalone.interactive.launcher import is_standard_stream

# A pipe that is ready takes so much without waiting (PIPE_BUF of Linux).
_PIECE_BYTES = 4096
_STDERR = 2


class Speaker(Protocol):
    """A worker or an agent.

    Attributes:
        stderr: the pipe that it writes to; None when that has ended
    """

    stderr: int | None

    def heard(self, data: bytes) -> None:
        """Keep the end of what it writes."""


S = TypeVar("S", bound=Speaker)


class StderrRelay(Generic[S]):
    """Reads pipes in the dispatcher's thread, and never waits for who reads the program's own output.

    While nobody does, it does not read either: who writes on waits, as it would without a program between.

    Args:
        selector: where the dispatcher waits
        ended: called when a pipe has ended
    """

    def __init__(self, selector: selectors.BaseSelector, ended: Callable[[S], None]) -> None:
        self._selector = selector
        self._ended = ended
        self._paused: list[S] = []
        self._room: int | None = None  # readable as "writable": a duplicate of the program's standard error

    def watch(self, speaker: S, descriptor: int) -> None:
        """Read a pipe from now on."""
        speaker.stderr = descriptor
        self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._read(speaker))

    def drop(self, speaker: S) -> None:
        """Close a pipe; what it still holds is lost."""
        if speaker.stderr is None:
            return
        if speaker in self._paused:
            self._paused.remove(speaker)
        else:
            self._selector.unregister(speaker.stderr)
        os.close(speaker.stderr)
        speaker.stderr = None

    def close(self) -> None:
        if self._room is not None:
            os.close(self._room)
            self._room = None

    def _read(self, speaker: S) -> None:
        if speaker.stderr is None or speaker in self._paused:  # its end was heard of in the same round
            return
        somebody_may_read = is_standard_stream(_STDERR)
        if somebody_may_read and not _takes_a_piece(_STDERR):
            if self._pause(speaker):
                return
            somebody_may_read = False
        data = os.read(speaker.stderr, _PIECE_BYTES)
        if data:
            speaker.heard(data)
            if somebody_may_read:
                with contextlib.suppress(OSError):
                    os.write(_STDERR, data)
        else:
            self.drop(speaker)
            self._ended(speaker)

    def _pause(self, speaker: S) -> bool:
        """Read no more of a pipe until there is room for it; returns whether that can be waited for."""
        assert speaker.stderr is not None
        if self._room is None:
            try:
                self._room = os.dup(_STDERR)
            except OSError:  # no descriptor is left
                return False
            self._selector.register(self._room, selectors.EVENT_WRITE, self._go_on)
        self._selector.unregister(speaker.stderr)
        self._paused.append(speaker)
        return True

    def _go_on(self) -> None:
        assert self._room is not None
        self._selector.unregister(self._room)
        self.close()
        paused, self._paused = self._paused, []
        for speaker in paused:
            if speaker.stderr is not None:
                self.watch(speaker, speaker.stderr)


def _takes_a_piece(descriptor: int) -> bool:
    """Whether a write to a descriptor returns at once, be it with an error."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))
