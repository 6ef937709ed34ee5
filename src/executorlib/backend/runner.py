"""Inside a worker: receive tasks, run them, send back results."""

from __future__ import annotations

import os
import time
from collections import namedtuple

from executorlib.backend.calls import (
    apply_setup,
    end_fork,
    explain_missing_argument,
    flush_output,
    left_open,
    log_error,
    supplied_for,
)
from executorlib.standalone.interactive.messages import (
    BEGUN,
    BEGUN_HEAD,
    CLAIM,
    DONE,
    FAILED,
    FORGET,
    FUNCTION,
    INIT_FAILED,
    NO_TASK,
    RESULT,
    RESULT_HEAD,
    RUN,
    SETUP,
    STOP,
    UNCLAIMED,
    Item,
    Setup,
)
from executorlib.standalone.interactive.wire import ProtocolError
from executorlib.standalone.light import loads as unpickle
from executorlib.standalone.serialize import Payload, dump_error, dumps, loads, loads_with_inputs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    class Link(Protocol):
        """What a worker needs of a connection."""

        def send(self, body: bytes, buffers: Any = ...) -> None: ...
        def receive(self) -> Any: ...


_HIDE_FROM_TRACEBACK = True


class Claims:
    """The right to start a task that waits in this worker's queue.

    The dispatcher puts one token into a pipe for each task that it sends, and can take tokens back while the tasks
    have not begun: so a task that waits behind a long one moves to another worker, although this process is busy.
    A token is the number of its batch, so that the tokens of a later batch do not stand for lost ones.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._held: int | None = None

    def take(self, batch: int) -> bool:
        if self._fd is None or batch == UNCLAIMED:
            return True
        if self._held is None:
            try:
                token = os.read(self._fd, CLAIM.size)
            except BlockingIOError:
                return False
            if not token:  # the dispatcher is gone
                return False
            self._held = CLAIM.unpack(token)[0]
        if self._held != batch:
            return False
        self._held = None
        return True


class _Function:
    """A function that the dispatcher has sent: one copy for all calls, or a fresh one for each."""

    def __init__(self, payload: Payload, reusable: bool, parts: _Parts | None = None) -> None:
        self._source = FunctionSource(payload, parts)
        self._reusable = reusable
        self._copy: Any = None
        self._supplied: dict[str, Any] | None = None

    def get(self) -> Any:
        if self._copy is None:
            fn = self._source.load()
            if not self._reusable:
                return fn
            self._copy = fn
        return self._copy

    def supplied(self, fn: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Those of the worker's values for which the function has a parameter."""
        if self._supplied is None:
            self._supplied = supplied_for(fn, values)
        return self._supplied


class _Parts:
    """The functions that others refer to, by their numbers."""

    def __init__(self, functions: dict[int, _Function]) -> None:
        self._functions = functions

    def __getitem__(self, number: int) -> Any:
        return self._functions[number].get()


class FunctionSource:
    """A pickled function of which any number of fresh copies can be made.

    Its large arrays lie in a memory file: each copy maps it privately, so that it may write into its arrays without
    a copy of those it does not touch, and without the next call seeing it.
    """

    def __init__(self, payload: Payload, parts: _Parts | None = None) -> None:
        self._data = payload.data
        self._parts = parts
        self._files = [_memory_file(buffer) for buffer in payload.buffers]

    def load(self) -> Any:
        payload = Payload(self._data, [make() for make in self._files])
        return loads(payload) if self._parts is None else loads_with_inputs(payload, self._parts)


def _memory_file(buffer: Any) -> Callable[[], Any]:
    if not hasattr(os, "memfd_create"):
        data = bytes(buffer)
        return lambda: bytearray(data)
    import mmap

    with open(os.memfd_create("executorlib"), "r+b", buffering=0) as file:
        file.write(buffer)
        return _PrivateMap(mmap.mmap(file.fileno(), len(buffer)), os.dup(file.fileno()))


class _PrivateMap:
    def __init__(self, shared: Any, fd: int) -> None:
        self._size = len(shared)
        self._fd = fd

    def __call__(self) -> Any:
        import mmap

        return mmap.mmap(self._fd, self._size, flags=mmap.MAP_PRIVATE)

    def __del__(self) -> None:
        os.close(self._fd)


class Outcome(namedtuple("Outcome", ("status", "payload", "start", "seconds"))):
    """What became of a task: its status, the pickled result or error, and when it ran (seconds, monotonic clock)."""

    __slots__ = ()

    status: int
    payload: Payload
    start: float
    seconds: float


