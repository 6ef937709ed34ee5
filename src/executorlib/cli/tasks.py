"""The tasks of a cache directory, as somebody sees them who did not submit them."""

from __future__ import annotations

import os
import pickletools
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from executorlib.standalone import cache_claim, cache_queue
from executorlib.standalone.cache_entry import unpickle
from executorlib.standalone.cache_file import CacheFileError, DamagedFileError, read, write
from executorlib.standalone.cache_outcome import INPUT_NAMES, remove
from executorlib.standalone.cache_paths import OUTPUT_SUFFIX, CachePaths
from executorlib.standalone.cache_queue import JobNumber
from executorlib.standalone.callables import function_name
from executorlib.standalone.future_item import FutureItem, substituted
from executorlib.standalone.hdf import get_cache_files, load
from executorlib.standalone.select import FutureSelector

DONE, FAILED, RUNNING, PENDING, WAITING, ABORTED, SUBMITTED, UNREADABLE = (
    "done",
    "failed",
    "running",
    "pending",
    "waiting",
    "aborted",
    "submitted",
    "unreadable",
)
STATES = (DONE, FAILED, RUNNING, PENDING, WAITING, ABORTED, SUBMITTED, UNREADABLE)
ENDED = (DONE, FAILED, ABORTED, UNREADABLE)
AGAIN = (FAILED, ABORTED, WAITING)
"""The states in which a task may be run again."""

_SMALL_PICKLE = 1000
_NAMES_ONLY = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "MEMOIZE", "STACK_GLOBAL", "STOP"}


@dataclass(frozen=True, slots=True)
class CachedTask:
    """A task of a cache directory.

    Attributes:
        key: its name, from which its files have theirs
        paths: its files
        path: the one that is there: the output, or the input of a task that has not ended
        state: done, failed; running, waiting (nobody of this machine runs it), pending (in a queue); submitted (to a
            queueing system that was not asked), aborted (its job is gone without a result), unreadable
        function: name of the function
        queue_id: number of its job
        runtime: seconds, of a task that has ended
        error: what it raised, or why it cannot be read
        size: bytes of the file
        modified: when the file was written, in seconds since 1970
        damaged: whether the file is of use to nobody, and not only unreadable here and now
    """

    key: str
    paths: CachePaths
    path: str
    state: str
    function: str
    queue_id: JobNumber | None
    runtime: float | None
    error: str | None
    size: int
    modified: float
    damaged: bool = False

    def described(self) -> dict[str, Any]:
        """The task as JSON knows it."""
        names = ("key", "function", "state", "queue_id", "runtime", "error", "size", "modified")
        return {**{name: getattr(self, name) for name in names}, "file": self.path}


class UnknownTaskError(LookupError):
    """The cache has no task of this key."""


def list_tasks(directory: str, queue: Queue) -> list[CachedTask]:
    """The tasks of a directory and of those below it, by their keys.

    Raises:
        FileNotFoundError: there is no such directory
    """
    if not os.path.isdir(directory):
        raise FileNotFoundError(f"there is no directory {directory}")
    files = get_cache_files(directory)
    outputs = {path for path in files if path.endswith(OUTPUT_SUFFIX)}
    found = []
    states: dict[str, str] | None = None
    for path in files:
        paths = CachePaths.of_file(path)
        if path not in outputs and paths.output in outputs:  # its worker ended between writing one, removing the other
            continue
        task = _task(directory, path, paths)
        if task is None:
            continue
        if task.state == SUBMITTED:
            states = queue.states(directory) if states is None else states
            task = _in_state(task, states.get(path, SUBMITTED))
        found.append(task)
    return found


def select(tasks: Iterable[CachedTask], keys: Iterable[str]) -> list[CachedTask]:
    """The tasks with these keys.

    Raises:
        UnknownTaskError: there is none with one of them
    """
    known = {task.key: task for task in tasks}
    missing = [key for key in keys if key not in known]
    if missing:
        raise UnknownTaskError(f"no task {', '.join(missing)}")
    return [known[key] for key in keys]


class Queue:
    """The queueing system that jobs of a cache directory are in.

    Args:
        backend: its name, "slurm" or "flux"; without, the one whose commands are on PATH
        config_directory: its configuration, as pysqa takes it

    Attributes:
        silence: why the states of its jobs are not known; None where they are
    """

    def __init__(self, backend: str | None = None, config_directory: str | None = None) -> None:
        self.backend = backend or (None if config_directory else _backend_here())
        self.config_directory = config_directory
        self.silence: str | None = None

    def __bool__(self) -> bool:
        return self.backend is not None or self.config_directory is not None

    def states(self, directory: str) -> dict[str, str]:
        """What has become of the jobs, by input file; nothing where there is nobody to ask."""
        if not self:
            return {}
        from executorlib.task_scheduler.file.spawner_pysqa import get_cache_data_queue

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # unreadable files are told of in the list
            try:
                entries = get_cache_data_queue(directory, self.backend, self.config_directory)
            except Exception as error:  # pysqa is missing, or raises what it makes of a command that has failed
                self.silence = f"{self.backend or self.config_directory} does not answer: {error!r}"
                return {}
        known = {"running": RUNNING, "pending": PENDING, "aborted": ABORTED, "finished": DONE}
        return {entry["filename"]: known.get(entry["status"], str(entry["status"])) for entry in entries}


def _backend_here() -> str | None:
    for backend, command in (("slurm", "squeue"), ("flux", "flux")):
        if shutil.which(command):
            return backend
    return None


def _in_state(task: CachedTask, state: str) -> CachedTask:
    from dataclasses import replace

    return replace(task, state=state)


