"""Commands that start workers."""

from __future__ import annotations

import os
import sys

PATH_VARIABLE = "EXECUTORLIB_PATH"
"""Environment variable by which a job on this machine gets the sys.path of the program, as JSON."""

RUN_TIME_VARIABLE = "EXECUTORLIB_RUN_TIME_MAX"
"""Environment variable that tells the elements of an array of jobs the time limit of each, in seconds."""

KEY_VARIABLE = "EXECUTORLIB_KEY_"
"""Start of the names of environment variables by which workers get the keys of executors; the port follows."""

WATCH_VARIABLE = "EXECUTORLIB_WATCH"
"""Environment variable that tells a worker to end when its connection does, see `executorlib.backend.watcher`."""

_BACKEND = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "backend")

OTHER_MPI = (
    "the launcher and the MPI library of mpi4py do not belong together. Use the mpiexec of the MPI library that mpi4py "
    "was built for (python -m mpi4py --mpi-lib-version), or with srun and flux a matching pmi_mode"
)
"""Why ranks see fewer than were started, and what to do."""


def get_command_path(executable: str) -> str:
    """Path of a worker program of this library, for example ``"interactive_serial.py"``."""
    return os.path.join(_BACKEND, executable)


def worker_program(cores: int) -> list[str]:
    """The command that a worker, or each of its ranks, runs."""
    return [sys.executable, get_command_path("interactive_parallel.py" if cores > 1 else "interactive_serial.py")]


def mpiexec_path() -> str:
    """The mpiexec that belongs to this Python environment, else the first on PATH.

    An mpiexec of another MPI library starts every rank as a world of its own.

    Raises:
        FileNotFoundError: there is none
    """
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    if os.access(beside, os.X_OK):
        return beside
    import shutil

    found = shutil.which("mpiexec")
    if found is None:
        raise FileNotFoundError(
            "More than one core per task needs MPI, but there is no mpiexec, neither beside "
            f"{sys.executable} nor on PATH. Install an MPI library and mpi4py, for example with "
            "'pip install mpi4py mpich'."
        )
    return found


def mpiexec_command(cores: int, oversubscribe: bool = False) -> list[str]:
    """Start of a command line that runs a program on several ranks of this machine."""
    command = [mpiexec_path(), "-n", str(cores)]
    if oversubscribe:
        command.append("--oversubscribe")
    return command
