"""The program's end of a channel to one worker that connects over TCP: the door, and the connection behind it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import selectors
import time
from collections import deque
from typing import Any

from executorlib.standalone.interactive.listener import Guest, Hello, Listener, key_variable
from executorlib.standalone.interactive.messages import RANK_ERROR, WELCOME
from executorlib.standalone.interactive.wire import Connection, Message

_LOG = logging.getLogger("executorlib")
# Made anew for each wait; epoll would cost a system call for every object in it.
_Selector: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Line:
    """Waits for one worker, then for what it sends. Everything happens in `step`; there is no thread.

    The key stands in the environment of this program, from which any launcher hands it on to the worker.

    Args:
        localhost: whether the worker runs on this machine

    Attributes:
        hello: who has connected, None before that
        inbox: messages of the worker
        asides: messages of ranks other than the first, on connections of their own
        lost: why there is no connection any more, None while there is or may be one
    """

    def __init__(self, localhost: bool) -> None:
        self._listener = Listener(localhost)
        self._connection: Connection | None = None
        self._ranks: list[Connection] = []
        self.port = self._listener.port
        self.hello: Hello | None = None
        self.inbox: deque[Message] = deque()
        self.asides: deque[Message] = deque()
        self.lost: str | None = None
        self.announce()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def unsent(self) -> bool:
        return self._connection is not None and self._connection.unsent

    def announce(self) -> None:
        """Put the key where the workers that are started from now on find it."""
        os.environ.update(self._listener.environment())

    def step(self, timeout: float) -> None:
        """Wait until something happens, at most so many seconds, and see to it."""
        deadline = self._listener.deadline()
        if deadline is not None:
            timeout = min(timeout, deadline - time.monotonic())
        with _Selector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, self._open_door)
            for guest in self._listener.guests.values():
                selector.register(guest, selectors.EVENT_READ, functools.partial(self._hear_guest, guest))
            for rank in self._ranks:
                selector.register(rank, selectors.EVENT_READ, functools.partial(self._hear_rank, rank))
            if self._connection is not None and self.lost is None:
                writing = selectors.EVENT_WRITE if self._connection.unsent else 0
                selector.register(self._connection, selectors.EVENT_READ | writing, self._exchange)
            ready = selector.select(max(0.0, timeout))
        for key, _ in ready:
            if key.fileobj.fileno() >= 0:  # it was not closed just now
                key.data()
        for guest in self._listener.overdue(time.monotonic()):
            self._turn_away(guest, "it did not introduce itself")

    def send(self, body: bytes, buffers: Any = ()) -> None:
        """Send a message, or as much of it as goes now: `step` sends the rest."""
        assert self._connection is not None
        try:
            self._connection.send(body, buffers)
        except OSError:  # what it has sent before it went may still be there to read
            self._connection.discard()

    def hang_up(self) -> None:
        """Forget the worker and wait for another."""
        for connection in [self._connection, *self._ranks]:
            if connection is not None:
                connection.close()
        self._connection = self.hello = self.lost = None
        self._ranks.clear()
        self.inbox.clear()
        self.asides.clear()

    def close(self) -> None:
        """Close everything; the key is of no more use."""
        self.hang_up()
        self._listener.close()
        os.environ.pop(key_variable(self.port), None)

    def _open_door(self) -> None:
        if (guest := self._listener.in_the_way()) is not None:
            self._turn_away(guest, "too many strangers at a time")
        self._listener.accept()

    def _hear_guest(self, guest: Guest) -> None:
        try:
            introduced = guest.read(self._listener.key)
        except BlockingIOError:
            return
        except Exception as reason:  # it is a stranger, and may have sent anything
            self._turn_away(guest, reason)
            return
        if introduced is None:
            return
        del self._listener.guests[guest.fileno()]
        hello, connection, messages = introduced
        if hello.rank > 0:
            self.asides.extend(messages)
            self._ranks.append(connection)
            with contextlib.suppress(OSError):
                connection.send(WELCOME)
        elif self._connection is None:
            self.hello, self._connection = hello, connection
            self.inbox.extend(messages)
            self.send(WELCOME)
        else:
            _LOG.warning("turned away a second worker (pid %s on %s) at port %s", hello.pid, hello.host, self.port)
            connection.close()

    def _turn_away(self, guest: Guest, reason: object) -> None:
        del self._listener.guests[guest.fileno()]
        guest.sock.close()
        self._listener.dropped(reason)

    def _exchange(self) -> None:
        """Send what the socket takes and read what is there, up to the end of a message."""
        assert self._connection is not None
        try:
            self._connection.flush()
        except OSError:
            self._connection.discard()
        try:
            messages, closed = _read(self._connection)
        except OSError as reason:
            self._connection.discard()
            self.lost = str(reason)
            return
        for message in messages:  # the first rank has no other connection to say that it has failed
            (self.asides if message[0][:1] == RANK_ERROR else self.inbox).append(message)
        if closed:
            self._connection.discard()
            self.lost = "it closed the connection"

    def _hear_rank(self, rank: Connection) -> None:
        try:
            messages, closed = _read(rank)
        except OSError:
            messages, closed = [], True
        self.asides.extend(messages)
        if closed:
            self._ranks.remove(rank)
            rank.close()


def _read(connection: Connection) -> tuple[list[Message], bool]:
    try:
        while True:
            messages, closed = connection.read()
            if messages or closed:
                return messages, closed
    except BlockingIOError:
        return [], False
