"""Executors for one machine."""

from __future__ import annotations

from executorlib.executor.base import BaseExecutor
from executorlib.standalone.command import mpiexec_command
from executorlib.standalone.hardware import usable_cpus
from executorlib.standalone.interactive.launcher import make_launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from executorlib.standalone.resources import Resources
    from executorlib.task_scheduler.interactive.pool import Allotment


class SingleNodeExecutor(BaseExecutor):
    """Runs calls in processes of this machine.

    The parameters are those of `executorlib.executor.options.Options`. Without a limit the executor uses the CPUs that
    this process may use, by its affinity mask and its control group.

    Raises:
        ValueError: a limit is not positive, or there is an init_function without block allocation
        TypeError: the resource_dict is wrong (``pydantic.ValidationError`` where pydantic is installed), or asks for
            GPUs that this machine does not have
    """

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
        export_timeline_filename: str | None = None,
        progress: bool = False,
    ) -> None:
        launcher = make_launcher()
        try:
            # Imported now: the launcher's process starts meanwhile.
            from executorlib.executor.options import Options, interactive_scheduler

            options = Options(
                max_workers=max_workers,
                cache_directory=cache_directory,
                max_cores=max_cores,
                resource_dict=resource_dict,
                hostname_localhost=hostname_localhost,
                block_allocation=block_allocation,
                init_function=init_function,
                disable_dependencies=disable_dependencies,
                refresh_rate=refresh_rate,
                plot_dependency_graph=plot_dependency_graph,
                plot_dependency_graph_filename=plot_dependency_graph_filename,
                export_workflow_filename=export_workflow_filename,
                log_obj_size=log_obj_size,
                wait=wait,
                restart_limit=restart_limit,
                openmpi_oversubscribe=openmpi_oversubscribe,
                export_timeline_filename=export_timeline_filename,
                progress=progress,
            )
            scheduler = interactive_scheduler(options, single_node_command, usable_cpus(), launcher, localhost=True)
        except BaseException:
            launcher.close()
            raise
        super().__init__(scheduler)


def single_node_command(resources: Resources, program: list[str], _: Allotment) -> list[str] | None:
    """How a worker is started on this machine: with mpiexec where it has several ranks, else forked."""
    if resources.cores == 1:
        return None
    return [*mpiexec_command(resources.cores, resources.openmpi_oversubscribe), *program]


class TestClusterExecutor(BaseExecutor):
    """Runs calls as jobs that work through files, as the cluster executors do, but on this machine.

    For trying programs that are written for `SlurmClusterExecutor` or `FluxClusterExecutor`. Each call is a process
    with its input and its output in the cache directory, by default ``executorlib_cache``. The processes outlive the
    program with ``wait=False``, or if it is killed; a program that makes the same calls gets their results.

    The parameters are those of `executorlib.executor.options.Options`, less those that
    `executorlib.executor.cluster.file_scheduler` refuses.

    Raises:
        ValueError: a parameter is given that jobs without a connection to the program cannot have
        TypeError: the resource_dict is wrong (``pydantic.ValidationError`` where pydantic is installed)
    """

    __test__ = False  # the name is not that of a test

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
        openmpi_oversubscribe: bool = False,
        export_timeline_filename: str | None = None,
        progress: bool = False,
    ) -> None:
        from executorlib.executor.cluster import file_scheduler
        from executorlib.executor.options import Options

        options = Options(
            max_workers=max_workers,
            cache_directory=cache_directory,
            max_cores=max_cores,
            resource_dict=resource_dict,
            hostname_localhost=hostname_localhost,
            block_allocation=block_allocation,
            init_function=init_function,
            disable_dependencies=disable_dependencies,
            refresh_rate=refresh_rate,
            plot_dependency_graph=plot_dependency_graph,
            plot_dependency_graph_filename=plot_dependency_graph_filename,
            export_workflow_filename=export_workflow_filename,
            log_obj_size=log_obj_size,
            wait=wait,
            openmpi_oversubscribe=openmpi_oversubscribe,
            export_timeline_filename=export_timeline_filename,
            progress=progress,
        )
        super().__init__(file_scheduler(options))
