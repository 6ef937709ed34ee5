"""Dictionaries to a worker program and back, for libraries that bring programs or launchers of their own.

    program                                       worker program: this library's, or one with interface_connect
    SocketInterface ══ {"fn", "args", ...} ══►    interface_receive
                    ◄══ {"result": ...} ══════    interface_send
        │                                            ▲
        └── Spawner ── command line; key in the environment

The channel is that of the executors: signed messages over TCP, see `executorlib.standalone.interactive.wire`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable
from socket import gethostname
from typing import TYPE_CHECKING, Any

from executorlib.standalone.errors import ExecutorlibSocketError
from executorlib.standalone.interactive.dicts import Request, decode_reply, encode_head, request_of
from executorlib.standalone.interactive.line import Line
from executorlib.standalone.interactive.messages import RANK_ERROR
from executorlib.standalone.interactive.watch import WorkerWatch
from executorlib.standalone.interactive.worker_end import (
    interface_connect,
    interface_receive,
    interface_send,
    interface_shutdown,
)
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
        self._status = False
        self._watch: WorkerWatch | None = None
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
            ValueError: there is no command, no spawner, or no port
        """
        if command_lst is not None:
            self._command_lst = command_lst
        if not self._command_lst:
            raise ValueError("there is no command that starts a worker: give one to bootup")
        if self._spawner is None:
            raise ValueError("a SocketInterface without a spawner cannot start a worker")
        if self._watch is None:
            raise ValueError("a worker needs a port to connect to: call bind_to_random_port before bootup")
        self._watch.line.hang_up()
        self._forget_requests()
        self._watch.line.announce()
        self._watch.command = self._command_lst
        self._watch.stop_function = stop_function
        self._status = self._spawner.bootup(command_lst=self._command_lst, stop_function=stop_function)

    def send_dict(self, input_dict: dict[str, Any]) -> None:
        """Send a dictionary, as soon as the worker is there.

        Raises:
            ExecutorlibSocketError: the worker has ended, or could not be started
            Exception: whatever the pickling of the dictionary raises
        """
        watch = self._bound()
        line = watch.line
        payload = dumps(input_dict)
        watch.wait(lambda: line.connected and line.lost is None)
        watch.check_ranks()
        self._log("Send dictionary of size: %s", payload.nbytes)
        self._numbers += 1
        request = request_of(self._numbers, input_dict)
        if request is not None:
            self._requests.append(request)
        line.send(encode_head(self._numbers) + payload.data, payload.buffers)
        watch.wait(lambda: not line.unsent)

    def receive_dict(self) -> dict[str, Any]:
        """Wait for the next dictionary of the worker.

        Returns:
            what the worker has sent: ``{"result": ...}`` or ``{"error": exception}``. If the worker has ended, the
            exception is an `ExecutorlibSocketError` that says how.
        """
        try:
            watch = self._bound()
            watch.wait(lambda: bool(watch.line.inbox) or self._rank_failed(watch.line))
        except ExecutorlibSocketError as error:
            return {"error": error}
        if not watch.line.inbox:
            return {"error": self._end_ranks(watch)}
        message = body, buffers = watch.line.inbox.popleft()
        self._log("Received dictionary of size: %s", len(body) + sum(len(buffer) for buffer in buffers))
        request = self._requests.popleft() if self._requests else None
        self._rank_error = None
        reply: dict[str, Any] = decode_reply(message, request)
        return reply

    def send_and_receive_dict(self, input_dict: dict[str, Any]) -> dict[str, Any]:
        """Send a dictionary and wait for the answer.

        Args:
            input_dict: for this library's worker programs ``{"fn": ..., "args": ..., "kwargs": ...}`` calls a
                function; with ``"init": True`` the dictionary that it returns fills parameters that later calls leave
                open; ``{"shutdown": True, "wait": True}`` ends the worker

        Returns:
            as for `receive_dict`
        """
        try:
            self.send_dict(input_dict)
        except ExecutorlibSocketError as error:
            return {"error": error}
        return self.receive_dict()

    def shutdown(self, wait: bool = True) -> Any:
        """End the worker and close the port.

        Args:
            wait: let the worker answer what it was sent before, and wait for its end

        Returns:
            the worker's answer, True as a rule; None if it was gone, or is not waited for
        """
        watch, answer = self._watch, None
        if watch is None:
            return None
        if os.getpid() != self._owner:  # in a child of the program: the worker is not its own
            self._reset_socket()
            return None
        try:
            if wait and watch.line.connected and watch.line.lost is None and watch.alive:
                answer = self._say_goodbye(watch)
        finally:
            if self._spawner is not None:
                self._spawner.shutdown(wait=wait)
            self._reset_socket()
        return answer

    def _say_goodbye(self, watch: WorkerWatch) -> Any:
        try:
            self.send_dict({"shutdown": True, "wait": True})
        except ExecutorlibSocketError:
            return None
        reply = self.receive_dict()
        while self._requests and watch.line.lost is None:
            reply = self.receive_dict()
        watch.wait_for_end(_END_SECONDS)
        return reply.get("result")

    def _bind(self, localhost: bool) -> int:
        self._reset_socket()
        self._watch = WorkerWatch(Line(localhost), self._spawner, self._time_out_ms / 1000)
        return self._watch.line.port

    def _bound(self) -> WorkerWatch:
        if self._watch is None:
            raise ExecutorlibSocketError("there is no connection: no port was opened, or it has been shut down")
        return self._watch

    def _rank_failed(self, line: Line) -> bool:
        """Whether one rank has failed and the others wait for it, for ever."""
        while line.asides:
            body, _ = line.asides.popleft()
            if body[:1] == RANK_ERROR:
                number, error = pickle.loads(body[1:])
                if self._requests and self._requests[0].number == number:
                    self._rank_error = (time.monotonic() + _RANK_SECONDS, error)
        return self._rank_error is not None and self._rank_error[0] <= time.monotonic()

    def _end_ranks(self, watch: WorkerWatch) -> BaseException:
        """End a worker whose ranks wait for one that has failed; returns its error."""
        assert self._rank_error is not None
        error = load_error(self._rank_error[1])
        self._forget_requests()
        watch.line.lost = "it was ended after one of its ranks had failed"
        if self._spawner is not None:
            self._spawner.shutdown(wait=False)
        return error

    def _forget_requests(self) -> None:
        self._requests.clear()
        self._rank_error = None

    def _reset_socket(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.line.close()
        self._forget_requests()

    def _log(self, text: str, size: int) -> None:
        if self._logger is not None:
            self._logger.warning(text, size)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.shutdown(wait=False)


def interface_bootup(
    command_lst: list[str],
    connections: BaseSpawner,
    hostname_localhost: bool | None = None,
    log_obj_size: bool = False,
    worker_id: int | None = None,
    stop_function: Callable[[], bool] | None = None,
) -> SocketInterface:
    """Start a worker program and return the interface to it.

    Args:
        command_lst: the worker program, for example ``[sys.executable, get_command_path("interactive_serial.py")]``.
            The arguments ``--host``, ``--worker-id`` and ``--zmqport`` are added.
        connections: starts the worker
        hostname_localhost: whether the worker finds this program at "localhost" instead of the name of the host; by
            default only on macOS, where a host often does not know its own name
        log_obj_size: log the size of what is sent and received
        worker_id: what functions get for a parameter ``executorlib_worker_id``
        stop_function: asked while there is no worker; if it says True, none is waited for
    """
    localhost = sys.platform == "darwin" if hostname_localhost is None else hostname_localhost
    command = list(command_lst)
    if not localhost:
        command += ["--host", gethostname()]
    if worker_id is not None:
        command += ["--worker-id", str(worker_id)]
    interface = SocketInterface(spawner=connections, log_obj_size=log_obj_size)
    command += ["--zmqport", str(interface._bind(localhost))]
    interface.bootup(command_lst=command, stop_function=stop_function)
    return interface
