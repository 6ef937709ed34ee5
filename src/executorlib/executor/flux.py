"""Executors for clusters with Flux."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from executorlib.executor.base import BaseExecutor

if TYPE_CHECKING:
    from executorlib.executor.options import Options
    from executorlib.standalone.flux import Instance
    from executorlib.standalone.interactive.node_launcher import NodeLauncher
    from executorlib.standalone.resources import Resources
    from executorlib.task_scheduler.base import TaskSchedulerBase
    from executorlib.task_scheduler.interactive.pool import Allotment
    from executorlib.task_scheduler.interactive.slot_pool import SlotPool

# A slot without a call is given back to the instance after so long: others may wait for its cores.
_IDLE_SECONDS = 2.0


class FluxJobExecutor(BaseExecutor):
    """Runs calls as jobs of the Flux instance that the program runs in.

    A call on one core is a process that is forked in a job of Flux, which is kept for the next call. A call with
    several ranks, GPUs, ``num_nodes`` or ``exclusive`` is a job of its own. Flux decides where they run.

    The parameters are those of `executorlib.executor.options.Options`, and

    Args:
        pmi_mode: how the ranks of a call find each other, as Flux's shell option ``pmi`` takes it, for example "pmix"
            for Open MPI 5; by default what the site has set
        flux_executor: a ``flux.job.FluxExecutor`` that submits the jobs, to the same instance; it is not shut down
        flux_executor_nesting: make each call's job an instance of Flux of its own, in which the call runs: a
            `FluxJobExecutor` in the call has the job's cores to itself
        flux_log_files: let each worker's output go to ``flux_N.out`` and ``flux_N.err`` in its working directory, with
            the number of the worker. Every worker is a job of its own then.

    The ``priority`` of a call's `resource_dict` is also the urgency of its job, from 1 to 31, and its ``run_time_max``
    a limit that Flux knows of. Without a limit the executor uses all cores of the instance.

    Raises:
        ModuleNotFoundError: there is no flux-python
        ConnectionError: there is no Flux instance
        ValueError: there are more workers than the instance has cores for, a limit is not positive, there is an
            init_function without block allocation, or ``openmpi_oversubscribe``
        TypeError: the resource_dict is wrong (``pydantic.ValidationError`` where pydantic is installed), or asks for
            GPUs that the instance does not have
    """

    def __init__(
        self,
        max_workers: int | None = None,
        cache_directory: str | None = None,
        max_cores: int | None = None,
        resource_dict: dict[str, Any] | None = None,
        pmi_mode: str | None = None,
        flux_executor: Any = None,
        flux_executor_nesting: bool = False,
        flux_log_files: bool = False,
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
        if options.records:
            super().__init__(recording_scheduler(options))
            return
        jobs = _Jobs(pmi_mode, flux_executor, flux_executor_nesting, flux_log_files, options.block_allocation)
        super().__init__(_job_scheduler(options, jobs))

    def submit(  # type: ignore[override]
        self, fn: Callable[..., Any], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Future[Any]:
        """As `BaseExecutor.submit`; ``openmpi_oversubscribe`` in the resource_dict is refused too."""
        _refuse_oversubscription((resource_dict or {}).get("openmpi_oversubscribe", False))
        return super().submit(fn, *args, resource_dict=resource_dict, **kwargs)


class FluxClusterExecutor(BaseExecutor):
    """Runs each call as a job of the Flux instance that ``FLUX_URI`` names, or of that of the system.

    Input and output are files in the cache directory, by default ``executorlib_cache``, which the compute nodes must
    see too. The jobs outlive the program with ``wait=False``, or if it is killed; a program that makes the same calls
    gets their results. Flux starts a job when those that it depends on have ended. With ``block_allocation=True`` the
    jobs are workers instead, which are connected to this program and get call after call, as in `FluxJobExecutor`.

    The parameters are those of `executorlib.executor.options.Options`, and

    Args:
        pysqa_config_directory: configuration of the queueing system, as pysqa takes it (``queue.yaml`` and templates);
            without it jobs are described to Flux directly, unless the resource_dict has a ``submission_template``
        pmi_mode: as in `FluxJobExecutor`

    Unknown keys of the ``resource_dict`` are variables of the template.

    Raises:
        ModuleNotFoundError: there is no flux-python
        ConnectionError: there is no Flux instance
        ValueError: a parameter is given that jobs without a connection to the program cannot have; or
            ``block_allocation`` without a number of workers, or with a template
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
        export_timeline_filename: str | None = None,
        progress: bool = False,
    ) -> None:
        from executorlib.executor.options import Options, recording_scheduler

        _refuse_oversubscription(openmpi_oversubscribe)
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
            export_timeline_filename=export_timeline_filename,
            progress=progress,
        )
        if block_allocation:
            options.check()
            if options.records:
                super().__init__(recording_scheduler(options))
                return
            if max_workers is None and max_cores is None:
                raise ValueError(
                    "Block allocation requires a fixed set of computational resources. Neither max_cores nor "
                    "max_workers are defined."
                )
            if pysqa_config_directory is not None or (resource_dict or {}).get("submission_template") is not None:
                raise ValueError("With block_allocation the jobs are described to Flux directly: there is no template.")
            super().__init__(_job_scheduler(options, _Jobs(pmi_mode, None, False, False, True)))
            return

        from executorlib.executor.cluster import file_scheduler
        from executorlib.task_scheduler.file.flux_batch import FluxBatch
        from executorlib.task_scheduler.file.flux_jobs import FluxJobs

        super().__init__(
            file_scheduler(
                options,
                lambda: FluxJobs(FluxBatch(pysqa_config_directory, pmi_mode)),
                pysqa_config_directory=pysqa_config_directory,
                backend="flux",
                pmi_mode=pmi_mode,
            )
        )


