"""The worker processes of an executor: starting them, hearing from them, ending them."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import pickle
import selectors
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from executorlib.standalone.command import OTHER_MPI, worker_program
from executorlib.standalone.errors import WorkerStartError
from executorlib.standalone.hardware import program_environment, thread_environment
from executorlib.standalone.interactive.events import (
    Event,
    Exited,
    LauncherLostError,
    NodeEvent,
    NodeLost,
    Started,
    TakenBack,
)
from executorlib.standalone.interactive.launcher import START_SECONDS, ForkServer, Launcher
from executorlib.standalone.interactive.listener import Hello
from executorlib.standalone.interactive.messages import RANK_ERROR, SETUP, STARTED, STARTED_HEAD, STOP, WELCOME
from executorlib.standalone.interactive.stderr_relay import StderrRelay
from executorlib.standalone.interactive.wire import Connection, Message, ProtocolError
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.door import Door
from executorlib.task_scheduler.interactive.pool import Allotment
from executorlib.task_scheduler.interactive.pool_events import Gone, Heard, NodeGone, PoolEvent, Ready, Returned
from executorlib.task_scheduler.interactive.site import Site
from executorlib.task_scheduler.interactive.task import Task
from executorlib.task_scheduler.interactive.worker import Worker, socket_pair

if TYPE_CHECKING:
    from executorlib.standalone.interactive.node_launcher import NodeLauncher

_LOG = logging.getLogger("executorlib")
# A worker that was told to stop gets so long before it is killed.
_STOP_SECONDS = 5.0
# A worker whose connection is lost gets so long to end, and its launcher to tell how: one that was not told to stop,
# and one that was. How a job has ended is told late, and is of no interest where it was told to.
_LOST_SECONDS, _JOB_SECONDS = (1.0, _STOP_SECONDS), (3.0, 0.1)
# What a process on another machine sent last gets so long to arrive after the news of its end.
_LAST_SECONDS = 2.0
# An agent that has not ended a worker after so long is given up, and its node's workers with it.
_AGENT_SECONDS = 30.0
# Calls are put back, and not failed, so often in a row before a worker has started.
_MOST_SPARED = 3
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


class WorkerPool:
    """All workers of an executor, and the one place where its dispatcher waits. Owned by the dispatcher's thread.

    Args:
        site: where and how workers are started
        bell: a socket that other threads write to
        hear: called when they have
        launcher: starts the processes; another takes its place when it is lost
    """

    def __init__(self, site: Site, bell: socket.socket, hear: Callable[[], None], launcher: Launcher) -> None:
        self._site = site
        self._selector = selectors.DefaultSelector()
        self._selector.register(bell, selectors.EVENT_READ, hear)
        self._launcher: Launcher | None = None
        self._use(launcher)
        self._spared = 0  # how often in a row
        self._door: Door | None = None
        self._relay = StderrRelay(self._selector, self._end_if_silent)
        self._numbers = itertools.count(1)
        self._events: list[PoolEvent] = []
        self.workers: dict[int, Worker] = {}

    # Starting

    def start(self, place: int, resources: Resources, allotment: Allotment) -> Worker:
        """Start a worker; it can be sent tasks when its `connection` is there.

        Raises:
            OSError: it cannot be started here
        """
        worker = Worker(next(self._numbers), place, resources, allotment)
        if resources.cwd is not None:
            os.makedirs(resources.cwd, exist_ok=True)
        for last in (False, True):
            try:
                self._start_process(worker)
                break
            except ConnectionError as error:  # the fork server was killed a moment ago
                if self._launcher is None:  # and there can be no other
                    raise
                name, why = self._launcher.name, self._launcher_lost(LauncherLostError(str(error)), worker)
                if last:
                    raise self.start_error(worker, f"cannot be started: lost with its {name} ({why})") from error
        worker.spared, worker.stderr_tail = False, b""  # a second server has nothing to do with the end of the first
        self.workers[worker.number] = worker
        return worker

    def _start_process(self, worker: Worker) -> None:
        program = worker_program(worker.resources.cores)
        argv = self._site.command(worker.resources, program, worker.allotment)
        launcher = self._launch()
        if argv is None and isinstance(launcher, ForkServer):
            self._fork(worker, launcher)
        elif argv is None and worker.allotment.places:
            self._fork_on_node(worker, cast("NodeLauncher", launcher))
            # If its agent does not start, that is to be seen first: then there are other nodes.
            worker.deadline = self._start_deadline(launcher, 2 * START_SECONDS)
        else:
            self._execute(worker, launcher, argv or program)
            worker.deadline = self._start_deadline(launcher, START_SECONDS)

    def _start_deadline(self, launcher: Launcher, seconds: float) -> float | None:
        return None if launcher.waits_for_ever or self._site.queued else time.monotonic() + seconds

    def _launch(self) -> Launcher:
        if self._launcher is None:
            self._use(self._site.make_launcher())
        assert self._launcher is not None
        return self._launcher

    def _use(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._command = launcher.command
        self._proven = False  # that it can start a process
        self._selector.register(launcher.fileno(), selectors.EVENT_READ, self._launcher_readable)

    def _fork(self, worker: Worker, server: ForkServer) -> None:
        ours, theirs = socket_pair()
        try:
            if self._site.keep:
                worker.open_claims()
            server.fork(worker.number, theirs.fileno(), worker.claims[0] if worker.claims else None)
        except BaseException:
            ours.close()
            worker.close_claims()
            raise
        finally:
            theirs.close()
        worker.host = "localhost"
        self._connect(worker, Connection(ours))

    def _fork_on_node(self, worker: Worker, launcher: NodeLauncher) -> None:
        door, (place, *_) = self._open_door(), worker.allotment.places
        keep = self._site.keep
        launcher.fork(worker.number, place.node, place.cores, keep, door.arguments(), door.environment())
        worker.remote, worker.host, worker.sent = True, place.node, 0 if keep else None

    def _open_door(self) -> Door:
        if self._door is None:
            self._door = Door(self._selector, self._site.localhost, self._arrived, self._rank_reported)
        if self._is_crowded():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._door

    def _may_spare(self) -> bool:
        """Whether calls that have not begun are put back once more."""
        self._spared += 1
        return self._spared <= _MOST_SPARED

    def _is_crowded(self) -> bool:
        """Whether a worker may stand at the door for whom no descriptor is left, while there are others."""
        return self._door is not None and time.monotonic() < self._door.full_until and len(self.workers) > 1

    def _execute(self, worker: Worker, started: Launcher, argv: list[str]) -> None:
        door = self._open_door()
        environment = {**program_environment(), **door.environment()}
        environment.update(thread_environment(worker.resources.threads_per_core, environment))
        worker.command = [*argv, *door.arguments(), "--worker", str(worker.number)]
        read, write = os.pipe()
        self._relay.watch(worker, read)
        try:
            cwd = worker.resources.cwd
            started.execute(worker.number, worker.command, environment, cwd, write)
        except BaseException:
            self._relay.drop(worker)
            worker.close()
            raise
        finally:
            os.close(write)

    def _connect(self, worker: Worker, connection: Connection) -> None:
        worker.connection = connection
        worker.deadline = None
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._readable(worker))
        forked = worker.command is None
        setup = self._site.setup(worker.place, worker.resources, worker.allotment, forked=forked)
        buffers = self._site.init_function.buffers if self._site.init_function is not None else ()
        if worker.remote or not forked:
            self._send(worker, WELCOME)
        self._send(worker, SETUP + pickle.dumps(tuple(setup)), buffers)

    # Waiting

    def poll(self, timeout: float | None) -> list[PoolEvent]:
        """Wait for whatever comes first, at most so many seconds, and return what has happened."""
        for key, mask in self._selector.select(0 if self._events else timeout):
            if mask & selectors.EVENT_WRITE and isinstance(key.fileobj, Connection):
                self._writable(key, key.fileobj)
            elif mask & selectors.EVENT_WRITE:
                key.data()
            if mask & selectors.EVENT_READ:
                key.data()
        events, self._events = self._events, []
        return events

    def deadline(self) -> float | None:
        """When `expire` wants to be called next."""
        times = [worker.deadline for worker in self.workers.values() if worker.deadline is not None]
        others = [self._door.deadline() if self._door is not None else None]
        others.append(self._launcher.deadline() if self._launcher is not None else None)
        return min([*times, *(time for time in others if time is not None)], default=None)

    def expire(self, now: float) -> None:
        """Give up on those that do not start, do not stop or do not introduce themselves."""
        for worker in list(self.workers.values()):
            if worker.deadline is None or worker.deadline > now:
                continue
            worker.deadline = None
            if worker.cause is not None:  # a child holds its standard error open, or no more has come over the network
                self._drain(worker)
                self._end(worker)
                continue
            if worker.remote and worker.doomed:  # its agent, or its node, does not answer
                cast("NodeLauncher", self._launcher).give_up(worker.allotment.places[0].node)
                continue
            if worker.connection is None and worker.verdict is None and not worker.doomed:
                if crowded := self._is_crowded():  # it may stand at the door
                    if any(other.connection is not None or other.doomed for other in self.workers.values()):
                        worker.deadline = now + START_SECONDS  # and is let in when that one has ended
                        continue
                    worker.spared = self._may_spare()  # all stand there: its place is for another
                if not worker.spared:
                    why = ": no descriptor is left to let it in, see `ulimit -n`" if crowded else ""
                    worker.verdict = self.start_error(worker, f"did not report within {START_SECONDS:g} s{why}")
            self.kill(worker, now)
        if self._door is not None:
            self._door.expire(now)
        due = self._launcher.deadline() if self._launcher is not None else None
        if self._launcher is not None and due is not None and due <= now:
            try:
                self._launcher.expire(now)
            except LauncherLostError as error:
                self._launcher_lost(error)
            else:
                self._launcher_readable()

    # Taking back

    def take_back(self, worker: Worker) -> list[Task]:
        """Take back the tasks that a worker has not begun; those of a worker elsewhere come later, as `Returned`."""
        if worker.sent is not None and worker.begun is None:
            if worker.queue and not worker.asked and self._launcher is not None:
                worker.asked = True
                cast("NodeLauncher", self._launcher).take_back(worker.number, worker.sent)
            return []
        return worker.take_back()

    # Ending

    def stop(self, worker: Worker, now: float) -> None:
        """Tell a worker to end when it has done what it was sent."""
        worker.stopping = True
        worker.deadline = now + _STOP_SECONDS if not worker.queue else None
        if worker.connection is not None:
            self._send(worker, STOP)
        else:
            self.kill(worker, now)

    def kill(self, worker: Worker, now: float) -> None:
        """End a worker's process and what it has started; a launcher gets a moment to end its ranks."""
        if self._launcher is None:
            return
        if worker.command is None or worker.doomed:
            self._launcher.kill(worker.number, _KILL)
            if worker.remote:
                worker.deadline = now + _AGENT_SECONDS
        else:
            worker.deadline = now + 1.0
            self._launcher.kill(worker.number, signal.SIGTERM)
        worker.doomed = True

    def send_tasks(self, worker: Worker, tasks: list[Any], now: float) -> None:
        """Send tasks to a worker; if its connection breaks, its end will tell."""
        with contextlib.suppress(OSError):
            worker.send(tasks, now)
        self._watch_writes(worker)

    def close(self) -> None:
        """End all processes and give back all descriptors."""
        for worker in list(self.workers.values()):
            self._remove(worker)
            worker.close_claims()
        for event in self._events:
            if not isinstance(event, NodeGone):
                event.worker.close_claims()
        self._relay.close()
        if self._door is not None:
            self._door.close()
        if self._launcher is not None:
            self._launcher.close()
        self._selector.close()

    def abandon(self) -> None:
        """In a child of the program: give back the descriptors, which would keep the workers from noticing its end."""
        for worker in self.workers.values():
            with contextlib.suppress(OSError):  # the thread that owns it may have been about to close it
                worker.close()
                worker.close_claims()
        self._relay.close()
        if self._door is not None:
            self._door.close()
        if self._launcher is not None:
            self._launcher.abandon()
        self._selector.close()

    def start_error(self, worker: Worker, what: str) -> WorkerStartError:
        """Why a worker could not be started, with its command and what it said."""
        said = worker.stderr_tail.decode(errors="replace").strip() or "(nothing)"
        command = " ".join(worker.command or ([f"the agent on {worker.host}"] if worker.remote else self._command))
        return WorkerStartError(f"A worker {what}.\n  command: {command}\n  its standard error: {said}")

    # What the selector reports

    def _writable(self, key: selectors.SelectorKey, connection: Connection) -> None:
        if connection.fileno() < 0 or connection not in self._selector.get_map():  # its end was heard of in this round
            return
        try:
            if not connection.flush():
                return
        except OSError:  # the reading side will notice
            connection.discard()
        self._selector.modify(connection, selectors.EVENT_READ, key.data)

    def _send(self, worker: Worker, body: bytes, buffers: Any = ()) -> None:
        assert worker.connection is not None
        with contextlib.suppress(OSError):  # the reading side will notice
            worker.connection.send(body, buffers)
        self._watch_writes(worker)

    def _watch_writes(self, worker: Worker) -> None:
        connection = worker.connection
        if connection is not None and connection.unsent and not worker.closed:
            key = self._selector.get_key(connection)
            if not key.events & selectors.EVENT_WRITE:
                both = selectors.EVENT_READ | selectors.EVENT_WRITE
                self._selector.modify(connection, both, key.data)

    def _readable(self, worker: Worker) -> None:
        """Hear a worker; at the end of what it sends, its process must end too."""
        if worker.connection is None or worker.closed:  # its end was heard of in the same round
            return
        try:
            messages, closed = worker.connection.read()
        except BlockingIOError:
            return
        except (OSError, pickle.UnpicklingError) as error:
            level = logging.WARNING if isinstance(error, ProtocolError) else logging.DEBUG
            _LOG.log(level, "the connection of %r is given up: %s", worker, error)
            messages, closed = [], True
        if messages:
            self._heard(worker, messages)
        if closed:
            worker.closed = True
            self._selector.unregister(worker.connection)
            if worker.cause is None and worker.deadline is None and self._launcher is not None:
                self._launcher.lost(worker.number)
                patience = _JOB_SECONDS if self._launcher.waits_for_ever else _LOST_SECONDS
                worker.deadline = time.monotonic() + patience[worker.stopping]
            self._end_if_silent(worker)

    def _heard(self, worker: Worker, messages: list[Message]) -> None:
        worker.started = self._proven = True  # which the fork server may not have said yet
        if worker.is_forked and self._introduced(worker, messages[0][0]):
            del messages[0]
        if messages:
            self._events.append(Heard(worker, messages))

    def _introduced(self, worker: Worker, body: bytes) -> bool:
        """Learn from a forked worker's first message which process it is; returns whether this is that message."""
        if body[:1] != STARTED or len(body) != STARTED_HEAD.size:
            return False
        pid = STARTED_HEAD.unpack(body)[1]
        if pid <= 1 or worker.process not in (0, pid):
            return False
        worker.process = pid
        self._spared = 0
        return True

    def _launcher_readable(self) -> None:
        assert self._launcher is not None
        try:
            events = self._launcher.events()
        except LauncherLostError as error:
            self._launcher_lost(error)
            return
        for event in events:
            self._launched(event)

    def _launched(self, event: Event | NodeEvent) -> None:
        if isinstance(event, NodeLost):
            _LOG.warning("no worker can be started on %s: %s", event.node, event.reason)
            self._events.append(NodeGone(event.node))
            return
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        if isinstance(event, TakenBack):
            worker.asked = False
            self._events.append(Returned(worker, worker.returned(event.begun)))
            return
        if isinstance(event, Started):
            worker.process, worker.started, self._proven = event.pid, True, True
            self._spared = 0 if worker.has_started else self._spared
            if worker.connection is None and worker.deadline is None and not (worker.doomed or self._site.queued):
                worker.deadline = time.monotonic() + START_SECONDS  # it has waited for its turn until now
            _LOG.debug("started %r", worker)
            return
        worker.clean = isinstance(event, Exited) and event.clean
        worker.cause = event.cause if isinstance(event, Exited) else event.reason
        worker.begun = event.begun if isinstance(event, Exited) else None
        if worker.stderr is not None:  # a child of the process may hold it open
            worker.deadline = time.monotonic() + 0.5
        if worker.connection is not None and not worker.closed and not self._site.localhost:
            worker.deadline = time.monotonic() + _LAST_SECONDS  # what it sent last may still be on the network
            return
        self._drain(worker)
        self._end_if_silent(worker)

    def _drain(self, worker: Worker) -> None:
        """Hear what a process sent before its end. A child of it may hold the connection open: do not wait."""
        if worker.connection is None or worker.closed:
            return
        if messages := worker.last_messages():
            self._heard(worker, messages)
        worker.closed = True
        self._selector.unregister(worker.connection)

    def _end_if_silent(self, worker: Worker) -> None:
        if worker.cause is None or worker.number not in self.workers:
            return
        if worker.stderr is None or worker.deadline is None:  # else its last words are still to come
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        self._remove(worker)
        self._events.append(Gone(worker))

    def _remove(self, worker: Worker) -> None:
        self.workers.pop(worker.number, None)
        if worker.connection is not None and not worker.closed:
            self._selector.unregister(worker.connection)
            worker.closed = True
        self._relay.drop(worker)
        worker.close()

    def _launcher_lost(self, error: LauncherLostError, asked_for: Worker | None = None) -> str:
        """The fork server was killed: its children are on their own, so end them, and start another with the next.

        Returns why it has ended; ``asked_for`` is the worker that was to be started then.
        """
        launcher = self._launcher
        assert launcher is not None
        with contextlib.suppress(LauncherLostError):  # what it has told before its end
            while events := launcher.events():
                for event in events:
                    self._launched(event)
        self._selector.unregister(launcher.fileno())
        launcher.close()
        self._launcher = None
        why = launcher.end or str(error)
        name = launcher.name
        _LOG.warning("the %s is lost, and its %d workers with it: %s", name, len(self.workers), why)
        for worker in list(self.workers.values()):
            if worker.is_forked:
                worker.stop_hearing()
            self._drain(worker)  # it may say that it has started, and which process it is
        spared = self._proven and self._may_spare()  # an accident, and no sign that another cannot start it either
        for worker in [*self.workers.values(), *([asked_for] if asked_for is not None else [])]:
            if worker.has_started or worker.cause is not None:
                continue
            worker.spared = spared
            if worker.is_forked:
                worker.heard(launcher.said)
        for worker in list(self.workers.values()):
            if worker.process and worker.cause is None and not worker.remote:
                with contextlib.suppress(OSError):
                    # What it has started may be elsewhere: a launcher has to end it.
                    os.killpg(worker.process, _KILL if worker.is_forked else signal.SIGTERM)
            worker.cause = worker.cause or f"lost with its {name} ({why})"
            self._end(worker)
        return why

    # Workers that connect

    def _arrived(self, hello: Hello, connection: Connection) -> None:
        worker = self.workers.get(hello.worker)
        if worker is None and self._launcher is not None and self._launcher.arrived(hello.worker, connection):
            return
        if worker is None or worker.stopping or worker.doomed or worker.connection is not None:
            connection.close()
        else:
            self._welcome(worker, hello, connection)

    def _welcome(self, worker: Worker, hello: Hello, connection: Connection) -> None:
        worker.host, worker.said_pid, worker.started = hello.host, hello.pid, True
        if hello.ranks != worker.resources.cores:
            connection.close()
            worker.verdict = self.start_error(
                worker,
                f"was asked to run on {worker.resources.cores} MPI ranks but sees {hello.ranks}: {OTHER_MPI}",
            )
            self.kill(worker, time.monotonic())
            return
        self._connect(worker, connection)
        self._spared = 0
        self._events.append(Ready(worker))

    def _rank_reported(self, hello: Hello, message: Message) -> None:
        worker = self.workers.get(hello.worker)
        if worker is not None and message[0][:1] == RANK_ERROR:
            self._events.append(Heard(worker, [message]))
