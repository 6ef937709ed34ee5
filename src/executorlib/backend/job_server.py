"""The helper beside an executor that runs jobs on this machine: it forks the job of each serial task.

    program ══ control socket ══ job server ──fork──► job, in a session of its own

It is a fork server whose children outlive it, and it ends with the program: a job goes on, as a batch job does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from executorlib.backend.fork_server import ForkServer
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.interactive.control import receive_request


class JobServer(ForkServer):
    """The loop of the helper process."""

    def _become(self, request: tuple[Any, ...], fds: list[int]) -> NoReturn:
        """In the child: run a task of the cache."""
        code = 70
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._control.close()
            os.close(self._child_exits)
            os.close(self._wake)
            _, _, path, environment, cwd = request
            os.dup2(fds[0], 1)
            os.dup2(fds[0], 2)
            for fd in fds:
                os.close(fd)
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
            os.chdir(cwd)
            from executorlib.backend.cache_call import work

            code = work(CachePaths.of_file(path))
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(2, f"executorlib: cannot run a job: {error!r}\n".encode())
        finally:
            os._exit(code)

    def _end_all(self) -> None:
        """The jobs outlive the program."""


def main(fd: int) -> None:
    """Fork jobs until the program is over."""
    control = socket.socket(fileno=fd)
    with contextlib.suppress(OSError):
        os.setsid()
    (sys.path[:],), _ = receive_request(control)
    server = JobServer(control)
    # What every job needs, once instead of in each.
    import executorlib.backend.cache_call  # noqa: F401

    with contextlib.suppress(ImportError):
        import cloudpickle.cloudpickle  # noqa: F401
    server.run()
    os._exit(0)
