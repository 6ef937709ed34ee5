"""The door for workers that connect over TCP: those that were not forked here.

A stranger who finds the port can hold one of a few places for a few seconds, no more: what it sends is compared with
the greeting and the key, never unpickled, and it is dropped with one line in the log.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import socket
import time
from typing import Any, NamedTuple

from executorlib.standalone.command import KEY_VARIABLE
from executorlib.standalone.interactive.messages import HELLO, WELCOME
from executorlib.standalone.interactive.wire import (
    GREETING_BYTES,
    ClosedError,
    Connection,
    ProtocolError,
    connect,
    greeting,
    keep_alive,
    secure,
)

_GREETING_SECONDS = 10.0
_MAX_STRANGERS = 64
# A worker that was pushed aside by a crowd of strangers knocks again, so often.
_KNOCKS = 200
_LONGEST_PAUSE = 0.2
_LOG = logging.getLogger("executorlib")
_LOG.addHandler(logging.NullHandler())  # a library is silent, unless the program wants to hear of it


def key_variable(port: int) -> str:
    """Name of the environment variable by which a worker gets the key of the executor at a port."""
    return f"{KEY_VARIABLE}{port}"


class Hello(NamedTuple):
    """How a worker introduces itself."""

    worker: int
    rank: int = 0
    ranks: int = 1
    pid: int = 0
    host: str = ""
    python: str = ""


def introduce(host: str, port: int, key: bytes, hello: Hello, timeout: float = 60.0) -> Connection:
    """Connect a worker to its executor and say who it is; returns when the executor has welcomed it.

    Raises:
        OSError: nothing answers there, or what answers is not the executor
    """
    knocks = _KNOCKS
    while True:
        connection = None
        try:
            connection = connect(host, port, key, timeout)
            connection.send(HELLO + pickle.dumps(tuple(hello)))
            if connection.receive()[0] != WELCOME:
                raise ProtocolError(f"{host}:{port} has not said welcome")
            return connection
        except (EOFError, ConnectionResetError, BrokenPipeError, ClosedError) as error:
            if connection is not None:
                connection.close()
            knocks -= 1
            if knocks == 0:
                raise ProtocolError(f"{host}:{port} closes every connection: {error}") from error
            import random

            time.sleep(random.uniform(0.0, _LONGEST_PAUSE))
        except BaseException:
            if connection is not None:
                connection.close()
            raise


class Guest:
    """A peer that has connected and not yet shown the key."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = time.monotonic() + _GREETING_SECONDS
        self._sent = greeting()
        self._received = b""
        self._connection: Connection | None = None

    def fileno(self) -> int:
        return self.sock.fileno()

    def read(self, key: bytes) -> tuple[Hello, Connection, list[Any]] | None:
        """Go on with the introduction.

        Returns:
            None while it is not complete; then who it is, the connection, and what it has sent beside

        Raises:
            ProtocolError: it is a stranger
            OSError: it is gone
        """
        if self._connection is None:
            data = self.sock.recv(GREETING_BYTES - len(self._received))
            if not data:
                raise ProtocolError("it closed the connection")
            self._received += data
            if len(self._received) < GREETING_BYTES:
                return None
            self._connection = secure(self.sock, key, self._sent, self._received, worker=False)
            self.sock.send(self._sent)
            return None
        messages, closed = self._connection.read()
        if not messages:
            if closed:
                raise ProtocolError("it closed the connection")
            return None
        body = messages[0][0]
        if body[:1] != HELLO:
            raise ProtocolError("it did not say hello")
        return Hello(*pickle.loads(body[1:])), self._connection, messages[1:]


class Listener:
    """A listening socket with its key.

    Args:
        localhost: whether workers run on this machine only
    """

    def __init__(self, localhost: bool) -> None:
        import hmac  # noqa: F401  # used by `wire`, but no file can be opened for it where no descriptor is left

        self.key = os.urandom(32)
        # A worker elsewhere needs every interface: which of them leads to the compute nodes is the site's secret.
        address = "127.0.0.1" if localhost else ""
        self.sock = socket.create_server((address, 0), backlog=1024)
        self.sock.setblocking(False)
        self.host = "127.0.0.1" if localhost else socket.gethostname()
        self.port: int = self.sock.getsockname()[1]
        self.guests: dict[int, Guest] = {}
        self._strangers = 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def environment(self) -> dict[str, str]:
        """What a worker needs in its environment: the key, which must not be seen on a command line."""
        return {key_variable(self.port): self.key.hex()}

    def arguments(self) -> list[str]:
        """What a worker program needs on its command line."""
        return ["--host", self.host, "--zmqport", str(self.port)]

    def in_the_way(self) -> Guest | None:
        """Who has to go before the next comes in, where too many wait to introduce themselves.

        It is drawn by lot: whoever always comes first, or last, gains nothing. A worker comes again.
        """
        if len(self.guests) < _MAX_STRANGERS:
            return None
        # Not by the module random: no file can be opened to import it where no descriptor is left.
        drawn = int.from_bytes(os.urandom(4), "little") % len(self.guests)
        return list(self.guests.values())[drawn]

    def accept(self) -> Guest | None:
        """The next peer at the door; None when there is none.

        Raises:
            OSError: there is one, and no descriptor left for it
        """
        try:
            sock, _ = self.sock.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            return None  # it has gone again
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        guest = Guest(sock)
        self.guests[guest.fileno()] = guest
        return guest

    def overdue(self, now: float) -> list[Guest]:
        return [guest for guest in self.guests.values() if guest.deadline <= now]

    def deadline(self) -> float | None:
        return min((guest.deadline for guest in self.guests.values()), default=None)

    def dropped(self, reason: object) -> None:
        """Note that a stranger was turned away: the first is a warning, the rest are for debugging."""
        self._strangers += 1
        level = logging.WARNING if self._strangers == 1 else logging.DEBUG
        _LOG.log(level, "dropped a connection to port %s: %s", self.port, reason)

    def close(self) -> None:
        for guest in self.guests.values():
            guest.sock.close()
        self.sock.close()
