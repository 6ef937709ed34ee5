"""Executors for one machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from executorlib.executor.base import BaseExecutor
from executorlib.standalone.command import mpiexec_command
from executorlib.standalone.hardware import usable_cpus
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import dumps
from executorlib.task_scheduler.interactive.scheduler import InteractiveScheduler, Limits
from executorlib.task_scheduler.interactive.worker_pool import Site


class SingleNodeExecutor(BaseExecutor):
    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | None = None,
        max_cores: int | None = None,
        resource_dict: dict[str, Any] | None = None,
        hostname_localhost: bool | None = None,
        block_allocation: bool = False,
        init_function: Callable[..., Any] | None = None,
        disable_dependencies: bool = False,
        refresh_rate: float = 0.01,
        plot_dependency_graph: bool = False,
        plot_dependency_graph_filename: str | None = None,
        export_workflow_filename: str | None = None,
        log_obj_size: bool = False,
        wait: bool = True,
        restart_limit: int = 0,
        openmpi_oversubscribe: bool = False,
    ) -> None:
        resources = Resources().updated(resource_dict or {})
        site = Site(single_node_command, init_function=dumps(init_function) if init_function else None)
        super().__init__(
            InteractiveScheduler(
                resources,
                Limits(max_workers, max_cores, usable_cpus()),
                site,
                keep=block_allocation,
                restart_limit=restart_limit,
                resolve_inputs=not disable_dependencies,
                log_obj_size=log_obj_size,
            )
        )


def single_node_command(resources: Resources, program: list[str]) -> list[str] | None:
    """How a worker is started on this machine: with mpiexec where it has several ranks."""
    if resources.cores == 1:
        return None
    return [*mpiexec_command(resources.cores, resources.openmpi_oversubscribe), *program]
