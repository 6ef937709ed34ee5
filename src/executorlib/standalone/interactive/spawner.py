"""Spawners: how a `SocketInterface` starts its worker, looks after it and ends it.

Other packages derive from these, for example to run the worker under the Python of another environment: they override
``generate_command`` or ``bootup``, and keep the process in ``_process``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from executorlib.standalone.command import mpiexec_command
from executorlib.standalone.hardware import thread_environment

_TERM_SECONDS = 5.0
_LAST_TERM_SECONDS = 0.5
_KILL_SECONDS = 5.0


class BaseSpawner(ABC):
    """What every spawner promises.

    Args:
        cwd: directory in which the worker runs, made if it is missing; by default that of the program
        cores: number of MPI ranks
        worker_id: number of the worker among those of a program
        openmpi_oversubscribe: allow more ranks than cores (Open MPI only)
    """

    def __init__(
        self,
        cwd: str | None = None,
        cores: int = 1,
        worker_id: int = 0,
        openmpi_oversubscribe: bool = False,
    ) -> None:
        self._cwd = cwd
        self._cores = cores
        self._worker_id = worker_id
        self._openmpi_oversubscribe = openmpi_oversubscribe

    @abstractmethod
    def bootup(self, command_lst: list[str], stop_function: Callable[[], bool] | None = None) -> bool:
        """Start the worker.

        Args:
            command_lst: the worker program and its arguments
            stop_function: asked before the start; if it says True there is none

        Returns:
            whether the worker runs
        """

    @abstractmethod
    def poll(self) -> bool:
        """Whether the worker runs."""

    @abstractmethod
    def shutdown(self, wait: bool = True) -> None:
        """End the worker.

        Args:
            wait: whether to return only when it has ended
        """


class SubprocessSpawner(BaseSpawner):
    """Runs the worker as a child process of the program, in a session of its own.

    Args:
        cwd: as in `BaseSpawner`
        cores: as in `BaseSpawner`; kept for classes that derive from this one, which starts one process
        worker_id: as in `BaseSpawner`
        openmpi_oversubscribe: as in `BaseSpawner`
        threads_per_core: number of threads for the numerical libraries of the worker. The default of 1 leaves alone
            what the environment says.
    """

    def __init__(
        self,
        cwd: str | None = None,
        cores: int = 1,
        worker_id: int = 0,
        openmpi_oversubscribe: bool = False,
        threads_per_core: int = 1,
    ) -> None:
        super().__init__(cwd, cores, worker_id, openmpi_oversubscribe)
        self._threads_per_core = threads_per_core
        self._process: Any = None
        self._grouped: Any = None  # the process that leads a group of its own; one not started here may be in ours

    def generate_command(self, command_lst: list[str]) -> list[str]:
        """The command line that runs a worker program."""
        return command_lst

    def bootup(self, command_lst: list[str], stop_function: Callable[[], bool] | None = None) -> bool:
        """Start the worker, in place of the one before.

        Raises:
            OSError: there is no such program, or the directory cannot be made
        """
        if stop_function is not None and stop_function():
            return False
        self.shutdown()
        if self._cwd is not None:
            os.makedirs(self._cwd, exist_ok=True)
        threads = self._threads_per_core if self._threads_per_core > 1 else None
        self._process = self._grouped = subprocess.Popen(
            self.generate_command(command_lst=command_lst),
            cwd=self._cwd,
            env={**os.environ, **thread_environment(threads, dict(os.environ))},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self.poll()

    def poll(self) -> bool:
        """Whether the worker runs. What it had started does not outlive its violent end."""
        process = self._process
        if process is None:
            return False
        code = process.poll()
        if code not in (None, 0) and process is self._grouped:
            self._grouped = None  # once: its number may come up again
            _signal(process, "SIGKILL", grouped=True)
        return code is None

    def shutdown(self, wait: bool = True) -> None:
        """End the worker and all that it has started: with a request first, by force after some seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        grouped = process is self._grouped
        if wait:
            _end(process, grouped, _TERM_SECONDS)
            return
        try:
            ender = threading.Thread(target=_end, args=(process, grouped, _TERM_SECONDS), daemon=True)
            ender.start()
        except RuntimeError:  # the interpreter is about to end
            _end(process, grouped, _LAST_TERM_SECONDS)


class MpiExecSpawner(SubprocessSpawner):
    """Runs the ranks of a worker with mpiexec; a worker of one core without."""

    def generate_command(self, command_lst: list[str]) -> list[str]:
        """The command line that runs a worker program on all ranks.

        Raises:
            FileNotFoundError: there is no mpiexec
        """
        if self._cores == 1:
            return command_lst
        return [*mpiexec_command(self._cores, self._openmpi_oversubscribe), *command_lst]


def _end(process: Any, grouped: bool, term_seconds: float) -> None:
    if process.poll() is None:
        _signal(process, "SIGTERM", grouped)
        try:
            process.wait(term_seconds)
        except subprocess.TimeoutExpired:
            _signal(process, "SIGKILL", grouped)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_SECONDS)
        if grouped:  # those of the group that did not listen
            _signal(process, "SIGKILL", grouped)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _signal(process: Any, name: str, grouped: bool) -> None:
    with contextlib.suppress(OSError):
        if grouped and hasattr(os, "killpg"):
            os.killpg(process.pid, getattr(signal, name))
        elif name == "SIGKILL":
            process.kill()
        else:
            process.terminate()
