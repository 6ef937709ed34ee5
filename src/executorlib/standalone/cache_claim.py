"""Who runs a task of the cache: a note beside its files, so that the task is not run twice at a time.

The note is a symbolic link: it is made in one step together with what it says, by the first of several processes. It
leads nowhere; its text is the process. The note of a process that has ended counts for nothing, and of a process of
another machine nobody knows here whether it has: such jobs are known to a queueing system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from executorlib.standalone import temporary_file
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.cache_trust import is_trusted, make_private_directory
from executorlib.standalone.processes import is_alive, process_space, start_mark

LEADER_VARIABLE = "EXECUTORLIB_JOB"
"""Environment variable that tells the ranks of a job the process that started them all."""

TAKEN_EXIT_CODE = 75
"""Exit code of a worker whose task is run by another process (EX_TEMPFAIL of sysexits.h)."""

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Claim:
    """The living process of this machine that runs a task.

    Attributes:
        pid: the process, which leads a process group
        ranks: whether it is the launcher of several ranks
        since: when it began, in seconds since 1970
    """

    pid: int
    ranks: bool
    since: float


def take(paths: CachePaths) -> bool:
    """Note this process, or the launcher that started it, as the one that runs the task; False if another does."""
    leader = os.environ.pop(LEADER_VARIABLE, "")  # no business of jobs that the task may start itself
    pid = int(leader) if leader.isdigit() else os.getpid()
    text = f"{process_space()}-{pid}-{start_mark(pid)}-{'ranks' if leader else 'serial'}"
    make_private_directory(os.path.dirname(paths.claim))
    for _ in range(_ATTEMPTS):
        try:
            os.symlink(text, paths.claim)
        except FileExistsError:
            found = _text(paths)
            if found == text:
                return True
            if holder(paths) is not None:
                return False
            if found is not None:
                _remove(paths, found)
        except OSError:  # no symbolic links here
            break
        else:
            return True
    # Without a note two programs may run the same task, to no harm but the time.
    return True


def holder(paths: CachePaths) -> Claim | None:
    """The process of this machine that runs the task; None if none does."""
    text = _text(paths)
    if text is None:
        return None
    space, pid, mark, kind = [*text.split("-"), "", "", ""][:4]
    if space == process_space() and pid.isdigit() and is_alive(int(pid)) and start_mark(int(pid)) == mark:
        try:
            info = os.lstat(paths.claim)
        except OSError:  # it has ended just now
            return None
        # Who ends a task ends the process that is named here: a stranger must not choose it.
        return Claim(int(pid), kind == "ranks", info.st_mtime) if is_trusted(info.st_uid) else None
    return None


def state(paths: CachePaths) -> bool | None:
    """Whether the process that is noted for the task lives, which is supposed of one elsewhere; None without a note."""
    text = _text(paths)
    if text is None:
        return None
    space, pid, mark = [*text.split("-"), "", ""][:3]
    return space != process_space() or (pid.isdigit() and is_alive(int(pid)) and start_mark(int(pid)) == mark)


def forget_dead(paths: CachePaths) -> None:
    """Remove the note of a process of this machine that has ended."""
    text = _text(paths)
    if text is not None and state(paths) is False:
        _remove(paths, text)


def was_taken_by(paths: CachePaths, pid: int) -> bool:
    """Whether the note names this process, living or not."""
    text = _text(paths)
    return text is not None and text.split("-")[:2] == [process_space(), str(pid)]


def release(paths: CachePaths) -> None:
    """Remove the note of this process."""
    try:
        os.unlink(paths.claim)
    except OSError:
        pass


def _text(paths: CachePaths) -> str | None:
    try:
        return os.readlink(paths.claim)
    except OSError:
        return None


def _remove(paths: CachePaths, text: str) -> None:
    """Remove a note that says this, and no other that has taken its place meanwhile."""
    aside = temporary_file.new_path(os.path.dirname(paths.claim))
    try:
        os.rename(paths.claim, aside)
        if os.readlink(aside) != text:
            os.rename(aside, paths.claim)
        else:
            os.unlink(aside)
    except OSError:  # another process was faster
        pass
