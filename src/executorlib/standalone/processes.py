"""Processes of this machine, known by more than a number that may come up again."""

from __future__ import annotations

import os
import signal
import socket
import time
from functools import cache
from hashlib import md5

_TERM_SECONDS = 3.0
_PAUSE = 0.02


@cache
def process_space() -> str:
    """Names the set of processes in which a process id means the same: this host, this boot, this container."""
    parts = [socket.gethostname()]
    for source in ("/proc/self/ns/pid", "/proc/sys/kernel/random/boot_id"):
        try:
            parts.append(os.readlink(source) if os.path.islink(source) else _first_line(source))
        except OSError:  # not Linux
            pass
    return md5("\n".join(parts).encode(), usedforsecurity=False).hexdigest()[:12]


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number; one that has ended and waits for its parent counts."""
    if os.name == "nt":  # there os.kill(pid, 0) ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def start_mark(pid: int) -> str:
    """Tells a process from a later one of the same number; empty for one that has ended, or where it is not known.

    On Linux it is the time of the start in clock ticks since the boot (field 22 of /proc/PID/stat).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def end_group(pid: int, *, gently: bool) -> None:
    """End a process that leads a group, and what it has started; returns when it has ended, or after some seconds.

    Args:
        pid: the process
        gently: ask it first, so that it can end others: a launcher its ranks
    """
    if gently and signal_group(pid, "SIGTERM"):
        deadline = time.monotonic() + _TERM_SECONDS
        while is_alive(pid) and start_mark(pid) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
    signal_group(pid, "SIGKILL")


def signal_group(pid: int, name: str) -> bool:
    """Send a signal to a process that leads a group, and to the group; returns whether there was anybody."""
    signum = getattr(signal, name, signal.SIGTERM)
    try:
        if hasattr(os, "killpg"):
            os.killpg(pid, signum)
        else:
            os.kill(pid, signum)
    except OSError:  # it has ended
        return False
    return True


def _first_line(source: str) -> str:
    with open(source, encoding="ascii") as file:
        return file.readline()