def _task(directory: str, path: str, paths: CachePaths) -> CachedTask | None:
    """The task of a file; None where it has gone meanwhile."""
    key = os.path.relpath(paths.job_directory, os.path.abspath(directory)).replace(os.sep, "/")
    try:
        info = os.stat(path)
        content = read(path, ("function", "queue_id", "runtime", "error"))
    except FileNotFoundError:
        return None
    except OSError as unreadable:  # CacheFileError, or what the file server says
        damaged = isinstance(unreadable, DamagedFileError)
        why = unreadable.strerror
        return CachedTask(key, paths, path, UNREADABLE, "", None, None, why, info.st_size, info.st_mtime, damaged)
    queue_id, runtime = (_value(path, content, name) for name in ("queue_id", "runtime"))
    error = _error(path, content["error"]) if "error" in content else None
    if path.endswith(OUTPUT_SUFFIX):
        state = FAILED if "error" in content else DONE
    elif (noted := cache_queue.number_of(paths)) is not None:
        state, queue_id = SUBMITTED, noted
    elif queue_id is not None:
        state = SUBMITTED
    else:
        state = WAITING if cache_claim.holder(paths) is None else RUNNING
    function = name_of_function(path, content.get("function", b""))
    return CachedTask(key, paths, path, state, function, queue_id, runtime, error, info.st_size, info.st_mtime)


def _value(path: str, content: dict[str, bytes], name: str) -> Any:
    try:
        return unpickle(path, name, content[name]) if name in content else None
    except CacheFileError:
        return None


def _error(path: str, data: bytes) -> str:
    try:
        error = unpickle(path, "error", data)
    except CacheFileError as reason:
        return str(reason.strerror)
    return f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)


def name_of_function(path: str, data: bytes) -> str:
    """The name of a pickled function; empty where it cannot be unpickled here.

    One that is pickled by its name is not imported: its module may be missing here, or take long.
    """
    if 0 < len(data) < _SMALL_PICKLE:
        operations = list(pickletools.genops(data))
        if {code.name for code, _, _ in operations} <= _NAMES_ONLY:
            return ".".join(text for _, text, _ in operations if isinstance(text, str))
    try:
        return function_name(unpickle(path, "function", data))
    except CacheFileError:
        return ""


# Running again


class Again:
    """Runs tasks again, with those whose results they need and which have none.

    Args:
        tasks: all tasks of the directory
        executor: takes the calls
    """

    def __init__(self, tasks: Iterable[CachedTask], executor: Any) -> None:
        self._tasks = {task.paths.output: task for task in tasks}
        self._executor = executor
        self.futures: dict[str, Future[Any]] = {}
        """By key, in the order in which they were submitted."""

    def submit(self, task: CachedTask) -> Future[Any]:
        """Submit a task, and first those that it needs.

        Raises:
            CacheFileError: what is to be called cannot be read here
            UnknownTaskError: what it needs is not in the cache
        """
        if task.key in self.futures:
            return self.futures[task.key]
        call = load(task.path)
        args, kwargs = substituted(call["args"], call["kwargs"], self._input)
        content = read(task.path, INPUT_NAMES)
        content.pop("queue_id", None)
        # First of all the task is one that waits: if this program ends in a moment, it is not forgotten.
        write(task.paths.input, {name: [data] for name, data in content.items()})
        remove(task.paths.output)
        cache_queue.forget(task.paths)
        resources = {**call["resource_dict"], "error_log_file": call.get("error_log_file"), "cache_key": task.key}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # variables of a submission template
            future: Future[Any] = self._executor.submit(call["fn"], *args, resource_dict=resources, **kwargs)
        self.futures[task.key] = future
        return future

    def _input(self, item: FutureItem) -> Any:
        task = self._tasks.get(os.path.abspath(item.file_name))
        if task is None and not item.done():
            raise UnknownTaskError(f"it needs the result of {item.file_name}, which is not there")
        if task is None or task.state not in AGAIN:  # it is there, or comes from elsewhere
            return item
        future = self.submit(task)
        return future if item.selector is None else FutureSelector(future, item.selector)


def executor_of(backend: str | None, config_directory: str | None, directory: str, *, wait: bool) -> Any:
    """The executor that runs the tasks of a directory again.

    Args:
        backend: "slurm" or "flux"; None for this machine
        config_directory: configuration of the queueing system, as pysqa takes it
        directory: the cache directory
        wait: whether its end waits for them

    Raises:
        NotImplementedError: there is no executor for this backend
    """
    if backend is None:
        from executorlib.executor.single import TestClusterExecutor

        return TestClusterExecutor(cache_directory=directory, wait=wait)
    import executorlib

    name = {"slurm": "SlurmClusterExecutor", "flux": "FluxClusterExecutor"}[backend]
    make: Callable[..., Any] | None = getattr(executorlib, name, None)
    if make is None:
        raise NotImplementedError(f"this release has no {name}")
    return make(cache_directory=directory, pysqa_config_directory=config_directory, wait=wait)


# Removing


def files_of(task: CachedTask) -> Iterator[str]:
    """Every file and folder that a task has left."""
    paths = task.paths
    for path in (paths.input, paths.running, paths.output, paths.log, paths.claim, paths.queue_note):
        if os.path.lexists(path):
            yield path
    if os.path.isdir(paths.job_directory) and not os.path.islink(paths.job_directory) and not _holds_tasks(paths):
        yield paths.job_directory


def _holds_tasks(paths: CachePaths) -> bool:
    """Whether a folder that has the name of a task holds others: those whose keys begin with ``name/``."""
    return bool(get_cache_files(paths.job_directory))


def delete(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        remove(path)
