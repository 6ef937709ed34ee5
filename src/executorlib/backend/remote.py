"""What workers have in common that connect to their executor over TCP."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import platform
import signal
import socket
import sys
import threading
from typing import NamedTuple

from executorlib.standalone.interactive import listener
from executorlib.standalone.interactive.listener import Hello, key_variable
from executorlib.standalone.interactive.wire import Connection

_CONNECT_SECONDS = 60.0


class Arguments(NamedTuple):
    """The command line of a worker program and the key from its environment."""

    host: str
    port: int
    worker: int
    key: bytes

    @classmethod
    def parse(cls, argv: list[str]) -> Arguments:
        parser = argparse.ArgumentParser(description="A worker of an executorlib executor.")
        parser.add_argument("--host", default="localhost", help="host of the executor")
        parser.add_argument("--zmqport", type=int, required=True, help="port of the executor")
        parser.add_argument("--keyfile", help="file with the key, for a job whose environment others keep")
        parser.add_argument("--worker", "--worker-id", type=int, default=0, help="number of the worker")
        known, _ = parser.parse_known_args(argv)
        # The task and what it starts have no business with the key.
        key = os.environ.pop(key_variable(known.zmqport), None)
        if known.keyfile is not None:
            with open(known.keyfile) as file:
                key = file.read()
        if key is None:
            parser.error(
                f"the environment has no {key_variable(known.zmqport)}: this program is started by an executor"
            )
        return cls(known.host, known.zmqport, known.worker, bytes.fromhex(key))


def introduce(arguments: Arguments, rank: int = 0, ranks: int = 1) -> Connection:
    """Connect to the executor and say who this is."""
    hello = Hello(
        worker=arguments.worker,
        rank=rank,
        ranks=ranks,
        pid=os.getpid(),
        host=socket.gethostname(),
        python=platform.python_version(),
    )
    return listener.introduce(arguments.host, arguments.port, arguments.key, hello, _CONNECT_SECONDS)


def watch_lifeline() -> None:
    """End this process when the program does that started it, where there is no fork server to see to it.

    The program holds the other end of standard input, which closes with it.
    """
    if os.environ.pop("EXECUTORLIB_LIFELINE", None) is None:
        return
    lifeline = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # stays open as long as the process

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(lifeline, 1)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # with what the task has started
        os._exit(1)

    threading.Thread(target=watch, name="executorlib-lifeline", daemon=True).start()


def leave_package_folder() -> None:
    """Take this package's folder from the path: in the Python of another environment its NumPy would be a stranger."""
    folder = sys.path.pop(0)
    if importlib.util.find_spec("cloudpickle") is None:  # pure Python, and needed to receive most functions
        sys.path.append(folder)
        try:
            importlib.import_module("cloudpickle")
        except ImportError:  # each function that needs it will say so
            pass
        sys.path.remove(folder)
