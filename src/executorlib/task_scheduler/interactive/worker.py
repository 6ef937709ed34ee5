"""A worker process as the dispatcher sees it, and how much work to give it at a time."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections import OrderedDict, deque
from collections.abc import Container, Sequence
from typing import Any

from executorlib.standalone.functions import FunctionRef
from executorlib.standalone.interactive.messages import CLAIM, FORGET, FUNCTION, RUN, UNCLAIMED
from executorlib.standalone.interactive.wire import Connection, Message
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.pool import Allotment
from executorlib.task_scheduler.interactive.task import Task

# Work sent ahead to a worker, in seconds. Less than the time for which another thread of the program may hold the
# interpreter (sys.getswitchinterval, 5 ms) would let workers run dry while the program submits.
WINDOW_SECONDS = 0.01
# One task more is sent ahead where the way of a message is worth saving.
PREFETCH_SECONDS = 0.05
MAX_BATCH = 256
# An idle worker takes over what waits behind a task that has made no progress for so long.
STALL_SECONDS = 0.002

_KNOWN_FUNCTIONS = 32
_KNOWN_BYTES = 1 << 28
_STDERR_BYTES = 4096
# Large enough for the results of a batch, and for large arrays in few pieces.
_SOCKET_BYTES = 1 << 20


class Worker:
    """State of a worker, owned by the dispatcher.

    Attributes:
        number: unique in the executor's life; place: its ``executorlib_worker_id``
        process: what its launcher has started for it, which leads a process group: itself, or an mpiexec or srun
        said_pid: its own process id on its host, when it has introduced itself
        spared: its launcher was lost before it had started it: nobody is to blame
        started: its launcher has started that process, or it has introduced itself
        connection: None until it has connected
        queue: the tasks it was sent, in order; the first is running
        backlog: seconds that the queue is thought to take
        progress: when it last began a task
        deadline: when it must have done what its start or its end asks of it
        limit: when its task must have ended
        stopping: it was told to stop, or is to be told when its queue is empty
        verdict: why it is ended, an exception for the task that runs
        accused: number of the task that the verdict is for; None for whichever runs
        preparing: its init function has not come to its end: no task is sent to wait for that
        full: it has as much to do as it should, until it is heard of
        worked: it has brought a result
        has_begun: number of the task that it began last, where its tasks cannot be taken back
        remote: an agent on another node has forked it, and answers for it
        sent: how many tasks it was sent in all, where they can be taken back through its agent
        asked: whether they are being taken back: until the agent's answer it gets no more
        begun: how many of them it has begun, known at its end
        doomed: it was sent a signal that ends it
    """

    def __init__(self, number: int, place: int, resources: Resources, allotment: Allotment) -> None:
        self.number = number
        self.place = place
        self.resources = resources
        self.allotment = allotment
        self.command: list[str] | None = None
        self.connection: Connection | None = None
        self.claims: tuple[int, int] | None = None  # read end, write end
        self.stderr: int | None = None
        self.stderr_tail = b""
        self.process = 0
        self.said_pid = 0
        self.started = False
        self.spared = False
        self.host = ""
        self.queue: deque[Task] = deque()
        self.backlog = 0.0
        self.progress = 0.0
        self.deadline: float | None = None
        self.limit: float | None = None
        self.stopping = False
        self.closed = False
        self.cause: str | None = None
        self.clean = False
        self.accused: int | None = None
        self.doomed = False
        self.preparing = False
        self.full = False
        self.worked = False
        self.has_begun = 0
        self.remote = False
        self.sent: int | None = None
        self.asked = False
        self.begun: int | None = None
        self.verdict: BaseException | None = None
        self._functions: OrderedDict[int, int] = OrderedDict()  # number -> bytes
        self._batch = 0
        self._back = 0  # the last task that was taken back

    @property
    def pid(self) -> int:
        """Its process id on its host; that of its launcher until it has introduced itself."""
        return self.said_pid or self.process

    @property
    def is_forked(self) -> bool:
        """Whether the fork server of this machine has made it, of its own memory."""
        return self.command is None and not self.remote

    def __repr__(self) -> str:
        where = f" on {self.host}" if self.host else ""
        return f"worker {self.place} (pid {self.pid}{where})"

    def room(self, seconds: float | None, sent: int) -> int:
        """How many more tasks should be sent that take so long each, beside those in the queue and in the batch."""
        waiting = len(self.queue) + sent
        if self.asked:
            return 0
        if seconds is None or not self.gives_back:  # not measured yet, or not to be taken back: one at a time
            return 0 if waiting else 1
        room = min(int((WINDOW_SECONDS - self.backlog) / max(seconds, 1e-7)), MAX_BATCH - waiting)
        if room > 0:
            return room
        if waiting == 0:
            return 1
        return int(waiting == 1 and seconds <= PREFETCH_SECONDS)

    @property
    def gives_back(self) -> bool:
        """Whether tasks that it has not begun can be taken back."""
        return self.claims is not None or self.sent is not None

    def send(self, tasks: Sequence[Task], now: float) -> None:
        """Send tasks, and first the functions that the worker does not know.

        Raises:
            OSError: the connection is broken; the tasks are in the queue
        """
        connection = self.connection
        assert connection is not None
        if not self.queue:
            self.progress = now
        self.queue.extend(tasks)
        batch = UNCLAIMED
        if self.claims is not None:
            self._batch = batch = self._batch % 0xFFFFFFFF + 1
            os.write(self.claims[1], CLAIM.pack(batch) * len(tasks))
        elif self.sent is not None:
            batch = self.sent + 1
            self.sent += len(tasks)
        items = []
        buffers: list[Any] = []
        needed = {task.fn.number: task.fn for task in tasks}
        for fn in list(needed.values()):
            needed.update((part.number, part) for part in fn.parts)
        for fn in needed.values():
            if fn.number not in self._functions:
                self._send_function(connection, fn, needed)
        for task in tasks:
            assert task.payload is not None
            data, own = task.payload
            values = task.values
            buffers += own
            if values is None:
                items.append((task.number, task.fn.number, data, len(own)))
            else:
                buffers += values.buffers
                size = len(values.buffers)
                items.append((task.number, task.fn.number, data, len(own), values.data, size))  # type: ignore[arg-type]
        connection.send(RUN + pickle.dumps((batch, items), 5), buffers)

    def take_back(self) -> list[Task]:
        """Take back the tasks that have not begun, in order."""
        if self.begun is not None and self.sent is not None:
            return self.returned(self.begun)
        if self.claims is None:
            return []
        try:
            count = len(os.read(self.claims[0], 65536)) // CLAIM.size
        except BlockingIOError:
            return []
        return self._pop(count)

    def returned(self, begun: int) -> list[Task]:
        """Those of its tasks, in order, that are taken back because it has begun none after this one."""
        assert self.sent is not None
        # Those that were taken back before are not in the queue any more.
        count = self.sent - max(begun, self._back)
        if count > 0:
            self._back = self.sent
        return self._pop(count)

    def _pop(self, count: int) -> list[Task]:
        tasks = [self.queue.pop() for _ in range(min(count, len(self.queue)))]
        self.backlog = sum(task.estimate for task in self.queue)
        self.full = False
        return tasks[::-1]

    @property
    def has_started(self) -> bool:
        """Whether there was ever somebody to do a task."""
        return self.connection is not None and self.started

    def is_able(self) -> bool:
        """Whether it can be sent tasks."""
        return self.connection is not None and not (self.preparing or self.stopping or self.closed or self.doomed)

    def is_late(self, now: float) -> bool:
        """Whether its task takes longer than was thought, so that nothing should be sent to wait behind it."""
        return bool(self.queue) and now > self.late_at

    @property
    def late_at(self) -> float:
        """When the task that it runs has taken longer than was thought."""
        return self.progress + max(STALL_SECONDS, 2 * self.queue[0].estimate)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self.stderr is not None:
            os.close(self.stderr)
        self.stderr = None

    def open_claims(self) -> None:
        """Have it say which tasks it begins, so that the others can be taken back."""
        self.claims = os.pipe()
        os.set_blocking(self.claims[0], False)

    def close_claims(self) -> None:
        """Close the pipe that tells, when the process has ended, which tasks it had not begun."""
        for fd in self.claims or ():
            os.close(fd)
        self.claims = None

    def stop_hearing(self) -> None:
        """Hear what has arrived, and no more: a forked worker that has not yet said that it is there does no task."""
        if self.connection is not None:
            with contextlib.suppress(OSError):  # it is gone
                self.connection.sock.shutdown(socket.SHUT_RD)

    def last_messages(self) -> list[Message]:
        """What has arrived of it, without waiting for more."""
        assert self.connection is not None
        found: list[Message] = []
        closed = False
        with contextlib.suppress(OSError, pickle.UnpicklingError):  # nothing more
            while not closed:
                messages, closed = self.connection.read()
                found += messages
        return found

    def heard(self, data: bytes) -> None:
        """Keep the end of what the worker writes to its standard error."""
        self.stderr_tail = (self.stderr_tail + data)[-_STDERR_BYTES:]

    def _send_function(self, connection: Connection, fn: FunctionRef, needed: Container[int]) -> None:
        size = fn.payload.nbytes
        forgotten = []
        for known in list(self._functions):
            if len(self._functions) < _KNOWN_FUNCTIONS and sum(self._functions.values()) + size <= _KNOWN_BYTES:
                break
            if known not in needed:  # by the tasks that are sent with this function
                del self._functions[known]
                forgotten.append(known)
        if forgotten:
            connection.send(FORGET + pickle.dumps(forgotten))
        self._functions[fn.number] = size
        message = (fn.number, fn.payload.data, fn.reusable, bool(fn.parts))
        connection.send(FUNCTION + pickle.dumps(message, 5), fn.payload.buffers)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Our end of a connection to a worker on this machine, which does not block, and the worker's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    for end in (ours, theirs):  # the kernel's limit may be lower
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
    return ours, theirs
