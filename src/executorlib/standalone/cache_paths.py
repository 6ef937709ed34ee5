"""The names of the files in a cache directory: the only place that knows them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256

from executorlib.standalone.cache_trust import is_trusted, make_private_directory

INPUT_SUFFIX = "_i.h5"
RUNNING_SUFFIX = "_r.h5"
OUTPUT_SUFFIX = "_o.h5"
_SUFFIXES = (INPUT_SUFFIX, RUNNING_SUFFIX, OUTPUT_SUFFIX)

ABSENT_SECONDS = 300.0
"""A directory that is not there may be one whose file server is: so long nothing is made of it."""

_LONGEST_FILE_NAME = 255
_RESERVED = ".executorlib"
_ALIAS_FOLDER = f"{_RESERVED}-moved"
# No file system of Windows takes these; the others do.
_REFUSED = re.compile(r'[<>:"\\|?*]|[ .]$' if os.name == "nt" else r"(?!)")


@dataclass(frozen=True, slots=True)
class CachePaths:
    """Where the files of one task lie.

    For an ordinary key they are those of executorlib 1.11: the directory, the key and a suffix; a key ``a/b`` lies in
    the folder ``a`` of the directory. A key that is no file name, or that would lead out of the directory (``..``, an
    empty part, control characters, too long), stands for a readable part of itself and a hash of the whole.
    """

    directory: str
    stem: str

    @classmethod
    def of(cls, directory: str | os.PathLike[str], key: str) -> CachePaths:
        """The files of the task with this key."""
        return cls(os.path.abspath(directory), key if _is_ordinary(key) else _stand_in(key))

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> CachePaths:
        """The files beside this input, running or output file.

        Raises:
            ValueError: the path has another ending.
        """
        directory, name = os.path.split(os.path.abspath(path))
        for suffix in _SUFFIXES:
            if name.endswith(suffix):
                return cls(directory, name[: -len(suffix)])
        raise ValueError(f"{os.fspath(path)!r} is no cache file: it ends in none of {', '.join(_SUFFIXES)}")

    @property
    def input(self) -> str:
        """The task that waits or runs."""
        return self.job_directory + INPUT_SUFFIX

    @property
    def running(self) -> str:
        """The task's file while executorlib 1.11 adds the result to it."""
        return self.job_directory + RUNNING_SUFFIX

    @property
    def output(self) -> str:
        """The task that has ended."""
        return self.job_directory + OUTPUT_SUFFIX

    @property
    def job_directory(self) -> str:
        """The working directory of the task's batch job, where no other is asked for; holds the job script."""
        return os.path.join(self.directory, self.stem)

    @property
    def job_output(self) -> str:
        """What the batch job has printed, if the submission template does not say otherwise."""
        return os.path.join(self.job_directory, "time.out")

    @property
    def log(self) -> str:
        """What a job on this machine has printed."""
        return self.job_directory + ".log"

    @property
    def claim(self) -> str:
        """The process that runs the task, see `cache_claim`."""
        return self._note(".run")

    @property
    def queue_note(self) -> str:
        """The number of the task's job, see `cache_queue`."""
        return self._note(".job")

    @property
    def folder(self) -> str:
        """The directory in which the files lie."""
        return os.path.dirname(self.job_directory)

    def _note(self, suffix: str) -> str:
        # By the name of the file alone: a worker knows no more of the key.
        name = os.path.basename(self.job_directory)
        return os.path.join(self.folder, f"{_RESERVED}-{sha256(os.fsencode(name)).hexdigest()[:32]}{suffix}")


def array_directory(directory: str, name: str) -> str:
    """Where the script, the list of inputs and the logs of an array of jobs lie."""
    return os.path.join(directory, f"{_RESERVED}-array-{name}")


def array_mark(folder: str, number: int | str) -> str:
    """Who has begun the task of an element: the file holds the number of the element that runs it."""
    return os.path.join(folder, f"{number}.begun")


def remove_array(folder: str) -> None:
    """Remove what an array of jobs has no more use for: all but the logs of elements that have printed something."""
    try:
        names = os.listdir(folder)
    except OSError:  # it is gone, or its file server is away
        return
    for name in names:
        path = os.path.join(folder, name)
        try:
            if name in ("inputs", "run_queue.sh") or name.endswith((".begun", ".clock")) or not os.path.getsize(path):
                os.unlink(path)
        except OSError:  # another was faster
            pass
    try:
        os.rmdir(folder)
    except OSError:
        pass


def aliased_output(directory: str | os.PathLike[str], alias: str) -> CachePaths | None:
    """The files of the call that `remember_alias` noted under this alias; None if it has no output any more."""
    link = _alias_path(directory, alias)
    try:
        target = os.readlink(link)
        if not is_trusted(os.lstat(link).st_uid):
            return None
    except OSError:
        return None
    key = target.removeprefix(os.path.join(os.pardir, "")).removesuffix(OUTPUT_SUFFIX)
    # Never followed as a path: a link that leads elsewhere only means a key that does not exist.
    paths = CachePaths.of(directory, key.replace(os.sep, "/"))
    return paths if os.path.exists(paths.output) else None


def remember_alias(paths: CachePaths, alias: str) -> None:
    """Let the output of a call be found by its alias (see `cache_key.alias_key`). Does nothing where that fails.

    The alias is a symbolic link, so that it goes with the output: whoever removes the output to have it computed
    again does not find it by its other name. Its name and folder keep it out of the listings of executorlib 1.11.
    """
    link = _alias_path(paths.directory, alias)
    target = os.path.relpath(paths.output, os.path.dirname(link))
    try:
        make_private_directory(os.path.dirname(link))
        if os.path.islink(link):
            if os.readlink(link) == target:
                return
            os.unlink(link)
        os.symlink(target, link)
    except OSError:  # no symbolic links here, or another process was faster
        pass


def _alias_path(directory: str | os.PathLike[str], alias: str) -> str:
    return os.path.join(os.path.abspath(directory), _ALIAS_FOLDER, _stand_in(alias))


def _is_ordinary(key: str) -> bool:
    parts = key.split("/")
    return (
        key.isprintable()
        and not _REFUSED.search(key)
        and all(part not in ("", os.curdir, os.pardir) and not part.startswith(_RESERVED) for part in parts)
        and all(len(os.fsencode(part)) <= _LONGEST_FILE_NAME - len(INPUT_SUFFIX) for part in parts)
    )


def _stand_in(key: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9+-]+", "_", key)[:80].strip("_")
    return f"{readable}~{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
