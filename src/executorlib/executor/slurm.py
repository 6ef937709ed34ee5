"""Executors for clusters with Slurm."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from executorlib.executor.base import BaseExecutor

if TYPE_CHECKING:
    from executorlib.executor.options import Options
    from executorlib.standalone.resources import Resources
    from executorlib.standalone.slurm import Allocation
    from executorlib.task_scheduler.base import TaskSchedulerBase
    from executorlib.task_scheduler.file.batch_script import BatchSystem
    from executorlib.task_scheduler.interactive.pool import Allotment


class SlurmJobExecutor(BaseExecutor):
    """Runs calls in the allocation of Slurm that the program runs in: in a batch job, or under ``salloc``.

    A call on one core is a process that an agent on its node forks. A call with several ranks, GPUs, ``num_nodes``,
    ``exclusive`` or ``slurm_cmd_args`` is a job step of its own, started with ``srun``.

    The parameters are those of `executorlib.executor.options.Options`, and

    Args:
        pmi_mode: how the ranks of a call find each other, as ``srun --mpi`` takes it, for example "pmi2" or "pmix"; by
            default what the site has set

    Without a limit the executor uses all cores of the allocation. Outside of an allocation each call waits for one of
    its own.

    Raises:
        FileNotFoundError: there is no ``srun``
        ValueError: a limit is not positive, or there is an init_function without block allocation
        TypeError: the resource_dict is wrong (``pydantic.ValidationError`` where pydantic is installed), or asks for
            more GPUs than the allocation has
    """

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | None = None,
        max_cores: int | None = None,
        resource_dict: dict[str, Any] | None = None,
        pmi_mode: str | None = None,
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
        from executorlib.executor.options import Options, recording_scheduler

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
        options.check()
        super().__init__(recording_scheduler(options) if options.records else _job_scheduler(options, pmi_mode))


class SlurmClusterExecutor(BaseExecutor):
    """Runs each call as a batch job of Slurm; the calls of a ``map`` as an array of jobs.

    Input and output are files in the cache directory, by default ``executorlib_cache``, which the compute nodes must
    see too. The jobs outlive the program with ``wait=False``, or if it is killed; a program that makes the same calls
    gets their results. With ``block_allocation=True`` the jobs are workers instead, which are connected to this program
    and get call after call.

    The parameters are those of `executorlib.executor.options.Options`, and

    Args:
        pysqa_config_directory: configuration of the queueing system, as pysqa takes it (``queue.yaml`` and templates);
            without it the template of `executorlib.task_scheduler.file.batch_script` is used, or the
            ``submission_template`` of the resource_dict
        pmi_mode: as in `SlurmJobExecutor`
        restart_limit: how often a job that was preempted, lost with its node, or ended at its time limit runs again

    Unknown keys of the ``resource_dict`` are variables of the template, such as ``partition`` and ``memory_max`` (GB).

    Raises:
        ModuleNotFoundError: there is no pysqa
        ValueError: a parameter is given that jobs without a connection to the program cannot have; or
            ``block_allocation`` without a number of workers
        TypeError: the resource_dict is wrong (``pydantic.ValidationError`` where pydantic is installed)
    """

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | None = None,
        max_cores: int | None = None,
        resource_dict: dict[str, Any] | None = None,
        pysqa_config_directory: str | None = None,
        pmi_mode: str | None = None,
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
        restart_limit: int = 0,
        export_timeline_filename: str | None = None,
        progress: bool = False,
    ) -> None:
        from executorlib.executor.options import Options, recording_scheduler
        from executorlib.task_scheduler.file.batch_script import BatchSystem

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
        if block_allocation:
            options.check()
            if options.records:
                super().__init__(recording_scheduler(options))
            else:
                super().__init__(_batch_workers(options, BatchSystem(pysqa_config_directory, pmi_mode)))
            return

        from executorlib.executor.cluster import file_scheduler
        from executorlib.task_scheduler.file.slurm_jobs import SlurmJobs

        super().__init__(
            file_scheduler(
                options,
                lambda: SlurmJobs(BatchSystem(pysqa_config_directory, pmi_mode), restart_limit),
                pysqa_config_directory=pysqa_config_directory,
                backend="slurm",
                pmi_mode=pmi_mode,
            )
        )


def _job_scheduler(options: Options, pmi_mode: str | None) -> TaskSchedulerBase:
    """The scheduler of live workers in the allocation."""
    from executorlib.executor.options import interactive_scheduler
    from executorlib.standalone import slurm
    from executorlib.standalone.hardware import usable_cpus
    from executorlib.standalone.interactive.launcher import Launcher, make_launcher
    from executorlib.standalone.interactive.node_launcher import NodeLauncher
    from executorlib.task_scheduler.interactive.node_pool import NodePool
    from executorlib.task_scheduler.interactive.pool import ResourcePool

    slurm.srun_path()
    allocation = slurm.Allocation.of_environment(os.environ)
    steps = _Steps(allocation, pmi_mode, options.block_allocation)

    def launcher() -> Launcher:
        if allocation is None or not steps.agents:
            return make_launcher()
        slots = {node.name: node.cores for node in allocation.nodes}
        return NodeLauncher(make_launcher(), slots, slurm.agent_command, environment=slurm.step_environment)

    def pool(slots: int, workers: int | None) -> ResourcePool:
        if allocation is None:
            return ResourcePool(slots, workers, None)
        return NodePool(allocation.nodes, slots, workers, steps.needs_step)

    started = launcher()
    try:
        return interactive_scheduler(
            options,
            steps.command,
            allocation.cores if allocation is not None else usable_cpus(),
            started,
            localhost=False,
            make_launcher=launcher,
            make_pool=pool,
            gpu_limit=allocation.gpus if allocation is not None else None,
            queued=allocation is None,
        )
    except BaseException:
        started.close()
        raise


class _Steps:
    """How workers are started in an allocation.

    Attributes:
        agents: whether agents fork the workers that need no step of their own. ``EXECUTORLIB_SLURM_AGENT=0`` says no.
    """

    def __init__(self, allocation: Allocation | None, pmi_mode: str | None, keep: bool) -> None:
        from executorlib.standalone.slurm import has_overlap, is_in_step

        self._pmi_mode = pmi_mode
        self._keep = keep
        wanted = os.environ.get("EXECUTORLIB_SLURM_AGENT", "1") != "0"
        self.agents = allocation is not None and wanted and has_overlap()
        # The step that the program runs in holds cores of which those of the calls are a part.
        self._overlap = allocation is not None and is_in_step(os.environ)
        self._no_gpus = allocation is not None and bool(allocation.gpus)

    def needs_step(self, resources: Resources) -> bool:
        from executorlib.standalone.slurm import needs_step

        return not self.agents or needs_step(resources)

    def command(self, resources: Resources, program: list[str], allotment: Allotment) -> list[str] | None:
        from executorlib.standalone.slurm import step_command

        if not self.needs_step(resources):
            return None
        return step_command(
            resources,
            program,
            places=[(place.node, place.ranks) for place in allotment.places],
            pmi_mode=self._pmi_mode,
            time_limit=not self._keep,
            overlap=allotment.overlap or self._overlap,
            no_gpus=self._no_gpus,
        )


def _batch_workers(options: Options, system: BatchSystem) -> TaskSchedulerBase:
    """The scheduler of workers that are batch jobs.

    Raises:
        ValueError: nothing says how many
    """
    from executorlib.executor.options import interactive_scheduler
    from executorlib.standalone.interactive.launcher import Launcher
    from executorlib.task_scheduler.file.scheduler import DEFAULT_DIRECTORY
    from executorlib.task_scheduler.interactive.batch_launcher import BatchLauncher
    from executorlib.task_scheduler.interactive.pool import ResourcePool

    if options.max_workers is None and options.max_cores is None:
        raise ValueError(
            "Block allocation requires a fixed set of computational resources. Neither max_cores nor max_workers are "
            "defined."
        )
    resources = options.resources(template=True)
    folder = os.path.abspath(options.cache_directory or DEFAULT_DIRECTORY)

    def launcher() -> Launcher:
        return BatchLauncher(system, resources, folder)

    started = launcher()
    try:
        return interactive_scheduler(
            options,
            lambda resources, program, allotment: program,
            1,
            started,
            localhost=False,
            make_launcher=launcher,
            make_pool=lambda slots, workers: ResourcePool(slots, workers, None),
            template=True,
        )
    except BaseException:
        started.close()
        raise
