"""Inside a worker: the dictionaries of a `SocketInterface`, beside the tasks of an executor.

link ──► DictLink ──► Runner
           │ DICT: answered here, through Runner.report
           └ everything else: handed on
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from executorlib.backend.calls import end_fork, flush_output, left_open, supplied_for
from executorlib.backend.runner import Outcome
from executorlib.standalone.interactive.dicts import split_dict
from executorlib.standalone.interactive.messages import DICT, DONE, EXITED, FAILED, RESULT, RESULT_HEAD, STOP, WELCOME
from executorlib.standalone.interactive.wire import Message
from executorlib.standalone.serialize import Payload, dump_error, dumps, loads

if TYPE_CHECKING:
    from executorlib.backend.runner import Link

_HIDE_FROM_TRACEBACK = True
# When the program has hung up, a worker that is idle gets so long to end by itself.
_IDLE_SECONDS = 1.0


class Server(Protocol):
    """What `DictLink` needs of a `Runner`."""

    def serve(self) -> None: ...
    def report(self, number: int, outcome: Outcome) -> None: ...


class DictLink:
    """A link that answers dictionaries itself and hands on every other message.

    Args:
        link: the connection to the program, on all ranks if there are several
        worker: what functions get for a parameter ``executorlib_worker_id``
        fileno: the socket of the connection, where this process holds it
    """

    def __init__(self, link: Link, worker: int, fileno: int | None) -> None:
        self._link = link
        self._supplied: dict[str, Any] = {"executorlib_worker_id": worker}
        self._fileno = fileno
        self._report: Callable[[int, Outcome], None] | None = None
        self._watched = False
        self._stopped = False
        self._pid = os.getpid()

    def serve(self, server: Server) -> None:
        """Let a runner, which has this link, work; the dictionaries are answered through its ``report``."""
        self._report = server.report
        server.serve()
        self._stopped = True

    def send(self, body: bytes, buffers: Any = ()) -> None:
        """Send to the program."""
        self._link.send(body, buffers)

    def receive(self) -> Message:
        """Wait for the next message that is not a dictionary; after a dictionary that says so, it is STOP."""
        while not self._stopped:
            message: Message = self._link.receive()
            kind = message[0][:1]
            if kind == DICT:
                self._watch()
                self._answer(message)
            elif kind != WELCOME:
                return message
        return STOP, ()

    def _answer(self, message: Message) -> None:
        number, payload = split_dict(message)
        start = time.monotonic()
        try:
            request = loads(payload)
            if request.get("shutdown"):
                # One answer for all ranks: there is nothing more to gather.
                self._stopped = True
                self._link.send(RESULT_HEAD.pack(RESULT, DONE, number, start, 0.0) + dumps(True).data)
                return
            if "fn" not in request:
                return
            value = self._call(request["fn"], request.get("args", ()), request.get("kwargs", {}))
            if os.getpid() != self._pid:
                end_fork()
            if request.get("init"):
                self._supplied.update(value or {})
                value = True
            outcome = Outcome(DONE, dumps(value), start, time.monotonic() - start)
        except BaseException as error:
            if os.getpid() != self._pid:
                end_fork(error)
            status = EXITED if isinstance(error, (SystemExit, KeyboardInterrupt)) else FAILED
            outcome = Outcome(status, Payload(dump_error(error)), start, time.monotonic() - start)
        flush_output()
        assert self._report is not None
        self._report(number, outcome)

    def _call(self, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        supplied = supplied_for(fn, self._supplied)
        if supplied:
            kwargs = {**left_open(fn, tuple(args), kwargs, supplied), **kwargs}
        return fn(*args, **kwargs)

    def _watch(self) -> None:
        """End this process, and what it has started, when the program is gone: nobody else would."""
        if self._watched or self._fileno is None or not hasattr(select, "poll"):
            return
        self._watched = True
        poll = select.poll()
        poll.register(self._fileno, getattr(select, "POLLRDHUP", 0))

        def watch() -> None:
            poll.poll()
            time.sleep(_IDLE_SECONDS)
            if self._stopped:
                return
            if os.getpgrp() == os.getpid():
                os.killpg(0, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=watch, name="executorlib-watch", daemon=True).start()
