"""What other threads hand to a dispatcher, and how they wake it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """A queue whose one reader sleeps over it and over other descriptors."""

    def __init__(self, *descriptors: int) -> None:
        self._items: deque[T] = deque()
        self._sleeping = False
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for descriptor in (self._reader.fileno(), *descriptors):
            self._selector.register(descriptor, selectors.EVENT_READ)

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, item: T) -> None:
        """Add an item and wake the reader; from any thread."""
        self._items.append(item)
        if self._sleeping:
            self._sleeping = False
            with contextlib.suppress(OSError):  # full: it will wake anyhow; closed: it has ended
                self._writer.send(b"x")

    def take(self) -> Iterator[T]:
        """What is there now: what is added meanwhile has to wait, so that it holds up nothing else."""
        for _ in range(len(self._items)):
            yield self._items.popleft()

    def take_all(self) -> Iterator[T]:
        """What is there until there is nothing more; from any thread."""
        while True:
            try:
                yield self._items.popleft()
            except IndexError:
                return

    def sleep(self, until: float | None) -> None:
        """Sleep until there is an item, one of the descriptors is readable, or this moment of the monotonic clock."""
        self._sleeping = True
        if self._items:  # something came before the bell could be heard
            until = 0.0
        self._selector.select(None if until is None else max(0.0, until - time.monotonic()))
        self._sleeping = False
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Free the descriptors; items may still be added and taken."""
        self._selector.close()
        self._reader.close()
        self._writer.close()
