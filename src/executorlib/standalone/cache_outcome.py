"""How a task of the cache ended: its result, or its exception with the traceback of the worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from executorlib.standalone.cache_entry import unpickle
from executorlib.standalone.cache_file import CacheFileError, read, read_all, write
from executorlib.standalone.cache_paths import CachePaths

INPUT_NAMES = ("function", "input_args", "input_kwargs", "resource_dict", "error_log_file", "queue_id")


class UnknownOutcomeError(CacheFileError):
    """The file is whole, but its result or exception cannot be unpickled here."""


class Outcome(NamedTuple):
    succeeded: bool
    value: Any
    """The result, or the exception."""


def read_outcome(path: str) -> Outcome:
    """How a task ended, by its output file.

    Raises:
        FileNotFoundError: there is no such file
        CacheFileError: the file is no cache file, or holds neither a result nor an exception
        UnknownOutcomeError: it does, but that cannot be unpickled
    """
    found = read(path, ("output", "error", "traceback"))
    if not found.keys() & {"output", "error"}:
        raise CacheFileError.because(path, "neither output nor error")
    try:
        if "output" in found:
            return Outcome(True, unpickle(path, "output", found["output"]))
        error = unpickle(path, "error", found["error"])
    except CacheFileError as reason:
        raise UnknownOutcomeError(reason.errno, reason.strerror, path) from reason.__cause__
    if not isinstance(error, BaseException):
        error = RuntimeError(error)
    if "traceback" in found:
        from executorlib.standalone.errors import RemoteTraceback

        error.__cause__ = RemoteTraceback(unpickle(path, "traceback", found["traceback"]))
    return Outcome(False, error)


def is_ended(path: str) -> bool:
    """Whether there is a readable output file, whatever it holds can be unpickled to."""
    try:
        return bool(read(path, ("output", "error")))
    except (FileNotFoundError, CacheFileError):
        return False


def stored_cores(path: str) -> int | None:
    """The number of cores that a task in the cache was submitted with; None where its file does not say."""
    try:
        return cores_in(path, read(path, ("resource_dict",)))
    except OSError:
        return None


def cores_in(path: str, content: Mapping[str, bytes]) -> int | None:
    """The number of cores that what was read of a file says; None where it does not.

    Raises:
        CacheFileError: it cannot be unpickled
    """
    if "resource_dict" not in content:
        return None
    resources = unpickle(path, "resource_dict", content["resource_dict"])
    cores = resources.get("cores") if isinstance(resources, dict) else None
    return cores if isinstance(cores, int) else None


def named_by_call(directory: str, key: str, cores: int) -> CachePaths:
    """The files of a call that has no name of its own.

    executorlib 1.11 has one name for a call, be it on one core or on several, whose results are a list. Each number of
    cores has files of its own here; those of 1.11 are taken where their number is the right one.

    Args:
        directory: the cache directory
        key: the name of the call, see `executorlib.standalone.cache_key.call_key`
        cores: on how many it runs
    """
    paths = CachePaths.of(directory, key)
    stored = stored_cores(paths.output)
    if stored is None and cores > 1:
        stored = stored_cores(paths.input)
    return paths if (stored or 1) == cores else CachePaths.of(directory, with_cores(key, cores))


def with_cores(key: str, cores: int) -> str:
    """A name of a call that says on how many cores it runs."""
    return f"{key}-{cores}cores"


def write_outcome(
    paths: CachePaths, call: Mapping[str, bytes], outcome: Mapping[str, bytes], *, flush: bool = True
) -> None:
    """Put a task's output in the place of its input.

    Args:
        paths: the files of the task
        call: what the input file holds
        outcome: ``output``, or ``error`` and ``traceback``, and ``runtime``, pickled
        flush: wait until the disk has it

    Raises:
        OSError: the output cannot be written; the input is still there
    """
    datasets = {**{name: call[name] for name in INPUT_NAMES if name in call}, **outcome}
    write(paths.output, {name: [content] for name, content in datasets.items()}, flush=flush)
    remove(paths.input)


def read_call(paths: CachePaths) -> dict[str, bytes]:
    """What the input file of a task holds.

    Raises:
        FileNotFoundError: there is none
        CacheFileError: it cannot be read
    """
    found = read_all(paths.input)
    return {name: content for name, content in found.items() if content is not None}


def remove(path: str) -> None:
    """Remove a file if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
