"""What workers that were not forked here write to their standard error: passed on, and its end kept for errors."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
from collections.abc import Callable

from executorlib.task_scheduler.interactive.worker import Worker

# A pipe that is ready takes so much without waiting (PIPE_BUF of Linux).
_PIECE_BYTES = 4096
_STDERR = 2


class StderrRelay:
    """Reads the pipes of workers in the dispatcher's thread, and never waits for who reads the program's own output.

    While nobody does, it does not read either: a worker that writes on waits, as it would without a program between.

    Args:
        selector: where the dispatcher waits
        ended: called when a worker's pipe has ended
    """

    def __init__(self, selector: selectors.BaseSelector, ended: Callable[[Worker], None]) -> None:
        self._selector = selector
        self._ended = ended
        self._paused: list[Worker] = []
        self._room: int | None = None  # readable as "writable": a duplicate of the program's standard error

    def watch(self, worker: Worker, descriptor: int) -> None:
        """Read the pipe of a worker from now on."""
        worker.stderr = descriptor
        self._selector.register(descriptor, selectors.EVENT_READ, lambda: self._read(worker))

    def drop(self, worker: Worker) -> None:
        """Close the pipe of a worker; what it still holds is lost."""
        if worker.stderr is None:
            return
        if worker in self._paused:
            self._paused.remove(worker)
        else:
            self._selector.unregister(worker.stderr)
        os.close(worker.stderr)
        worker.stderr = None

    def close(self) -> None:
        if self._room is not None:
            os.close(self._room)
            self._room = None

    def _read(self, worker: Worker) -> None:
        if worker.stderr is None or worker in self._paused:  # its end was heard of in the same round
            return
        if not _takes_a_piece(_STDERR):
            self._pause(worker)
            return
        data = os.read(worker.stderr, _PIECE_BYTES)
        if data:
            worker.heard(data)
            with contextlib.suppress(OSError):
                os.write(_STDERR, data)
        else:
            self.drop(worker)
            self._ended(worker)

    def _pause(self, worker: Worker) -> None:
        assert worker.stderr is not None
        self._selector.unregister(worker.stderr)
        self._paused.append(worker)
        if self._room is None:
            self._room = os.dup(_STDERR)
            self._selector.register(self._room, selectors.EVENT_WRITE, self._go_on)

    def _go_on(self) -> None:
        assert self._room is not None
        self._selector.unregister(self._room)
        self.close()
        paused, self._paused = self._paused, []
        for worker in paused:
            if worker.stderr is not None:
                self.watch(worker, worker.stderr)


def _takes_a_piece(descriptor: int) -> bool:
    """Whether a write to a descriptor returns at once, be it with an error."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(0))
