"""Requests of a program to its fork server, and reports back.

Each is a pickled tuple behind its length, with the file descriptors that belong to it:

    (path,)                                                        first of all: the program's sys.path
    ("fork", worker)                                               channel, [claims,] stdout, stderr
    ("exec", worker, argv, environment, cwd)                       stdout, stderr
    ("kill", worker, signal)
    -> ("started", worker, pid) | ("failed", worker, reason) | ("heard", worker, 0)     one for each request
    -> ("exited", worker, wait status)
"""

from __future__ import annotations

import struct

from executorlib.standalone.light import dumps, loads, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LENGTH = struct.Struct("<I")
_FD = struct.Struct("i")
_MAX_FDS = 4


def send_request(sock: socket.socket, request: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
    """Send a request with descriptors."""
    data = dumps(request)
    if fds:
        rights = b"".join(map(_FD.pack, fds))
        sock.sendmsg([LENGTH.pack(len(data))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        sock.sendall(data)
    else:
        sock.sendall(LENGTH.pack(len(data)) + data)


def encode_report(report: tuple[Any, ...]) -> bytes:
    """A report as it goes over the socket."""
    data = dumps(report)
    return LENGTH.pack(len(data)) + data


def receive_request(sock: socket.socket) -> tuple[tuple[Any, ...], list[int]]:
    """Wait for a request and its descriptors.

    Raises:
        EOFError: the other side is gone
    """
    head, extra, _, _ = sock.recvmsg(LENGTH.size, socket.CMSG_SPACE(_MAX_FDS * _FD.size))
    fds = [
        fd
        for level, kind, data in extra
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (fd,) in _FD.iter_unpack(data[: len(data) // _FD.size * _FD.size])
    ]
    while len(head) < LENGTH.size:
        head += _receive(sock, LENGTH.size - len(head))
    (missing,) = LENGTH.unpack(head)
    data = b""
    while len(data) < missing:
        data += _receive(sock, missing - len(data))
    return loads(data), fds


def _receive(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size)
    if not data:
        raise EOFError("the other side is gone")
    return data
