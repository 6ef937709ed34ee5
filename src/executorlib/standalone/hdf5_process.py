"""The process that reads files of the HDF5 library for this one (see `executorlib.standalone.hdf5_library`).

It is started with the first such file and ends by itself when it has had nothing to do for a moment, or when this
process has ended. A file of this library needs neither it nor h5py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

from executorlib.standalone.command import get_command_path
from executorlib.standalone.hdf5_library import Wanted, read_with_h5py
from executorlib.standalone.interactive.wire import Connection, ProtocolError

# A file that is read for longer is taken for damaged in a way that keeps the library busy for ever.
_READ_SECONDS = 300.0


class UnreadableError(Exception):
    """The HDF5 library cannot read a file."""


class _Process:
    """The other process, as this one sees it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, get_command_path("hdf5_reader.py"), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(_READ_SECONDS)
        self._socket = ours
        self._connection = Connection(ours)
        self.owner = os.getpid()
        threading.Thread(target=self._bury, name="executorlib-hdf5", daemon=True).start()

    def read(self, path: str, descriptor: int, wanted: Wanted) -> dict[str, bytes | None]:
        """As `read_with_h5py`.

        Raises:
            EOFError, OSError: the process has ended
            UnreadableError: what the library said, if it did not end its process
        """
        socket.send_fds(self._socket, [b"\0"], [descriptor])
        self._connection.send(json.dumps([path, wanted.names, wanted.largest]).encode())
        # Not a pickle: nothing that a damaged file has done to that process may come over to this one.
        body, contents = self._connection.receive()
        reply = json.loads(body)
        if "error" in reply:
            raise UnreadableError(reply["error"])
        some = iter(contents)
        return {name: bytes(next(some)) if there else None for name, there in reply["datasets"]}

    def end(self) -> str:
        """End it if it has not ended; returns how it did."""
        self._connection.close()
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    def _bury(self) -> None:
        """When it has ended, leave nothing of it."""
        global _process
        self._process.wait()
        with _lock:
            self._connection.close()
            if _process is self:
                _process = None

    def forget(self) -> None:
        """In a child of the program: it is not the child's."""
        self._connection.close()
        self._process.returncode = 0


_lock = threading.Lock()
_process: _Process | None = None


def read_apart(path: str, descriptor: int, wanted: Wanted) -> dict[str, bytes | None]:
    """As `read_with_h5py`, in another process where there may be one.

    Raises:
        Exception: the library cannot read the file
    """
    if not hasattr(socket, "send_fds") or sys.platform == "win32":
        return read_with_h5py(path, descriptor, wanted)
    with _lock:
        for fresh in (False, True):
            process = _current(fresh)
            try:
                return process.read(path, descriptor, wanted)
            except (EOFError, OSError, ProtocolError, ValueError) as error:
                how = _end()
                if fresh or isinstance(error, TimeoutError):
                    raise UnreadableError(f"the HDF5 library has died of it: {how}") from error
    raise AssertionError


def _current(fresh: bool) -> _Process:
    global _process
    if _process is not None and _process.owner != os.getpid():
        _process.forget()
        _process = None
    if _process is None or fresh:
        _process = _Process()
    return _process


def _end() -> str:
    global _process
    assert _process is not None
    process, _process = _process, None
    return process.end()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the program may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def serve(descriptor: int, idle_seconds: float) -> None:
    """The loop of the other process."""
    sock = socket.socket(fileno=descriptor)
    connection = Connection(sock)
    with contextlib.suppress(EOFError, OSError):  # its owner has ended, or nothing was to do for so long
        while True:
            sock.settimeout(idle_seconds)
            _, fds, _, _ = socket.recv_fds(sock, 1, 1)
            if not fds:
                return
            sock.settimeout(None)
            try:
                path, names, largest = json.loads(connection.receive()[0])
                connection.send(*_answer(path, fds[0], Wanted(names, largest)))
            finally:
                os.close(fds[0])


def _answer(path: str, descriptor: int, wanted: Wanted) -> tuple[bytes, list[bytes]]:
    try:
        found = read_with_h5py(path, descriptor, wanted)
    except Exception as error:
        return json.dumps({"error": f"{error}" or repr(error)}).encode(), []
    datasets = [[name, content is not None] for name, content in found.items()]
    return json.dumps({"datasets": datasets}).encode(), [content for content in found.values() if content is not None]
