"""Dictionaries to a worker program and back, for libraries that bring programs or launchers of their own.

    program                                    worker program (this library's, or one that calls interface_connect)
    SocketInterface ── {"fn", "args", ...} ──► interface_receive
                    ◄── {"result": ...} ────── interface_send
        │
     Spawner ── command, key in the environment ──► process

The channel is that of the executors: signed messages over TCP, see `executorlib.standalone.interactive.wire`.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from executorlib.standalone.errors import ExecutorlibSocketError
from executorlib.standalone.interactive.dicts import Request, decode_reply, encode_head, request_of
from executorlib.standalone.interactive.line import Line
from executorlib.standalone.serialize import dumps, load_error

if TYPE_CHECKING:
    from executorlib.standalone.interactive.spawner import BaseSpawner

__all__ = [
    "ExecutorlibSocketError",
    "SocketInterface",
    "interface_bootup",
    "interface_connect",
    "interface_receive",
    "interface_send",
    "interface_shutdown",
]

# A worker that has hung up, or whose spawner says that it is gone, gets so long for the other half of the news.
_NEWS_SECONDS = 2.0
# A worker that has been told to end gets so long to do so by itself.
_END_SECONDS = 5.0
# When one rank has failed, the others get so long to come to an end themselves.
_RANK_SECONDS = 3.0


class SocketInterface:
    """A worker process that is sent dictionaries and answers them, one after the other.

    Not for use by several threads at a time.

    Args:
        spawner: starts the worker; None if it is started by other means
        log_obj_size: log the size of what is sent and received, in bytes
        time_out_ms: how often the spawner is asked, while waiting, whether the worker is alive. What the worker
            sends, and the end of its connection, are noticed at once.
    """

    def __init__(self, spawner: BaseSpawner | None = None, log_obj_size: bool = False, time_out_ms: int = 1000) -> None:
        self._spawner = spawner
        self._logger = logging.getLogger("executorlib") if log_obj_size else None
        self._time_out_ms = time_out_ms
        self._command_lst: list[str] = []
        self._stop_function: Callable[[], bool] | None = None
        self._status = False
        self._line: Line | None = None
        self._numbers = 0
        self._requests: deque[Request] = deque()
        self._rank_error: tuple[float, bytes] | None = None
        self._owner = os.getpid()

    @property
    def status(self) -> bool:
        """Whether the last `bootup` has started a worker."""
        return self._status

    @status.setter
    def status(self, status: bool) -> None:
        self._status = status

    def bind_to_random_port(self) -> int:
        """Open a port for the worker and return it; the key for it is in the environment until the shutdown."""
        return self._bind(localhost=False)

    def bootup(self, command_lst: list[str] | None = None, stop_function: Callable[[], bool] | None = None) -> None:
        """Start the worker, or start it again; `status` tells whether it was started.

        Args:
            command_lst: the command line of the worker program, with the port; by default that of the last time
            stop_function: asked while there is no worker; if it says True, none is waited for

        Raises:
            ValueError: there is no command, or no spawner
        """
        if command_lst is not None:
            self._command_lst = command_lst
        if not self._command_lst:
            raise ValueError("there is no command that starts a worker: give one to bootup")
        if self._spawner is None:
            raise ValueError("a SocketInterface without a spawner cannot start a worker")
        self._stop_function = stop_function
        self._hang_up()
        if self._line is not None:
            self._line.announce()
        self._status = self._spawner.bootup(command_lst=self._command_lst, stop_function=stop_function)

    def send_dict(self, input_dict: dict[str, Any]) -> None:
        """Send a dictionary, as soon as the worker is there.

        Raises:
            ExecutorlibSocketError: the worker has died, or could not be started
            Exception: whatever the pickling of the dictionary raises
        """
        payload = dumps(input_dict)
        self._log("Send dictionary of size: %s", payload.nbytes)
        line = self._wait(lambda line: line.connected)
        self._check_ranks(line)
        self._numbers += 1
        request = request_of(self._numbers, input_dict)
        if request is not None:
            self._requests.append(request)
        line.send(encode_head(self._numbers) + payload.data, payload.buffers)
        self._wait(lambda line: not line.unsent)

    def receive_dict(self) -> dict[str, Any]:
        """Wait for the next dictionary of the worker.

        Returns:
            what the worker has sent: ``{"result": ...}`` or ``{"error": exception}``. The exception is an
            `ExecutorlibSocketError` that says how the worker has ended, if it has.
        """
        try:
            line = self._wait(lambda line: bool(line.inbox))
        except ExecutorlibSocketError as error:
            return {"error": error}
        except _RankFailed as failure:
            self.end_worker()
            return {"error": load_error(failure.data)}
        message = line.inbox.popleft()
        request = self._requests.popleft() if self._requests else None
        self._rank_error = None
        self._log("Received dictionary of size: %s", len(message.body) + sum(map(len, message.buffers)))
        reply: dict[str, Any] = decode_reply(message, request)
        return reply
