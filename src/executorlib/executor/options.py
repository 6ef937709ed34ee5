"""What all executors with live workers are given, and the scheduler that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from executorlib.standalone.interactive.launcher import Launcher, make_launcher
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import dumps
from executorlib.task_scheduler.base import TaskSchedulerBase
from executorlib.task_scheduler.interactive.pool import ResourcePool
from executorlib.task_scheduler.interactive.scheduler import InteractiveScheduler, Limits
from executorlib.task_scheduler.interactive.site import CommandBuilder, Site
from executorlib.task_scheduler.observer import timeline


class Options(NamedTuple):
    """The parameters that executors have in common. They mean the same in all of them.

    Attributes:
        max_workers: number of workers that run at a time. In block allocation it is the number of processes that are
            kept; otherwise it counts like ``max_cores``, and as a number of tasks if that is given too.
        cache_directory: directory in which results are kept and looked up
        max_cores: number of cores that run at a time; a task takes cores x threads_per_core of them. Without
            either limit these are the cores that the executor has.
        resource_dict: resources of every call, see `executorlib.standalone.resources.ResourceDict`
        hostname_localhost: whether workers find this program at "localhost" instead of the name of the host; by
            default where all workers run on this machine
        block_allocation: keep the workers and feed them call after call; if not, each call gets a fresh process
        init_function: called by each worker first (block allocation only); the dictionary that it returns fills
            parameters that calls leave open
        disable_dependencies: take futures among the arguments for what they are; they are not waited for
        refresh_rate: shortest pause, in seconds, between two looks into the cache directory by executors that work
            through files; no others wait by asking again and again
        plot_dependency_graph: run nothing, and draw the calls and their dependencies at the end
        plot_dependency_graph_filename: file for the drawing; its ending is the format
        export_workflow_filename: run nothing, and write the calls as a Python Workflow Definition (JSON)
        log_obj_size: log the size of what is sent, at level INFO of the logger "executorlib"
        wait: for cluster executors, whether leaving the ``with`` block waits for the jobs
        restart_limit: how often a call is tried again when its worker died
        openmpi_oversubscribe: as in the resource_dict
        export_timeline_filename: file to which the run is written when the executor ends: which worker did what when,
            what was waited for. ``.json`` is a Chrome trace, for https://ui.perfetto.dev; ``.svg`` and ``.html`` are
            pictures.
        progress: show a bar with the calls that are done, run and wait (needs tqdm)
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
    log_obj_size: bool = False
    wait: bool = True
    restart_limit: int = 0
    openmpi_oversubscribe: bool = False
    export_timeline_filename: str | None = None
    progress: bool = False

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: there is an init_function without block allocation, or ``wait`` is False
        """
        if self.init_function is not None and not self.block_allocation:
            raise ValueError("An init_function needs workers that are kept: set block_allocation=True.")
        if not self.wait:
            raise ValueError("wait=False leaves jobs behind: only the cluster executors have such jobs.")
        if self.progress:
            check_progress()

    def resources(self, *, template: bool = False) -> Resources:
        """The resources of every call.

        Args:
            template: whether unknown keys are variables of a submission template

        Raises:
            TypeError, pydantic.ValidationError: the resource_dict is wrong
        """
        base = Resources(openmpi_oversubscribe=self.openmpi_oversubscribe, cache_directory=self.cache_directory)
        return base.updated(self.resource_dict or {}, template=template)

    @property
    def records(self) -> bool:
        """Whether calls are noted and not run."""
        plots = self.plot_dependency_graph or self.plot_dependency_graph_filename is not None
        return (plots or self.export_workflow_filename is not None) and not self.disable_dependencies


def recording_scheduler(options: Options) -> TaskSchedulerBase:
    """The scheduler that notes calls and does not run them."""
    from executorlib.task_scheduler.recording import RecordingScheduler

    options.resources()
    return RecordingScheduler(options.export_workflow_filename, options.plot_dependency_graph_filename)


def interactive_scheduler(
    options: Options,
    command: CommandBuilder,
    available_cores: int,
    launcher: Launcher,
    *,
    localhost: bool,
    make_launcher: Callable[[], Launcher] = make_launcher,
    make_pool: Callable[[int, int | None], ResourcePool] | None = None,
    gpu_limit: int | None = None,
    template: bool = False,
    queued: bool = False,
) -> TaskSchedulerBase:
    """The scheduler of live workers for some options.

    Args:
        options: the options
        command: builds the command line that starts a worker
        available_cores: cores that the workers may use where the options set no limit
        launcher: starts the processes
        localhost: whether all workers run on this machine, unless the options say so
        make_launcher: makes another launcher where this one is lost
        make_pool: as in `InteractiveScheduler`
        gpu_limit: as in `InteractiveScheduler`
        template: whether unknown keys of the resource_dict are variables of a submission template
        queued: as in `Site`
    """
    options.check()
    if options.records:
        launcher.close()
        return recording_scheduler(options)
    here = localhost if options.hostname_localhost is None else options.hostname_localhost
    init = dumps(options.init_function) if options.init_function is not None else None
    return InteractiveScheduler(
        options.resources(template=template),
        Limits(options.max_workers, options.max_cores, available_cores).checked(),
        Site(
            command,
            localhost=here,
            hostname_localhost=options.hostname_localhost,
            keep=options.block_allocation,
            init_function=init,
            make_launcher=make_launcher,
            queued=queued,
        ),
        launcher,
        keep=options.block_allocation,
        restart_limit=options.restart_limit,
        resolve_inputs=not options.disable_dependencies,
        log_obj_size=options.log_obj_size,
        make_pool=make_pool,
        gpu_limit=gpu_limit,
        observer=timeline(options.export_timeline_filename, keep=options.block_allocation),
        progress=options.progress,
    )


def check_progress() -> None:
    """Find out, before anything is started, whether a progress bar can be drawn.

    Raises:
        ImportError: tqdm is not installed
    """
    import importlib.util

    if importlib.util.find_spec("tqdm") is None:
        raise ImportError("progress=True needs tqdm: pip install 'executorlib[progress]'")
