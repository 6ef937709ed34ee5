"""What the executors are given whose calls become jobs that work through files, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executorlib.executor.options import check_progress
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


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """The parameters that these executors have in common, see `executorlib.executor.options.Options`.

    Their jobs have no connection to the program, so ``max_workers``, ``max_cores``, ``hostname_localhost``,
    ``block_allocation`` and ``init_function`` are refused.

    Raises:
        ValueError: one of these is given
    """

    max_workers: int | None = None
    cache_directory: str | None = None
    max_cores: int | None = None
    resource_dict: dict[str, Any] | None = None
    hostname_localhost: bool | None = None
    block_allocation: bool = False
    init_function: Callable[..., Any] | None = None
    disable_dependencies: bool = False
    refresh_rate: float = 0.01
    plot_dependency_graph: bool = False
    plot_dependency_graph_filename: str | None = None
    export_workflow_filename: str | None = None
    wait: bool = True
    openmpi_oversubscribe: bool = False
    export_timeline_filename: str | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise ValueError(reason)
        if self.progress:
            check_progress()

    @property
    def records(self) -> bool:
        """Whether calls are noted and not run."""
        plots = self.plot_dependency_graph or self.plot_dependency_graph_filename is not None
        return (plots or self.export_workflow_filename is not None) and not self.disable_dependencies

    def executor_kwargs(self) -> dict[str, Any]:
        """The resources of every call."""
        from executorlib.task_scheduler.file.scheduler import DEFAULT_DIRECTORY

        given = dict(self.resource_dict or {})
        directory = self.cache_directory or given.get("cache_directory") or DEFAULT_DIRECTORY
        given.setdefault("openmpi_oversubscribe", self.openmpi_oversubscribe)
        return {**given, "cache_directory": directory}


def file_scheduler(
    options: ClusterOptions, make_launcher: Callable[[], JobLauncher] | None = None, **described: Any
) -> TaskSchedulerBase:
    """The scheduler of jobs that work through files.

    Args:
        options: the options
        make_launcher: makes what runs the jobs; without it they are processes of this machine
        described: further settings, for `info`

    Raises:
        TypeError, pydantic.ValidationError: the resource_dict is wrong
    """
    if options.records:
        from executorlib.standalone.resources import Resources
        from executorlib.task_scheduler.file.scheduler import updated
        from executorlib.task_scheduler.recording import RecordingScheduler

        updated(Resources(), options.executor_kwargs(), stacklevel=5)
        return RecordingScheduler(options.export_workflow_filename, options.plot_dependency_graph_filename)
    from executorlib.task_scheduler.file.task_scheduler import FileTaskScheduler
    from executorlib.task_scheduler.observer import timeline

    return FileTaskScheduler(
        executor_kwargs=options.executor_kwargs(),
        execute_function=make_launcher,
        disable_dependencies=options.disable_dependencies,
        wait=options.wait,
        refresh_rate=options.refresh_rate,
        observer=timeline(options.export_timeline_filename, keep=False),
        progress=options.progress,
        **described,
    )
