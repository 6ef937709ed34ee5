"""Workers on several compute nodes: a launcher with an agent on each.

    dispatcher ── NodeLauncher ──┬── fork server ──exec──► srun … node_agent.py   (a long step for each node)
                                 │             └──exec──► srun … a worker of its own
                                 └══ signed TCP ══► node agent ──fork──► worker

An agent is started with the first worker of its node. If it is lost its workers are lost with it, and the next worker
of the node starts another; a node on which no agent can be started is left out.

With Flux, whose jobs own their cores, a "node" is a slot: the cores of a job that forks one worker after the other, and
ends when it has had none for some time (`SlotPool`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import selectors
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from executorlib.standalone.command import WATCH_VARIABLE, get_command_path
from executorlib.standalone.interactive.events import (
    Event,
    Exited,
    LauncherLostError,
    NodeEvent,
    NodeLost,
    Started,
    StartFailed,
    TakenBack,
)
from executorlib.standalone.interactive.launcher import START_SECONDS, Launcher, event_of
from executorlib.standalone.interactive.messages import WELCOME
from executorlib.standalone.interactive.stderr_relay import StderrRelay
from executorlib.standalone.interactive.wire import Connection

_LOG = logging.getLogger("executorlib")
# Numbers of agents are none of workers.
_FIRST_NUMBER = 1 << 40
_STDERR_BYTES = 4096
# After an agent's connection has broken, its step gets so long to say why; at the end of all, to end by itself.
_LAST_SECONDS = 3.0

AgentCommand = Callable[[str, list[str]], list[str]]
"""Builds the command that runs a program on a node."""


class _Agent:
    """The agent of a node, as seen from the program."""

    def __init__(self, number: int, node: str, started: float) -> None:
        self.number = number
        self.node = node
        self.started = started
        self.connection: Connection | None = None
        self.ready = False
        self.stderr: int | None = None
        self.said = b""
        self.cause: str | None = None
        self.deadline: float | None = None
        self.orders: list[tuple[Any, ...]] = []  # until it is ready
        self.workers: set[int] = set()
        self.idle_until: float | None = None
        self.dismissed = False
        self.doomed = False  # its launcher was told to end

    def order(self, *order: Any) -> None:
        if not self.ready:
            self.orders.append(order)
        elif self.connection is not None:
            with contextlib.suppress(OSError):  # its end will be read
                self.connection.send(pickle.dumps(order))

    def heard(self, data: bytes) -> None:
        """Keep the end of what its launcher, and the workers, write to their standard error."""
        self.said = (self.said + data)[-_STDERR_BYTES:]

    def why(self) -> str:
        """How it ended, in the words of its launcher."""
        said = self.said.decode(errors="replace").strip()
        return f"{self.cause or 'its connection is lost'}" + (f"; {said}" if said else "")


class NodeLauncher(Launcher):
    """Starts workers on compute nodes.

    Args:
        local: starts processes on this machine, from now on only for this launcher
        slots: the nodes, and how many cores are counted on each
        command: builds the command that runs a program on a node
        idle_seconds: an agent without workers ends after so long; None for never
        environment: makes of the program's environment, and of a worker's, that of the command
    """

    def __init__(
        self,
        local: Launcher,
        slots: Mapping[str, int],
        command: AgentCommand,
        idle_seconds: float | None = None,
        environment: Callable[[Mapping[str, str]], dict[str, str]] = dict,
    ) -> None:
        self._local = local
        self.waits_for_ever = local.waits_for_ever
        self.name = local.name
        self.command = local.command
        self._idle_seconds = idle_seconds
        self._environment = environment
        self._slots = slots
        self._command = command
        self._numbers = itertools.count(_FIRST_NUMBER)
        self._agents: dict[str, _Agent] = {}
        self._by_number: dict[int, _Agent] = {}
        self._homes: dict[int, _Agent] = {}  # of workers
        self._events: list[Event | NodeEvent] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(local.fileno(), selectors.EVENT_READ, self._hear_local)
        self._relay: StderrRelay[_Agent] = StderrRelay(self._selector, self._has_said_all)
        # A descriptor of its own that the dispatcher can wait for.
        self._fileno: int = self._selector.fileno()

    def fileno(self) -> int:
        return self._fileno

    def execute(
        self, worker: int, argv: list[str], environment: dict[str, str], cwd: str | None, stderr: int | None
    ) -> None:
        # What its command has started elsewhere may outlive it.
        environment = {**self._environment(environment), WATCH_VARIABLE: "1"}
        self._local.execute(worker, argv, environment, cwd, stderr)

    def fork(self, worker: int, node: str, threads: int, kept: bool, arguments: list[str], key: dict[str, str]) -> None:
        """Fork a worker on a node; it connects as all do.

        Args:
            worker: its number
            node: where
            threads: cores that it is bound to
            kept: whether it gets several tasks, which can be taken back
            arguments: how it finds the dispatcher, see `Door.arguments`
            key: the key that it has to show, as a variable of the environment

        Raises:
            OSError: the agent of the node cannot be started
        """
        agent = self._agents.get(node) or self._start(node, arguments, key)
        agent.workers.add(worker)
        agent.idle_until = None
        self._homes[worker] = agent
        agent.order("fork", worker, threads, kept)
        self._watch_writes(agent)

    def give_up(self, node: str) -> None:
        """End the agent of a node, which has no workers; the next worker there starts another."""
        agent = self._agents.pop(node, None)
        if agent is None:
            return
        agent.idle_until, agent.dismissed = None, True
        if agent.connection is None:
            self._local.kill(agent.number)
        else:
            self._hang_up(agent)
            agent.deadline = time.monotonic() + _LAST_SECONDS

    def take_back(self, worker: int, last: int) -> None:
        """Ask for the tasks of a worker, up to this one, that it has not begun; `TakenBack` answers."""
        agent = self._homes.get(worker)
        if agent is not None:
            agent.order("take", worker, last)
            self._watch_writes(agent)

    def arrived(self, number: int, connection: Connection) -> bool:
        """Take over a new connection if it is that of an agent; returns whether it is."""
        agent = self._by_number.get(number)
        if agent is None or agent.connection is not None:
            return False
        agent.connection = connection
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._hear_agent(agent))
        with contextlib.suppress(OSError):  # its end will be read
            connection.send(WELCOME)
            connection.send(pickle.dumps(("begin", list(sys.path), self._slots[agent.node])))
        self._watch_writes(agent)
        return True

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        agent = self._homes.get(worker)
        if agent is None:
            self._local.kill(worker, signum)
            return
        waiting = [order for order in agent.orders if order[0] == "fork" and order[1] == worker]
        if waiting:
            agent.orders.remove(waiting[0])
            self._forget(worker)
            self._events.append(StartFailed(worker, "was ended before it had started"))
        else:
            agent.order("kill", worker, int(signum))
            self._watch_writes(agent)

    def events(self) -> list[Event | NodeEvent]:
        for key, mask in self._selector.select(0):
            if mask & selectors.EVENT_WRITE and isinstance(key.fileobj, Connection):
                self._flush(key.data, key.fileobj)
            elif mask & selectors.EVENT_WRITE:
                key.data()
            if mask & selectors.EVENT_READ:
                key.data()
        found, self._events = self._events, []
        return found

    def deadline(self) -> float | None:
        if self._events:
            return 0.0
        times = [time for agent in self._by_number.values() for time in (agent.deadline, agent.idle_until)]
        times.append(self._local.deadline())
        return min((time for time in times if time is not None), default=None)

    def expire(self, now: float) -> None:
        due = self._local.deadline()
        if due is not None and due <= now:
            self._local.expire(now)
            self._hear_local()
        for agent in list(self._by_number.values()):
            if agent.idle_until is not None and agent.idle_until <= now:
                self.give_up(agent.node)
            if agent.deadline is None or agent.deadline > now:
                continue
            if agent.cause is not None:  # its standard error is held open by somebody
                self._end(agent)
                continue
            if agent.connection is None:
                late = f"did not report within {START_SECONDS:g} s"
                agent.cause = "it does not answer" if agent.ready else late
            agent.deadline = now + _LAST_SECONDS
            # A launcher that does not end its step, because the node does not answer, is ended itself.
            self._local.kill(agent.number, signal.SIGKILL if agent.doomed else signal.SIGTERM)
            agent.doomed = True

    def close(self) -> None:
        for agent in self._by_number.values():
            self._hang_up(agent)
            if not agent.ready:
                self._local.kill(agent.number)
        deadline = time.monotonic() + _LAST_SECONDS
        # Told by their connections, the agents end, and their steps with them: without a word of Slurm's.
        while self._by_number and time.monotonic() < deadline:
            self._selector.select(0.1)
            try:
                self.events()
            except LauncherLostError:
                break
        for agent in list(self._by_number.values()):
            self._relay.drop(agent)
        self._relay.close()
        self._local.close()
        self.end, self.said = self._local.end, self._local.said
        self._selector.close()

    def abandon(self) -> None:
        for agent in self._by_number.values():
            if agent.connection is not None:
                agent.connection.close()
            if agent.stderr is not None:
                os.close(agent.stderr)
        self._relay.close()
        self._local.abandon()
        self._selector.close()

    # Agents

    def _start(self, node: str, arguments: list[str], key: dict[str, str]) -> _Agent:
        agent = _Agent(next(self._numbers), node, time.monotonic())
        program = [sys.executable, get_command_path("node_agent.py"), *arguments, "--worker", str(agent.number)]
        read, write = os.pipe()
        try:
            self._local.execute(
                agent.number, self._command(node, program), {**self._environment(os.environ), **key}, None, write
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._relay.watch(agent, read)
        agent.deadline = None if self._local.waits_for_ever else agent.started + START_SECONDS
        self._agents[node] = self._by_number[agent.number] = agent
        return agent

    def _hear_agent(self, agent: _Agent) -> None:
        if agent.connection is None:
            return
        try:
            messages, closed = agent.connection.read()
        except BlockingIOError:
            return
        except OSError as error:
            _LOG.debug("the connection of the agent on %s is given up: %s", agent.node, error)
            messages, closed = [], True
        for body, _ in messages:
            self._reported(agent, pickle.loads(body))
        if closed:
            self._hang_up(agent)
            if agent.cause is None:  # what Slurm says of it is still to come
                agent.deadline = time.monotonic() + _LAST_SECONDS
            if self._agents.get(agent.node) is agent:
                del self._agents[agent.node]

    def _reported(self, agent: _Agent, report: tuple[Any, ...]) -> None:
        kind, worker = report[:2]
        if kind == "ready":
            agent.ready, agent.deadline = True, None
            orders, agent.orders = agent.orders, []
            for order in orders:
                agent.order(*order)
            self._watch_writes(agent)
            _LOG.debug("the agent on %s is ready (pid %d)", agent.node, report[2])
        elif kind == "taken":
            self._events.append(TakenBack(worker, report[3]))
        else:
            if kind != "started":
                self._forget(worker)
            self._events.append(event_of(report))

    def _has_said_all(self, agent: _Agent) -> None:
        if agent.cause is not None:
            self._end(agent)

    def _hear_local(self) -> None:
        for event in self._local.events():
            agent = None if isinstance(event, (TakenBack, NodeLost)) else self._by_number.get(event.worker)
            if agent is None:
                self._events.append(event)
            elif isinstance(event, Started):
                if not agent.ready and agent.deadline is None:  # it has waited for its turn until now
                    agent.deadline = time.monotonic() + START_SECONDS
            elif isinstance(event, (Exited, StartFailed)):
                agent.cause = agent.cause or (event.cause if isinstance(event, Exited) else event.reason)
                if agent.stderr is None:
                    self._end(agent)
                else:
                    agent.deadline = time.monotonic() + 0.5

    def _end(self, agent: _Agent) -> None:
        """The step of an agent has ended: so have its workers."""
        if agent.connection is not None:  # what it reported last
            self._hear_agent(agent)
        self._hang_up(agent)
        self._relay.drop(agent)
        self._by_number.pop(agent.number, None)
        if self._agents.get(agent.node) is agent:
            del self._agents[agent.node]
        why = agent.why()
        if not agent.ready and not agent.dismissed:
            self._events.append(NodeLost(agent.node, why))
        for worker in sorted(agent.workers):
            self._homes.pop(worker, None)
            if agent.ready:
                self._events.append(Exited(worker, f"lost with the agent on {agent.node}: {why}", False))
            else:
                self._events.append(StartFailed(worker, f"the agent on {agent.node} cannot be started: {why}"))

    def _forget(self, worker: int) -> None:
        agent = self._homes.pop(worker, None)
        if agent is None:
            return
        agent.workers.discard(worker)
        if not agent.workers and self._idle_seconds is not None:
            agent.idle_until = time.monotonic() + self._idle_seconds

    def _hang_up(self, agent: _Agent) -> None:
        if agent.connection is not None:
            self._selector.unregister(agent.connection)
            agent.connection.close()
            agent.connection = None

    def _watch_writes(self, agent: _Agent) -> None:
        connection = agent.connection
        if connection is not None and connection.unsent:
            key = self._selector.get_key(connection)
            self._selector.modify(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, key.data)

    def _flush(self, data: Any, connection: Connection) -> None:
        if connection.fileno() < 0 or connection not in self._selector.get_map():  # its end was heard of in this round
            return
        try:
            if not connection.flush():
                return
        except OSError:  # the reading side will notice
            connection.discard()
        self._selector.modify(connection, selectors.EVENT_READ, data)
