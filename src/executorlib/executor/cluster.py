"""What the executors are given whose calls become jobs that work through files, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from executorlib.executor.options import Options, check_progress
from executorlib.task_scheduler.base import TaskSchedulerBase

if TYPE_CHECKING:
    from executorlib.task_scheduler.file.launcher import JobLauncher

_REFUSED = {
    "max_workers": "The number of workers cannot be controlled with the pysqa based backend.",
    "max_cores": "The number of cores cannot be controlled with the pysqa based backend.",
    "hostname_localhost": (
        "The option to connect to hosts based on their hostname is not available with the pysqa based backend."
    ),
    "block_allocation": "The option block_allocation is not available with the pysqa based backend.",
    "init_function": "The option to specify an init_function is not available with the pysqa based backend.",
}


def file_scheduler(
    options: Options, make_launcher: Callable[[], JobLauncher] | None = None, **described: Any
) -> TaskSchedulerBase:
    """The scheduler of jobs that work through files.

    Args:
        options: the options. The jobs have no connection to the program, so ``max_workers``, ``max_cores``,
            ``hostname_localhost``, ``block_allocation`` and ``init_function`` are refused.
        make_launcher: makes what runs the jobs; without it they are processes of this machine
        described: further settings, for `info`

    Raises:
        ValueError: one of these is given
        TypeError, pydantic.ValidationError: the resource_dict is wrong
    """
    for name, reason in _REFUSED.items():
        if getattr(options, name):
            raise ValueError(reason)
    if options.progress:
        check_progress()
    if options.records:
        from executorlib.standalone.resources import Resources
        from executorlib.task_scheduler.file.scheduler import updated
        from executorlib.task_scheduler.recording import RecordingScheduler

        updated(Resources(), _executor_kwargs(options), stacklevel=5)
        return RecordingScheduler(options.export_workflow_filename, options.plot_dependency_graph_filename)
    from executorlib.task_scheduler.file.task_scheduler import FileTaskScheduler
    from executorlib.task_scheduler.observer import timeline

    return FileTaskScheduler(
        executor_kwargs=_executor_kwargs(options),
        execute_function=make_launcher,
        disable_dependencies=options.disable_dependencies,
        wait=options.wait,
        refresh_rate=options.refresh_rate,
        observer=timeline(options.export_timeline_filename, keep=False),
        progress=options.progress,
        **described,
    )


def _executor_kwargs(options: Options) -> dict[str, Any]:
    """The resources of every call."""
    from executorlib.task_scheduler.file.scheduler import DEFAULT_DIRECTORY

    given = dict(options.resource_dict or {})
    directory = options.cache_directory or given.get("cache_directory") or DEFAULT_DIRECTORY
    given.setdefault("openmpi_oversubscribe", options.openmpi_oversubscribe)
    return {**given, "cache_directory": directory}
