"""The number that a queueing system has given to the job of a task: a note beside the task's files.

The note is a symbolic link that leads nowhere: it is made in one step together with what it says, and costs the same
for an input of a gigabyte. It goes with the end of the task. executorlib 1.11 writes the number into the input file
instead.
"""

from __future__ import annotations

import os

from executorlib.standalone import temporary_file
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.cache_trust import is_trusted

JobNumber = int | str
"""The number of a job; that of an element of an array is no integer: ``"12_3"``."""


def note(paths: CachePaths, number: JobNumber) -> None:
    """Note the number of a task's job, in the place of one that was there.

    Raises:
        OSError: it cannot be noted here
    """
    aside = temporary_file.new_path(os.path.dirname(paths.queue_note))
    os.symlink(str(number), aside)
    os.rename(aside, paths.queue_note)


def number_of(paths: CachePaths) -> JobNumber | None:
    """The number of the job of a task that waits or runs; None if there is no note."""
    try:
        if is_trusted(os.lstat(paths.queue_note).st_uid):
            return as_number(os.readlink(paths.queue_note))
    except OSError:
        pass
    return None


def forget(paths: CachePaths) -> None:
    """The task has ended."""
    try:
        os.unlink(paths.queue_note)
    except OSError:
        pass


def as_number(text: str) -> JobNumber:
    """The number of a job as its future has it."""
    return int(text) if text.isdigit() else text
