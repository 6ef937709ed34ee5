"""Where workers connect that were not forked here, and strangers are turned away."""

from __future__ import annotations

import contextlib
import logging
import selectors
import time
from collections.abc import Callable

from executorlib.standalone.interactive.listener import Guest, Hello, Listener
from executorlib.standalone.interactive.messages import WELCOME
from executorlib.standalone.interactive.wire import Connection, Message, ProtocolError

_LOG = logging.getLogger("executorlib")
# Where the program has no descriptor left, the next worker is let in after so long at the earliest.
_PAUSE_SECONDS = 1.0
# Until so long after that it is taken to be still there, should the program be busy otherwise.
_FULL_SECONDS = 5.0


class Door:
    """The listening socket of an executor and those who stand before it, served by the dispatcher's selector.

    Attributes:
        full_until: until then somebody may stand at the door for whom no descriptor is left (monotonic clock)

    Args:
        selector: where the dispatcher waits
        localhost: whether all workers run on this machine
        arrived: called with who has come in, and the connection that is theirs to keep or close
        reported: called with what a rank other than the first has to say
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        localhost: bool,
        arrived: Callable[[Hello, Connection], None],
        reported: Callable[[Hello, Message], None],
    ) -> None:
        self._selector = selector
        self._arrived = arrived
        self._reported = reported
        self._listener = Listener(localhost)
        self._reporters: dict[int, Connection] = {}
        self._closed_until: float | None = None
        self.full_until = 0.0
        selector.register(self._listener, selectors.EVENT_READ, self._knock)

    def environment(self) -> dict[str, str]:
        """What a worker needs in its environment: the key, which must not be seen on a command line."""
        return self._listener.environment()

    def arguments(self) -> list[str]:
        """What a worker program needs on its command line."""
        return self._listener.arguments()

    def deadline(self) -> float | None:
        """When `expire` wants to be called next."""
        return min((at for at in (self._listener.deadline(), self._closed_until) if at is not None), default=None)

    def expire(self, now: float) -> None:
        """Turn away those who do not introduce themselves."""
        if self._closed_until is not None and self._closed_until <= now:
            self._closed_until = None
            self._selector.register(self._listener, selectors.EVENT_READ, self._knock)
        for guest in self._listener.overdue(now):
            self._turn_away(guest, "it stayed silent")

    def close(self) -> None:
        for connection in self._reporters.values():
            connection.close()
        self._listener.close()

    def _knock(self) -> None:
        if (other := self._listener.in_the_way()) is not None:
            self._turn_away(other, "too many strangers at a time")
        try:
            guest = self._listener.accept()
        except OSError as error:  # no descriptor is left: who stands at the door has to wait
            level = logging.DEBUG if self.full_until else logging.WARNING  # it may say so each second, for hours
            _LOG.log(level, "cannot let a worker in: %s", error)
            self._selector.unregister(self._listener)
            self._closed_until = time.monotonic() + _PAUSE_SECONDS
            self.full_until = self._closed_until + _FULL_SECONDS
            return
        self.full_until = 0.0
        if guest is not None:
            self._selector.register(guest, selectors.EVENT_READ, lambda: self._introduce(guest))

    def _introduce(self, guest: Guest) -> None:
        if guest.fileno() < 0:  # it was turned away in the same round
            return
        try:
            introduced = guest.read(self._listener.key)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._turn_away(guest, error)
            return
        if introduced is None:
            return
        hello, connection, messages = introduced
        self._selector.unregister(guest)
        del self._listener.guests[guest.fileno()]
        if hello.rank == 0:
            self._arrived(hello, connection)
        elif messages:
            self._report(hello, connection, messages[0])
        else:
            self._reporters[connection.fileno()] = connection
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear(hello, connection))
            with contextlib.suppress(OSError):  # its end will be read
                connection.send(WELCOME)

    def _hear(self, hello: Hello, connection: Connection) -> None:
        """A rank other than the first says what has gone wrong, on a connection of its own."""
        try:
            messages, closed = connection.read()
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            messages, closed = [], True
        if messages or closed:
            self._selector.unregister(connection)
            del self._reporters[connection.fileno()]
            if messages:
                self._report(hello, connection, messages[0])
            else:
                connection.close()

    def _report(self, hello: Hello, connection: Connection, message: Message) -> None:
        connection.close()
        self._reported(hello, message)

    def _turn_away(self, guest: Guest, reason: object) -> None:
        self._selector.unregister(guest)
        del self._listener.guests[guest.fileno()]
        guest.sock.close()
        self._listener.dropped(reason)