def _job_scheduler(options: Options, jobs: _Jobs) -> TaskSchedulerBase:
    """The scheduler of live workers in the jobs of an instance."""
    from executorlib.executor.options import interactive_scheduler
    from executorlib.standalone import flux

    resources = options.resources()
    _refuse_oversubscription(resources.openmpi_oversubscribe)
    handle = flux.open_handle()
    instance = flux.inspect_instance(handle)
    _check_size(options, resources, instance)
    launcher = jobs.launcher(handle)
    del handle
    try:
        return interactive_scheduler(
            options,
            jobs.command,
            instance.cores_up,
            launcher,
            localhost=instance.hosts == {socket.gethostname()},
            make_launcher=jobs.launcher,
            make_pool=jobs.pool,
            gpu_limit=instance.gpus,
        )
    except BaseException:
        launcher.close()
        raise


def _refuse_oversubscription(wanted: bool) -> None:
    if wanted:
        raise ValueError("Flux gives each rank cores of its own: openmpi_oversubscribe is not possible with it.")


def _check_size(options: Options, resources: Resources, instance: Instance) -> None:
    """Workers that can never run all at a time are a mistake; Flux would let them wait for ever."""
    if options.max_workers is None:
        return
    cores = options.max_workers * (resources.slots if options.block_allocation else 1)
    if cores > instance.cores:
        raise ValueError(
            f"max_workers={options.max_workers} needs {cores} cores, but the Flux instance has {instance.cores}."
        )


class _Jobs:
    """How workers become jobs of Flux."""

    def __init__(self, pmi_mode: str | None, flux_executor: Any, nesting: bool, log_files: bool, keep: bool) -> None:
        self._pmi_mode = pmi_mode
        self._flux_executor = flux_executor
        self._nesting = nesting
        self._log_files = log_files
        self._keep = keep
        self._launcher: NodeLauncher | None = None
        self._threads: dict[str, int] = {}
        # Numbers of workers that have a log file: the next job of a number adds to it.
        self._logged: set[str] = set()

    def launcher(self, handle: Any = None) -> NodeLauncher:
        from executorlib.standalone.flux import agent_command
        from executorlib.standalone.interactive.flux_launcher import FluxLauncher
        from executorlib.standalone.interactive.node_launcher import NodeLauncher

        self._launcher = NodeLauncher(
            FluxLauncher(handle, self._flux_executor),
            self._threads,
            lambda slot, program: agent_command(self._threads[slot], program),
            idle_seconds=_IDLE_SECONDS,
        )
        return self._launcher

    def pool(self, slots: int, workers: int | None) -> SlotPool:
        from executorlib.task_scheduler.interactive.slot_pool import SlotPool

        return SlotPool(slots, workers, self.needs_job, self._give_up, self._threads)

    def _give_up(self, slot: str) -> None:
        if self._launcher is not None:
            self._launcher.give_up(slot)

    def needs_job(self, resources: Resources) -> bool:
        from executorlib.standalone.flux import needs_job

        return self._nesting or self._log_files or needs_job(resources)

    def command(self, resources: Resources, program: list[str], allotment: Allotment) -> list[str] | None:
        from executorlib.standalone.flux import job_command

        if not self.needs_job(resources):
            return None
        options = []
        if self._log_files:
            number = allotment.places[0].node
            folder = os.path.abspath(resources.cwd or os.getcwd())
            options = ["-ooutput.mode=append"] if number in self._logged else []
            options += [f"--output={folder}/flux_{number}.out", f"--error={folder}/flux_{number}.err"]
            self._logged.add(number)
        return job_command(
            resources,
            program,
            pmi_mode=self._pmi_mode,
            time_limit=not self._keep,
            nesting=self._nesting,
            options=options,
        )
