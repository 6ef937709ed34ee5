"""The HDF5 store: what is kept of a task in its cache directory.

File names and contents are those of executorlib 1.11, so that each reads what the other has written:

    <key>_i.h5   a task that waits or runs: function, input_args, input_kwargs, resource_dict, error_log_file, queue_id
    <key>_r.h5   the same file, while executorlib 1.11 adds the result to it
    <key>_o.h5   a task that has ended: the same, and runtime, and output or error

Each name stands for a dataset of unsigned bytes that holds a pickle. A file is only ever replaced as a whole, so a
program that is killed leaves no half of one. Arrays stay inside the pickle: executorlib 1.11 would not look for them
elsewhere. Unpickling runs code, so a cache directory is to be trusted like a directory of programs.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from executorlib.standalone.cache_entry import CacheEntry, unpickle
from executorlib.standalone.cache_file import CacheFileError, Chunks, read, read_all, write
from executorlib.standalone.cache_paths import INPUT_SUFFIX, OUTPUT_SUFFIX

__all__ = [
    "CacheFileError",
    "MissingFunctionError",
    "Pickled",
    "dump",
    "get_cache_data",
    "get_cache_files",
    "get_future_from_cache",
    "get_output",
    "get_queue_id",
    "get_runtime",
    "load",
]

_DATASETS = {
    "fn": "function",
    "args": "input_args",
    "kwargs": "input_kwargs",
    "output": "output",
    "error": "error",
    "resource_dict": "resource_dict",
    "runtime": "runtime",
    "queue_id": "queue_id",
    "error_log_file": "error_log_file",
}
_PROTOCOL = 5
# Flushing a file takes 0.4 to 1.3 ms on a local disk here, against 0.1 ms for all the rest of writing it, and 10 ms on
# a spinning one. What took less time than that to compute is cheaper to compute again after a power failure.
_FLUSHED_FROM_SECONDS = 0.01


class MissingFunctionError(CacheFileError, TypeError):
    """The file is whole but holds no function that could be called."""


class Pickled(bytes):
    """A value for `dump` that is pickled already and is stored as it is."""

    __slots__ = ()


def dump(file_name: str | None, data_dict: Mapping[str, Any], *, flush: bool | None = None) -> None:
    """Add values to a cache file, which is made if it is missing, and its directory too.

    Args:
        file_name: path of the file; None does nothing.
        data_dict: any of ``fn``, ``args``, ``kwargs``, ``output``, ``error``, ``resource_dict``, ``runtime``
            (seconds), ``queue_id``, ``error_log_file``; other keys are left out. A value that the file has already
            is kept as it is. Values of the type `Pickled` are stored unchanged.
        flush: wait until the disk has the file. By default all are waited for but a result whose ``runtime`` is
            below 10 ms: a power failure may lose that one, the death of a process none.

    Raises:
        Exception: what the pickling of a value raises; the file is then as it was before.
        OSError: the file cannot be written; it is then as it was before.
    """
    if file_name is None:
        return
    datasets = {_DATASETS[key]: _pickle(value) for key, value in data_dict.items() if key in _DATASETS}
    if os.path.exists(file_name):
        datasets |= _present(file_name)
    if flush is None:
        runtime = data_dict.get("runtime")
        flush = not isinstance(runtime, int | float) or runtime >= _FLUSHED_FROM_SECONDS
    write(file_name, datasets, flush=flush)


def load(file_name: str) -> dict[str, Any]:
    """The call that a cache file holds.

    Returns:
        ``fn``, ``args`` (a tuple or list), ``kwargs``, ``resource_dict``, each empty where the file has none, and
        ``error_log_file`` where the file names one.

    Raises:
        FileNotFoundError: there is no such file.
        CacheFileError: the file is not a cache file, or a value cannot be unpickled.
        MissingFunctionError: it has no function.
    """
    content = _values(file_name, "fn", "args", "kwargs", "resource_dict", "error_log_file")
    if "fn" not in content:
        raise MissingFunctionError.because(file_name, "Function not found in HDF5 file.")
    return {"fn": content.pop("fn"), "args": (), "kwargs": {}, "resource_dict": {}} | content


def get_output(file_name: str) -> tuple[bool, bool, Any]:
    """How a task ended, by its cache file.

    Returns:
        ``(True, True, result)`` for a task that returned, ``(True, False, exception)`` for one that raised,
        ``(False, False, None)`` where the file has neither.

    Raises:
        FileNotFoundError: there is no such file.
        CacheFileError: the file is not a cache file, or its result cannot be unpickled.
    """
    try:
        raw = read(file_name, ("output", "error"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Output file {file_name} not found.") from error
    if "output" in raw:
        return True, True, unpickle(file_name, "output", raw["output"])
    if "error" in raw:
        return True, False, unpickle(file_name, "error", raw["error"])
    return False, False, None


def get_runtime(file_name: str) -> float:
    """The seconds that the function took; 0.0 where the file does not say.

    Raises:
        FileNotFoundError: there is no such file.
        CacheFileError: the file is not a cache file.
    """
    return float(_values(file_name, "runtime").get("runtime", 0.0))


def get_queue_id(file_name: str | None) -> int | None:
    """The number that the queueing system gave the task's job; None where there is no file or it has none.

    Raises:
        CacheFileError: the file is not a cache file.
    """
    if file_name is None:
        return None
    try:
        queue_id: int | None = _values(file_name, "queue_id").get("queue_id")
    except FileNotFoundError:
        return None
    return queue_id


def get_cache_files(cache_directory: str) -> list[str]:
    """The absolute paths of the input and output files in a directory and below it; none if it does not exist."""
    return sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(os.path.abspath(cache_directory))
        for name in names
        if name.endswith((INPUT_SUFFIX, OUTPUT_SUFFIX))
    )


def get_cache_data(cache_directory: str) -> list[dict[str, Any]]:
    """What the cache holds of each task.

    Returns:
        One dict per task: ``function``, ``input_args``, ``input_kwargs``, ``output``, ``error``, ``resource_dict``,
        ``runtime`` (seconds), ``queue_id``, ``error_log_file``, as far as its file has them, and ``filename``. A
        value is unpickled when it is first looked at, see `CacheEntry`; a list of thousands is cheap.

    A file that cannot be read is left out with a RuntimeWarning that names it.
    """
    files = get_cache_files(cache_directory)
    listed = set(files)
    entries: list[dict[str, Any]] = []
    for path in files:
        try:
            entries.append(CacheEntry(path))
        except FileNotFoundError:
            # The task has ended since the directory was listed, or somebody has removed the file.
            ended = path.removesuffix(INPUT_SUFFIX) + OUTPUT_SUFFIX
            if ended not in listed and os.path.exists(ended):
                entries.append(CacheEntry(ended))
        except CacheFileError as error:
            warnings.warn(f"left out: {error}", RuntimeWarning, stacklevel=2)
    return entries


def get_future_from_cache(cache_directory: str, cache_key: str) -> Future[Any]:
    """A future for a task in the cache, whoever submitted it.

    Args:
        cache_directory: the directory that the task was submitted with.
        cache_key: its key: the name of its file without ``_o.h5``.

    Returns:
        A future that has ended if the task has, and ends when the task does, with its result or its exception; with
        CacheFileError if the output cannot be read, and with a RuntimeError if the task is removed from the cache, or
        its process has ended on this machine without a result. To cancel it only ends the waiting: the task is
        another program's.

    Raises:
        FileNotFoundError: the cache has neither an input nor an output file of this key.
    """
    from executorlib.standalone.cache_watch import future_of

    return future_of(cache_directory, cache_key)


def _values(path: str, *keys: str) -> dict[str, Any]:
    raw = read(path, [_DATASETS[key] for key in keys])
    return {key: unpickle(path, _DATASETS[key], raw[_DATASETS[key]]) for key in keys if _DATASETS[key] in raw}


def _present(path: str) -> dict[str, Chunks]:
    """What a file holds that is to be added to; nothing where it cannot be read, so that it is made anew."""
    try:
        found = read_all(path)
    except (FileNotFoundError, CacheFileError):
        return {}
    return {name: [content] for name, content in found.items() if content is not None}


class _Pieces:
    """A file for a pickler that keeps what is written as it comes: an array is not copied into the pickle."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[bytes | bytearray | memoryview] = []

    def write(self, piece: bytes | bytearray | pickle.PickleBuffer) -> None:
        self.pieces.append(piece.raw() if isinstance(piece, pickle.PickleBuffer) else piece)


def _pickle(value: Any) -> Chunks:
    if isinstance(value, Pickled):
        return [value]
    # These come out of the standard library's pickler byte for byte as out of cloudpickle, ten times as fast.
    if type(value) in (int, float, str, bool, type(None)):
        return [pickle.dumps(value, _PROTOCOL)]
    import cloudpickle

    file = _Pieces()
    cloudpickle.Pickler(file, protocol=_PROTOCOL).dump(value)
    return file.pieces
