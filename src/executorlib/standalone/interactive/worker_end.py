"""The worker program's end of a channel to a `SocketInterface`, for programs that other packages bring.

context, socket = interface_connect(host, port)
while True:
    request = interface_receive(socket)
    if request.get("shutdown"):
        interface_send(socket, {"result": True})
        interface_shutdown(socket, context)
        break
    interface_send(socket, {"result": request["fn"](*request["args"], **request["kwargs"])})
"""

from __future__ import annotations

import os
import platform
from socket import gethostname
from typing import Any

from executorlib.standalone.errors import ExecutorlibSocketError
from executorlib.standalone.interactive.dicts import encode_head, split_dict
from executorlib.standalone.interactive.listener import Hello, introduce, key_variable
from executorlib.standalone.interactive.messages import WELCOME
from executorlib.standalone.interactive.wire import Connection
from executorlib.standalone.serialize import dumps, loads


class WorkerContext:
    """Stands beside the socket of a worker program; ends with it."""

    def __init__(self, socket: Connection) -> None:
        self._socket = socket

    def term(self) -> None:
        """Close the connection."""
        self._socket.close()


def interface_connect(host: str, port: str | int) -> tuple[WorkerContext, Connection]:
    """Connect a worker program to the `SocketInterface` that has started it.

    Args:
        host: what the program was given as ``--host``, else "localhost"
        port: what it was given as ``--zmqport``

    Returns:
        context and socket, for `interface_receive`, `interface_send` and `interface_shutdown`

    Raises:
        ExecutorlibSocketError: this program has no key, because it was not started by a spawner
        OSError: nothing answers there
    """
    name = key_variable(int(port))
    key = os.environ.pop(name, None)  # what this program starts has no business with it
    if key is None:
        raise ExecutorlibSocketError(
            f"the environment has no {name}: a worker inherits it from the program that has opened the port"
        )
    # How many ranks there are is this program's business: 0 says that it does not tell.
    hello = Hello(worker=0, ranks=0, pid=os.getpid(), host=gethostname(), python=platform.python_version())
    socket = introduce(host, int(port), bytes.fromhex(key), hello)
    return WorkerContext(socket), socket


def interface_send(socket: Connection, result_dict: dict[str, Any]) -> None:
    """Send a dictionary from a worker program.

    Raises:
        OSError: the program that has started it is gone
        Exception: whatever the pickling raises
    """
    payload = dumps(result_dict)
    socket.send(encode_head(0) + payload.data, payload.buffers)


def interface_receive(socket: Connection) -> dict[str, Any]:
    """Wait in a worker program for the next dictionary.

    Raises:
        ExecutorlibSocketError: the program that has started it is gone
    """
    try:
        message = socket.receive()
        while message[0] == WELCOME:
            message = socket.receive()
    except (EOFError, ConnectionError) as reason:
        raise ExecutorlibSocketError(f"the program that has started this worker is gone: {reason}") from reason
    dictionary: dict[str, Any] = loads(split_dict(message)[1])
    return dictionary


def interface_shutdown(socket: Connection | None, context: WorkerContext | None) -> None:
    """Close the connection of a worker program."""
    if socket is not None:
        socket.close()
    if context is not None:
        context.term()