class Runner:
    """Runs the tasks that arrive on a link, one after the other.

    Args:
        link: the connection to the dispatcher
        claims: the right to start a task
    """

    def __init__(self, link: Link, claims: Claims | None = None) -> None:
        self._link = link
        self._claims = claims or Claims(None)
        self._functions: dict[int, _Function] = {}
        self._supplied: dict[str, Any] = {}
        self._init_error: bytes | None = None
        self._error_log_file: str | None = None
        self._keep = True
        self._pid = os.getpid()

    def serve(self) -> None:
        """Work until the dispatcher says stop or is gone; a worker that is not kept, until its task is done."""
        while True:
            try:
                body, buffers = self._link.receive()
            except ProtocolError:
                raise
            except (EOFError, ConnectionError):
                return
            kind = body[:1]
            if kind == RUN:
                self._run(body, buffers)
                if not self._keep:
                    return
            elif kind == FUNCTION:
                number, data, reusable, in_parts = unpickle(body[1:])
                parts = _Parts(self._functions) if in_parts else None
                self._functions[number] = _Function(Payload(data, buffers), reusable, parts)
            elif kind == FORGET:
                for number in unpickle(body[1:]):
                    self._functions.pop(number, None)
            elif kind == SETUP:
                self.set_up(Setup(*unpickle(body[1:])), buffers)
            elif kind == STOP:
                return

    def set_up(self, setup: Setup, buffers: Sequence[Any]) -> None:
        """Take over the place of this worker: paths, environment, and what its init function supplies."""
        try:
            apply_setup(setup)
        except Exception as error:  # each task is told, and this process goes on: its death would tell less
            self._init_error = dump_error(error)
        self._error_log_file = setup.error_log_file
        self._keep = setup.keep
        self._supplied = {"executorlib_worker_id": setup.worker_id}
        if setup.init_function is None:
            return
        if self._init_error is None:
            self._initialize(setup.init_function, buffers)
        self._link.send(BEGUN_HEAD.pack(BEGUN, NO_TASK))

    def _initialize(self, init_function: bytes, buffers: Sequence[Any]) -> None:
        try:
            init = loads(Payload(init_function, buffers))
            entries = init(**supplied_for(init, self._supplied))
            if os.getpid() != self._pid:  # a call has forked, and its child comes back
                end_fork()
            if entries is not None:
                self._supplied.update(entries)
        except BaseException as error:
            if os.getpid() != self._pid:
                end_fork(error)
            self._init_error = dump_error(error)

    def report(self, number: int, outcome: Outcome) -> None:
        """Send the outcome of a task; the dispatcher hears of it before the next task begins."""
        head = RESULT_HEAD.pack(RESULT, outcome.status, number, outcome.start, outcome.seconds)
        self._link.send(head + outcome.payload.data, outcome.payload.buffers)

    def _run(self, body: bytes, buffers: list[Any]) -> None:
        batch, items = unpickle(body[1:])
        at = 0
        for fields in items:
            if not self._claims.take(batch):
                return  # the dispatcher has taken back this task and those behind it
            item = Item(*fields)
            if batch == UNCLAIMED and self._keep:
                self._link.send(BEGUN_HEAD.pack(BEGUN, item.number))
            between, end = at + item.buffers, at + item.buffers + item.input_buffers
            outcome = self._outcome(item, buffers[at:between], buffers[between:end])
            at = end
            flush_output()
            self.report(item.number, outcome)

    def _outcome(self, item: Item, buffers: list[Any], input_buffers: list[Any]) -> Outcome:
        if self._init_error is not None:
            return Outcome(INIT_FAILED, Payload(self._init_error), time.monotonic(), 0.0)
        fn: Any = None
        args: Any = ()
        kwargs: Any = {}
        start = time.monotonic()
        try:
            known = self._functions[item.function]
            fn = known.get()
            if item.inputs is None:
                args, kwargs = unpickle(item.data, buffers=buffers)
            else:
                values = loads(Payload(item.inputs, input_buffers))
                args, kwargs = loads_with_inputs(Payload(item.data, buffers), values)
            supplied = known.supplied(fn, self._supplied)
            if supplied:
                kwargs = {**left_open(fn, args, kwargs, supplied), **kwargs}
            start = time.monotonic()
            result = fn(*args, **kwargs)
            if os.getpid() != self._pid:
                end_fork()
            seconds = time.monotonic() - start
            return Outcome(DONE, dumps(result), start, seconds)
        except BaseException as error:
            if os.getpid() != self._pid:
                end_fork(error)
            seconds = time.monotonic() - start
            explain_missing_argument(error, fn, args, kwargs)
            if self._error_log_file is not None:
                log_error(self._error_log_file, fn, args, kwargs, error)
            return Outcome(FAILED, Payload(dump_error(error)), start, seconds)
