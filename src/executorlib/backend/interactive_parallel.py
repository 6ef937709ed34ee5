"""Program of a worker of several MPI ranks.

    mpiexec -n 2 python interactive_parallel.py --host HOST --zmqport PORT [--worker NUMBER]

Rank 0 is connected to the executor and passes every message on to the others, so that all ranks see the same. Each
rank runs each task; rank 0 sends the results of all. A rank that fails tells the executor so on a connection of its
own, because rank 0 may be waiting for it inside the task, in a collective call that never ends.

Idle ranks sleep until rank 0 wakes them. Those on other machines look with pauses: MPI itself would keep a core busy.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Run as a file, whose folder is not a place where a program's modules are to be found.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pickle
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from executorlib.backend.bell import Bell
from executorlib.backend.calls import flush_output
from executorlib.backend.dict_calls import DictLink
from executorlib.backend.ranks import start_mpi
from executorlib.backend.remote import Arguments, introduce, leave_package_folder, watch_lifeline
from executorlib.backend.runner import Outcome, Runner
from executorlib.backend.watcher import start_watcher
from executorlib.backend.worker import finish, make_main
from executorlib.standalone.interactive.messages import DONE, RANK_ERROR, RANKS_DONE, Setup
from executorlib.standalone.interactive.wire import Connection, Message, ProtocolError
from executorlib.standalone.serialize import Payload

if TYPE_CHECKING:
    from executorlib.backend.runner import Link

# The first pauses of a rank that waits are short: the next task often comes at once.
_FIRST_PAUSE = 2e-5
_LONGEST_PAUSE = 7e-4


def wait_for(done: Callable[[], bool]) -> None:
    """Wait until something is true, at the cost of a few percent of a core."""
    pause = _FIRST_PAUSE
    while not done():
        time.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_PAUSE)


class RankLink:
    """The connection of all ranks: what rank 0 receives, every rank receives.

    Args:
        comm: a communicator of this library alone, so that its messages do not meet those of tasks
        connection: that of rank 0
    """

    def __init__(self, comm: Any, connection: Connection | None) -> None:
        self._comm = comm
        self._connection = connection
        self._bell = Bell(comm)

    def receive(self) -> Message:
        """Wait for the next message, on all ranks.

        Raises:
            EOFError: the executor is gone
        """
        message: Message | None = None
        if self._connection is not None:
            try:
                message = self._connection.receive()
            except (EOFError, ConnectionError) as error:
                if isinstance(error, ProtocolError):
                    print(f"executorlib: {error}", file=sys.stderr)
                message = None
        sizes = None if message is None else [len(buffer) for buffer in message[1]]
        sizes = self._broadcast_small(sizes)
        if sizes is None:
            raise EOFError("the executor is gone")
        if message is None:
            message = b"", [bytearray(size) for size in sizes]
        body: bytes = self._comm.bcast(message[0])
        for buffer in message[1]:
            for start in range(0, len(buffer), 1 << 30):  # the counts of MPI are 32 bits
                self._comm.Bcast(memoryview(buffer)[start : start + (1 << 30)])
        return body, message[1]

    def send(self, body: bytes, buffers: Any = ()) -> None:
        """Send to the executor, from rank 0."""
        if self._connection is not None:
            self._connection.send(body, buffers)

    def _broadcast_small(self, obj: Any) -> Any:
        """Send an object from rank 0 to all; the others wait for it without using their core."""
        if self._comm.rank == 0:
            data = pickle.dumps(obj)
            self._bell.ring()
            for rank in range(1, self._comm.size):
                self._comm.Send(data, dest=rank)
            return obj
        from mpi4py import MPI

        status = MPI.Status()
        self._bell.wait()
        wait_for(lambda: bool(self._comm.Iprobe(source=0, status=status)))
        received = bytearray(status.Get_count(MPI.BYTE))
        self._comm.Recv(received, source=0)
        return pickle.loads(received)


class RankRunner(Runner):
    """Runs every task on this rank and brings the outcomes of all ranks together."""

    def __init__(self, link: Link, comm: Any, arguments: Arguments) -> None:
        super().__init__(link)
        self._comm = comm
        self._arguments = arguments

    def set_up(self, setup: Setup, buffers: Sequence[Any]) -> None:
        """As any worker; the GPUs of the task are dealt out to the ranks."""
        each = len(setup.gpus) // self._comm.size
        first = each * self._comm.rank
        super().set_up(setup._replace(gpus=setup.gpus[first : first + each]), buffers)

    def report(self, number: int, outcome: Outcome) -> None:
        """Bring the outcomes together; rank 0 sends the results, or the first error."""
        if outcome.status != DONE:
            self._report_error(number, outcome)
        outcomes = self._gather(outcome)
        if outcomes is None:
            return
        failed = [rank for rank, other in enumerate(outcomes) if other.status != DONE]
        if failed:
            super().report(number, outcomes[failed[0]])
            return
        parts = [(other.payload.data, len(other.payload.buffers)) for other in outcomes]
        buffers = [buffer for other in outcomes for buffer in other.payload.buffers]
        seconds = max(other.seconds for other in outcomes)
        payload = Payload(pickle.dumps(parts, 5), buffers)
        super().report(number, Outcome(RANKS_DONE, payload, outcome.start, seconds))

    def _report_error(self, number: int, outcome: Outcome) -> None:
        message = RANK_ERROR + pickle.dumps((number, outcome.payload.data))
        if self._comm.rank == 0:
            self._link.send(message)
            return
        connection = introduce(self._arguments, self._comm.rank, self._comm.size)
        connection.send(message)
        connection.close()

    def _gather(self, outcome: Outcome) -> list[Outcome] | None:
        # A rank that has ended early waits for the slowest without taking a core from it.
        barrier = self._comm.Ibarrier()
        wait_for(barrier.Test)
        copies = [bytes(buffer) for buffer in outcome.payload.buffers]
        plain = (outcome.status, outcome.payload.data, copies, outcome.start, outcome.seconds)
        gathered = self._comm.gather(plain)
        if gathered is None:
            return None
        return [
            Outcome(status, Payload(data, buffers), start, seconds)
            for status, data, buffers, start, seconds in gathered
        ]


def main(argv: list[str]) -> None:
    """Work until the executor says stop or is gone."""
    arguments = Arguments.parse(argv)
    watch_lifeline()
    watch = start_watcher()
    comm = start_mpi()
    connection = introduce(arguments, 0, comm.size) if comm.rank == 0 else None
    if connection is not None:
        watch(connection)
    make_main()
    link = DictLink(RankLink(comm, connection), arguments.worker, None if connection is None else connection.fileno())
    try:
        link.serve(RankRunner(link, comm, arguments))
    except BaseException:
        # Such as KeyboardInterrupt between two tasks. The end of MPI would wait for the other ranks, and these for it.
        import traceback

        traceback.print_exc()
        flush_output()
        os._exit(1)
    finish()
    if connection is not None:
        connection.close()


if __name__ == "__main__":
    leave_package_folder()
    main(sys.argv[1:])
