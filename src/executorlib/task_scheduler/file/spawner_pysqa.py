"""Jobs of tasks in a cache directory, whoever has submitted them: ask for their state, end them."""

from __future__ import annotations

import errno
import os
from typing import Any

from executorlib.standalone import cache_claim, cache_queue, slurm_queue
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_outcome import remove
from executorlib.standalone.cache_paths import INPUT_SUFFIX, CachePaths
from executorlib.standalone.cache_queue import JobNumber
from executorlib.standalone.hdf import get_cache_data, get_cache_files, get_queue_id
from executorlib.standalone.processes import end_group

# How pysqa names the states of jobs that have ended; F and TO are Flux's own words.
_ENDED = (None, "finished", "error", "F", "TO")


def terminate_task_in_cache(
    cache_directory: str,
    cache_key: str,
    pysqa_config_directory: str | None = None,
    backend: str | None = None,
) -> None:
    """End the job of a task that waits or runs, and remove the task from the cache.

    Its future, in whichever program, raises `TaskRemovedError`. A job without a number in a queueing system is a
    process of this machine, or has none.

    Args:
        cache_directory: the directory that the task was submitted with
        cache_key: its key: the name of its file without ``_i.h5``
        pysqa_config_directory: configuration of the queueing system, as pysqa takes it
        backend: name of the queueing system, for example "slurm", instead of a configuration

    Raises:
        FileNotFoundError: no such task waits or runs
        ValueError: there is a job in a queueing system, and neither a configuration nor a backend
    """
    paths = CachePaths.of(cache_directory, cache_key)
    if not os.path.exists(paths.input):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), paths.input)
    _terminate([paths], pysqa_config_directory, backend)


def terminate_tasks_in_cache(
    cache_directory: str, pysqa_config_directory: str | None = None, backend: str | None = None
) -> None:
    """End the jobs of all tasks that wait or run, and remove the tasks from the cache.

    Args:
        cache_directory: a cache directory; nothing happens if it does not exist
        pysqa_config_directory: as in `terminate_task_in_cache`
        backend: as in `terminate_task_in_cache`

    Raises:
        ValueError: as in `terminate_task_in_cache`
    """
    files = [path for path in get_cache_files(cache_directory) if path.endswith(INPUT_SUFFIX)]
    _terminate([CachePaths.of_file(path) for path in files], pysqa_config_directory, backend)


def get_cache_data_queue(
    cache_directory: str, queue_type: str | None = None, config_directory: str | None = None
) -> list[dict[str, Any]]:
    """What the cache holds of each task, and the state of its job.

    Args:
        cache_directory: a cache directory
        queue_type: name of the queueing system, for example "slurm"
        config_directory: its configuration, as pysqa takes it, instead of the name

    Returns:
        The dictionaries of `executorlib.get_cache_data`, each with a ``status``: that of the job in the queueing
        system ("running", "pending", ...) while the task has no output, "finished" when it has, and "aborted" when
        the job is gone without one.

    Raises:
        ValueError: neither a queue_type nor a config_directory is given
    """
    adapter = _adapter(config_directory, queue_type)
    entries = get_cache_data(cache_directory)
    for entry in entries:
        if not _has_ended(entry):
            noted = cache_queue.number_of(CachePaths.of_file(entry["filename"]))
            if noted is not None:
                entry["queue_id"] = noted
    numbers = [entry["queue_id"] for entry in entries if not _has_ended(entry) and entry.get("queue_id") is not None]
    states = _states(adapter, numbers)
    for entry in entries:
        if _has_ended(entry):
            entry["status"] = "finished"
        elif entry.get("queue_id") is not None:
            state = states[entry["queue_id"]]
            entry["status"] = "aborted" if state in _ENDED else state
        else:
            claim = cache_claim.holder(CachePaths.of_file(entry["filename"]))
            entry["status"] = "aborted" if claim is None else "running"
    return entries


def _states(adapter: Any, numbers: list[JobNumber]) -> dict[JobNumber, str | None]:
    """The state of each job in the words of pysqa: one question for all, and one for the elements of arrays."""
    jobs = [number for number in numbers if isinstance(number, int)]
    states: dict[JobNumber, str | None] = dict(zip(jobs, adapter.get_status_of_jobs(jobs), strict=True)) if jobs else {}
    elements = [number for number in numbers if isinstance(number, str)]
    if elements:
        found = slurm_queue.query()
        for number in elements:
            status = found.get(number)
            waits = status is not None and status.state in slurm_queue.WAITING
            states[number] = None if status is None or status.ended else "pending" if waits else "running"
    return states


def _has_ended(entry: dict[str, Any]) -> bool:
    return "output" in entry or "error" in entry


def _terminate(tasks: list[CachePaths], config_directory: str | None, backend: str | None) -> None:
    adapter = None
    for paths in tasks:
        number = cache_queue.number_of(paths)
        if number is None:
            try:
                number = get_queue_id(paths.input)
            except CacheFileError:  # nobody can run this
                pass
        claim = cache_claim.holder(paths)
        if number is not None:
            adapter = adapter or _adapter(config_directory, backend)
            if _states(adapter, [number])[number] in ("running", "pending"):
                adapter.delete_job(process_id=number)
            cache_queue.forget(paths)
            cache_claim.release(paths)
        # Before the end of the process: whoever sees that is to know that it was wanted.
        remove(paths.input)
        if number is None and claim is not None:
            end_group(claim.pid, gently=claim.ranks)
        cache_claim.forget_dead(paths)


def _adapter(config_directory: str | None, queue_type: str | None) -> Any:
    from pysqa import QueueAdapter

    return QueueAdapter(directory=config_directory, queue_type=queue_type)
