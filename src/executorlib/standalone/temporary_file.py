"""Temporary names for files that are being written, and the removal of those that a killed writer left behind."""

from __future__ import annotations

import itertools
import os
import stat
import time

from executorlib.standalone.cache_trust import make_private_directory
from executorlib.standalone.processes import is_alive, process_space

_PREFIX = ".executorlib-"
_SUFFIX = ".tmp"
_ABANDONED_AFTER_SECONDS = 86400.0
# Some of them are absent on Windows.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_counter = itertools.count()


def create(directory: str) -> tuple[int, str]:
    """Open a new file in the directory, which is made if it is missing.

    Returns:
        The file's descriptor, open for writing, and its path.

    Raises:
        OSError: the directory cannot be made or written to.
    """
    path = new_path(directory)
    try:
        return os.open(path, _FLAGS, 0o600), path
    except FileNotFoundError:
        make_private_directory(directory)
    except FileExistsError:  # left by a dead process that had our process id
        os.unlink(path)
    return os.open(path, _FLAGS, 0o600), path


def new_path(directory: str) -> str:
    """A temporary name in the directory."""
    return os.path.join(directory, f"{_PREFIX}{process_space()}-{os.getpid()}-{next(_counter)}{_SUFFIX}")


def remove_abandoned(directory: str) -> None:
    """Remove the temporary files that writers left in this directory, or below it, when they were killed.

    Those of processes on this host that no longer live; those of other hosts after a day. Files that cannot be
    removed, or that others remove at the same time, are passed over.
    """
    for folder, _, names in os.walk(directory):
        for name in names:
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
                path = os.path.join(folder, name)
                try:
                    if _is_abandoned(name, path):
                        os.unlink(path)
                except OSError:
                    pass


def _is_abandoned(name: str, path: str) -> bool:
    space, _, rest = name[len(_PREFIX) :].partition("-")
    pid = rest.partition("-")[0]
    if space == process_space() and pid.isdigit() and not is_alive(int(pid)):
        return True
    info = os.lstat(path)
    return stat.S_ISREG(info.st_mode) and time.time() - info.st_mtime > _ABANDONED_AFTER_SECONDS
