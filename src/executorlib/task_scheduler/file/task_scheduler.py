"""The scheduler of jobs that work through files under the name and with the parameters of executorlib 1.11."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from executorlib.standalone.hardware import usable_cpus
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.file.launcher import JobLauncher
from executorlib.task_scheduler.file.local_jobs import LocalJobs
from executorlib.task_scheduler.file.scheduler import DEFAULT_DIRECTORY, FileScheduler, Settings, updated
from executorlib.task_scheduler.file.task import stored_resources
from executorlib.task_scheduler.observer import Observer

MakeLauncher = Callable[[], JobLauncher]


class FileTaskScheduler(FileScheduler):
    """Runs calls as jobs whose input and output are files in a cache directory.

    Args:
        executor_kwargs: resources of every call, see `executorlib.standalone.resources.ResourceDict`
        execute_function: makes the launcher of the jobs; without it they run on this machine
        terminate_function: kept for its place among the parameters; a launcher ends its jobs itself
        pysqa_config_directory: configuration of the queueing system, for `info`
        backend: name of the queueing system, for `info`
        disable_dependencies: take no futures among the arguments
        pmi_mode: PMI library of the ranks, for `info`
        wait: whether the end waits for the jobs
        refresh_rate: shortest pause between two looks into the cache directory, in seconds
        validator: called with the resource_dict of each call; it raises where that is wrong
        observer: hears of what happens
        progress: whether a bar is shown

    Raises:
        TypeError, pydantic.ValidationError: the executor_kwargs are wrong
    """

    def __init__(
        self,
        executor_kwargs: Mapping[str, Any] | None = None,
        execute_function: MakeLauncher | None = None,
        terminate_function: Callable[..., Any] | None = None,
        pysqa_config_directory: str | None = None,
        backend: str | None = None,
        disable_dependencies: bool = False,
        pmi_mode: str | None = None,
        wait: bool = True,
        refresh_rate: float = 0.01,
        validator: Callable[[dict[str, Any]], Any] | None = None,
        observer: Observer | None = None,
        progress: bool = False,
    ) -> None:
        given = {"cache_directory": DEFAULT_DIRECTORY, **(executor_kwargs or {})}
        # The program may change its working directory; the cache stays where it is.
        given["cache_directory"] = os.path.abspath(given["cache_directory"])
        resources = updated(Resources(), given, stacklevel=3)
        cpus = usable_cpus()
        launcher = LocalJobs(cpus) if execute_function is None else execute_function()
        settings = Settings(
            wait=wait,
            refresh_rate=refresh_rate,
            resolve_inputs=not disable_dependencies,
            max_workers=max(1, cpus // resources.slots) if isinstance(launcher, LocalJobs) else None,
        )
        self._validator = validator
        self._described = {
            "executor_kwargs": {**stored_resources(resources), "cache_directory": resources.cache_directory},
            "execute_function": execute_function or LocalJobs,
            "terminate_function": terminate_function,
            "validate_function": validator,
            "pysqa_config_directory": pysqa_config_directory,
            "backend": backend,
            "disable_dependencies": disable_dependencies,
            "pmi_mode": pmi_mode,
            "refresh_rate": refresh_rate,
            "wait": wait,
        }
        super().__init__(resources, launcher, settings, observer, progress)

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        if self._validator is not None and resource_dict is not None:
            self._validator(dict(resource_dict))
        return super().submit(fn, *args, resource_dict=resource_dict, **kwargs)

    @property
    def info(self) -> dict[str, Any] | None:
        """The settings of the scheduler; None after its end."""
        return None if self._closed else dict(self._described)
