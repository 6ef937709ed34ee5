"""A worker forked by the fork server, and how any worker begins and ends."""

from __future__ import annotations

import atexit
import os
import sys
import types

from executorlib.backend.calls import flush_output
from executorlib.backend.runner import Claims, Runner
from executorlib.standalone.interactive.messages import STARTED, STARTED_HEAD
from executorlib.standalone.interactive.wire import Connection
from executorlib.standalone.light import socket


def work(channel: int, claims: int | None) -> int:
    """Serve the dispatcher until it says stop; returns the exit code of the process."""
    make_main()
    os.set_inheritable(channel, False)
    connection = Connection(socket.socket(fileno=channel))
    if claims is not None:
        os.set_inheritable(claims, False)
        os.set_blocking(claims, False)
    try:
        connection.send(STARTED_HEAD.pack(STARTED, os.getpid()))
        Runner(connection, Claims(claims)).serve()
    except (BrokenPipeError, ConnectionResetError):  # the dispatcher is gone, or has given this worker up
        pass
    finish()
    end_mpi()
    connection.close()
    return 0


def make_main() -> None:
    """Tasks are strangers to the program of the worker: they get a ``__main__`` of their own."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv[:] = [""]


def finish() -> None:
    """What the interpreter does for a program that ends, as far as tasks may rely on it."""
    # As multiprocessing does: joins the threads that are not daemons, and ends the pools of concurrent.futures.
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    atexit._run_exitfuncs()
    flush_output()


def end_mpi() -> None:
    """End MPI where a task has started it: in a process that ends by ``os._exit`` mpi4py does not come to do so.

    What is left of it is memory that its ranks share, even if there is but one.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return
    rc = sys.modules["mpi4py"].rc  # what the user may have asked for
    if rc.initialize if rc.finalize is None else rc.finalize:
        mpi.Finalize()
