"""Program of a node agent: it forks the workers of one compute node for an executor on another machine.

    dispatcher ══ signed TCP ══ node agent ──fork──► worker
         ╚═══════════ signed TCP ══════════════════════╝

It is a fork server that is reached over the network. A step of Slurm costs its controller about a tenth of a second; a
fork costs milliseconds. A worker has a connection of its own to the dispatcher, so nothing but orders passes the agent.

    node_agent.py --host HOST --zmqport PORT --worker NUMBER

Orders, pickled: ("begin", path, slots), first of all and answered by ("ready", agent, pid); ("fork", worker, threads,
kept), ("kill", worker, signal), ("take", worker, last task). Reports: ("started", worker, pid), ("failed", worker,
reason), ("exited", worker, wait status, tasks begun), ("taken", worker, last task, tasks begun).
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import contextlib
import ctypes
import gc
import pickle
import signal
from typing import Any, NoReturn

from executorlib.backend.cores import Cores
from executorlib.backend.fork_server import ForkServer
from executorlib.backend.remote import Arguments, introduce
from executorlib.backend.runner import Claims, Runner
from executorlib.backend.turns import Turns
from executorlib.backend.worker import end_mpi, finish, make_main
from executorlib.standalone.interactive.messages import Setup
from executorlib.standalone.interactive.wire import Connection, Message

_PR_SET_PDEATHSIG = 1
_OF_THE_STEP = ("SLURM_", "SLURMD_", "FLUX_")
# What makes an MPI library believe that it is a rank of the program's job, whose descriptor is not here.
_NO_RANK = ("PMI_", "PMIX_")


class NodeAgent(ForkServer):
    """The loop of an agent."""

    def __init__(self, arguments: Arguments, connection: Connection, slots: int) -> None:
        super().__init__(connection.sock)
        connection.sock.setblocking(False)
        # An address, so that workers need not ask for that of a name.
        self._arguments = arguments._replace(host=connection.sock.getpeername()[0])
        self._connection = connection
        self._cores = Cores(slots)
        self._turns: dict[int, Turns] = {}
        self._libc = ctypes.CDLL(None)

    def report_ready(self) -> None:
        """Say that orders may come."""
        self._report("ready", self._arguments.worker, os.getpid())

    def _hear(self) -> None:
        try:
            messages, closed = self._connection.read()
        except BlockingIOError:
            return
        for body, _ in messages:
            self._obey(pickle.loads(body), [])
        if closed:
            raise EOFError("the dispatcher is gone")

    def _obey(self, request: tuple[Any, ...], fds: list[int]) -> None:
        kind, worker = request[:2]
        if kind == "take":
            turns = self._turns.get(worker)
            if turns is not None:  # else its end is on the way, and tells the same
                self._report("taken", worker, request[2], turns.take_back(request[2]))
            return
        if kind == "fork":
            self._cores.take(worker, request[2])
            if request[3]:
                self._turns[worker] = Turns()
        super()._obey(request, fds)

    def _report(self, *report: Any) -> None:
        kind, worker = report[:2]
        if kind in ("exited", "failed"):
            self._cores.give_back(worker)
        if kind == "exited":
            turns = self._turns.pop(worker, None)
            report = (*report, None if turns is None else turns.begun())
            if turns is not None:
                turns.close()
        self._connection.send(pickle.dumps(report))

    @property
    def _has_unsent(self) -> bool:
        return self._connection.unsent

    def _send_reports(self) -> None:
        self._connection.flush()

    def _become(self, request: tuple[Any, ...], fds: list[int]) -> NoReturn:
        """In the child: turn into a worker with a connection of its own."""
        code = 70
        try:
            # Should the agent be killed, nobody else would end its workers.
            self._libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)  # so that the task's own children end with it
            self._connection.close()
            os.close(self._child_exits)
            os.close(self._wake)
            self._cores.bind(request[1])
            code = self._work(request[1])
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(2, f"executorlib: a worker is ended by {error!r}\n".encode())
        finally:
            os._exit(code)

    def _work(self, worker: int) -> int:
        connection = introduce(self._arguments._replace(worker=worker))
        make_main()
        _NodeRunner(connection, self._turns.get(worker)).serve()
        finish()
        end_mpi()
        connection.close()
        return 0


class _NodeRunner(Runner):
    """A worker with the program's environment, and what Slurm or Flux says of this step or job, and this node."""

    def __init__(self, connection: Connection, claims: Claims | None) -> None:
        super().__init__(connection, claims)
        self._step = {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_STEP)}

    def set_up(self, setup: Setup, buffers: Any) -> None:
        environment = None
        if setup.environment is not None:
            of_the_program = {name: value for name, value in setup.environment.items() if not name.startswith(_NO_RANK)}
            environment = {**of_the_program, **self._step}
        super().set_up(setup._replace(environment=environment), buffers)


def receive_begin(message: Message) -> tuple[list[str], int]:
    """What the first message of the dispatcher says: the program's ``sys.path``, and the slots of this node."""
    _, path, slots = pickle.loads(message[0])
    return path, slots


def main(argv: list[str]) -> None:
    """Fork workers until the dispatcher is gone."""
    arguments = Arguments.parse(argv)
    connection = introduce(arguments)
    sys.path[:], slots = receive_begin(connection.receive())
    agent = NodeAgent(arguments, connection, slots)
    # What nearly every worker needs, once instead of in each.
    import inspect  # noqa: F401

    import executorlib.standalone.plain_function  # noqa: F401

    with contextlib.suppress(ImportError):
        import cloudpickle.cloudpickle  # noqa: F401
    gc.freeze()  # a collection in a child would copy every page that holds an object
    agent.report_ready()
    agent.run()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
