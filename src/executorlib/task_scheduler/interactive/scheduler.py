"""The scheduler of live workers: the part that runs in the threads of its users."""

from __future__ import annotations

import functools
import logging
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from executorlib.standalone.callables import function_name, takes_parameter
from executorlib.standalone.functions import NO_FUNCTION, FunctionRef, FunctionTable
from executorlib.standalone.hardware import gpus
from executorlib.standalone.interactive.launcher import Launcher
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import PLAIN_TYPES, Payload, dumps, dumps_plain, dumps_with_inputs
from executorlib.task_scheduler.dispatched import DispatchedScheduler
from executorlib.task_scheduler.interactive.dispatcher import Dispatcher
from executorlib.task_scheduler.interactive.map_task import MapResults, MapTask
from executorlib.task_scheduler.interactive.outcome import refusal
from executorlib.task_scheduler.interactive.pool import ResourcePool
from executorlib.task_scheduler.interactive.site import Site
from executorlib.task_scheduler.interactive.starter import Policy
from executorlib.task_scheduler.interactive.task import Task, TaskFuture
from executorlib.task_scheduler.interactive.worker import WINDOW_SECONDS
from executorlib.task_scheduler.mapping import Submit, calls_of, map_calls
from executorlib.task_scheduler.observer import Observer

if TYPE_CHECKING:
    import queue

    from executorlib.task_scheduler.interactive.result_cache import ResultCache

# Tasks of a map that are handed over together.
_MAP_SLAB = 128
_LOG = logging.getLogger("executorlib")
# What is settled when a worker starts.
_WORKER_RESOURCES = (
    "cores",
    "threads_per_core",
    "gpus_per_core",
    "cwd",
    "openmpi_oversubscribe",
    "slurm_cmd_args",
    "num_nodes",
    "exclusive",
    "error_log_file",
)


class Limits(NamedTuple):
    """How much may run at a time.

    Attributes:
        max_workers: workers, as the user gave it
        max_cores: cores, as the user gave it
        available: cores there are, where the user gave neither
    """

    max_workers: int | None
    max_cores: int | None
    available: int

    def checked(self) -> Limits:
        """These limits.

        Raises:
            ValueError: one is not positive
        """
        for name in ("max_workers", "max_cores"):
            value = getattr(self, name)
            if value is not None and operator.index(value) < 1:
                raise ValueError(f"{name} must be greater than 0, not {value}")
        return self

    def slots(self) -> int:
        """Cores that may be used at a time."""
        return self.max_cores or self.max_workers or self.available

    def kept_workers(self, resources: Resources) -> int:
        """The number of workers of a block allocation."""
        if self.max_workers is not None:
            return self.max_workers
        return max(1, self.slots() // resources.slots)


class InteractiveScheduler(DispatchedScheduler):
    """Runs calls in worker processes that are connected to this program.

    Args:
        resources: what a task needs unless the call says otherwise
        limits: how much may run at a time
        site: where and how workers are started
        launcher: starts their processes, from now on only for this scheduler
        keep: whether workers are kept for further calls
        restart_limit: how often a call is tried again after the death of its worker
        resolve_inputs: whether futures among the arguments are waited for
        make_pool: makes the pool of cores from their number and that of workers; by default those of this machine
        gpu_limit: how many GPUs there are, where they are not those of this machine; None where nobody knows
        observer: hears of what happens
        progress: whether a bar is shown
    """

    def __init__(
        self,
        resources: Resources,
        limits: Limits,
        site: Site,
        launcher: Launcher,
        *,
        keep: bool,
        restart_limit: int = 0,
        resolve_inputs: bool = True,
        log_obj_size: bool = False,
        make_pool: Callable[[int, int | None], ResourcePool] | None = None,
        gpu_limit: int | None = None,
        observer: Observer | None = None,
        progress: bool = False,
    ) -> None:
        self._resources = resources
        self._gpu_limit = gpu_limit if make_pool is not None else len(gpus())
        self._limits = limits
        self._keep = keep
        self._resolve_inputs = resolve_inputs
        self._log_obj_size = log_obj_size
        self._restart_limit = restart_limit
        self._hostname_localhost = site.hostname_localhost
        self._has_init_function = site.init_function is not None
        self._functions = FunctionTable()
        self._check(resources)
        slots, workers = self._capacity()
        if make_pool is not None:
            pool = make_pool(slots, workers)
        else:
            pool = ResourcePool(slots, workers, gpus() if resources.gpus or not keep else ())
        policy = Policy(keep, resources, restart_limit, prepares=keep and self._has_init_function)
        self._dispatcher = Dispatcher(policy, pool, site, launcher, observer)
        super().__init__(self._dispatcher, self._dispatcher.shutdown, progress=progress)

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Future[Any]:
        resources = self._resources
        if resource_dict:
            resources = resources.updated(resource_dict)
            self._check(resources)
            if self._keep:
                self._check_kept(resources)
        self._check_open()
        if resources.cache_directory is not None:
            return self._results.submit(fn, args, kwargs, resources)
        future = TaskFuture()
        self._post(fn, args, kwargs, resources, future)
        return future

    @functools.cached_property
    def _results(self) -> ResultCache:
        from executorlib.task_scheduler.interactive.result_cache import ResultCache

        if self._has_init_function:
            warnings.warn(
                "Results are kept by the arguments of the call; what the init_function supplies is not among them: "
                "take another cache_directory when it changes.",
                UserWarning,
                stacklevel=4,
            )
        return ResultCache(self._functions, self._dispatcher, self._post)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | Future[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        self._check_open()
        if chunksize < 1:
            raise ValueError("chunksize must be 1 or more")
        if self._resources.cache_directory is not None:
            return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)
        calls, finite = calls_of(iterables)
        cancel = self._dispatcher.cancel_map
        return map_calls(self._map_submitter(fn, chunksize), calls, finite, timeout, buffersize, cancel)

    def _map_submitter(self, fn: Callable[..., Any], chunksize: int) -> Submit:
        results = MapResults()
        ref = self._functions.known(fn) or self._add(
            fn, failure := MapTask(NO_FUNCTION, None, self._resources, results)
        )
        if ref is None:  # it cannot be pickled: each call says so
            return lambda some: [failure for _ in some]
        if chunksize > 1 and ref.seconds is None:
            # So many calls are worth a message, says the user: the first estimate of their run time.
            ref.seconds = WINDOW_SECONDS / chunksize
        resources, post = self._resources, self._dispatcher.post

        def submit(some: Iterable[tuple[Any, ...]]) -> list[MapTask]:
            tasks: list[MapTask] = []
            posted = 0
            for args in some:
                task = MapTask(ref, None, resources, results)
                tasks.append(task)
                try:
                    task.payload, task.inputs = self._pickle(args, {})
                except (Exception, SystemExit) as error:
                    post(tasks[posted:-1])
                    posted = len(tasks)
                    task.set_exception(refusal(error, f"the arguments of {ref.name}"))
                if len(tasks) - posted >= _MAP_SLAB:
                    post(tasks[posted:])
                    posted = len(tasks)
            post(tasks[posted:])
            return tasks

        return submit

    def cancel(self, future: Future[Any]) -> bool:
        return future.cancel_running() if isinstance(future, TaskFuture) else future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._end(lambda: self._dispatcher.shutdown(cancel=cancel_futures), wait)

    def finish(self) -> None:
        self._end(self._dispatcher.shutdown, False)

    def terminate_workers(self) -> None:
        self._end(lambda: self._dispatcher.shutdown(kill=True), True)

    @property
    def max_workers(self) -> int:
        if self._keep:
            return self._limits.kept_workers(self._resources)
        return self._limits.max_workers or max(1, self._limits.slots() // self._resources.slots)

    @max_workers.setter
    def max_workers(self, max_workers: int) -> None:
        self._limits = self._limits._replace(max_workers=max_workers).checked()
        self._dispatcher.resize(*self._capacity())

    @property
    def info(self) -> dict[str, Any] | None:
        if self._closed:
            return None
        known = self._resources._asdict()
        settings = {name: known[name] for name in ("cores", "cwd", "openmpi_oversubscribe", "cache_directory")}
        return {
            **self._resources.given(),
            **settings,
            "hostname_localhost": self._hostname_localhost,
            "log_obj_size": self._log_obj_size,
            "restart_limit": self._restart_limit,
            "max_cores": self._limits.max_cores,
            "max_workers": self.max_workers,
        }

    @property
    def future_queue(self) -> queue.Queue[dict[str, Any]]:
        import queue

        waiting: queue.Queue[dict[str, Any]] = queue.Queue()
        for future in self._dispatcher.waiting():
            waiting.put({"future": future})
        return waiting

    def __len__(self) -> int:
        return self._dispatcher.queued()

    def _capacity(self) -> tuple[int, int | None]:
        """Cores and workers that may be used at a time."""
        if self._keep:
            workers = self._limits.kept_workers(self._resources)
            return workers * self._resources.slots, workers
        both = self._limits.max_workers is not None and self._limits.max_cores is not None
        return self._limits.slots(), self._limits.max_workers if both else None

    def _check(self, resources: Resources) -> None:
        """Refuse at once what could never start.

        Raises:
            ValueError: more cores than the executor may ever use
            TypeError: GPUs that this machine does not have
        """
        limit = self._limits.max_cores
        if limit is not None and resources.slots > limit:
            raise ValueError(
                f"The specified number of cores is larger than the available number of cores: the task needs "
                f"{resources.slots} (cores={resources.cores} x threads_per_core={resources.threads_per_core or 1}), "
                f"the executor has max_cores={limit}."
            )
        if self._gpu_limit is not None and resources.gpus > self._gpu_limit:
            where = "this machine" if self._gpu_limit == len(gpus()) else "the allocation"
            raise TypeError(
                f"The task needs {resources.gpus} GPUs (cores={resources.cores} x gpus_per_core="
                f"{resources.gpus_per_core}), but {where} offers {self._gpu_limit}."
            )

    def _check_kept(self, resources: Resources) -> None:
        """Refuse what a worker that is kept cannot change any more.

        Raises:
            ValueError: the call asks for other workers than the executor has
        """
        changed = [
            f"{name}={getattr(resources, name)!r} instead of {getattr(self._resources, name)!r}"
            for name in _WORKER_RESOURCES
            if _effective(resources, name) != _effective(self._resources, name)
        ]
        if changed:
            raise ValueError(
                "When block_allocation is enabled, the resource requirements have to be defined on the executor "
                f"level: the call asks for {', '.join(changed)}."
            )

    def _post(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resources: Resources,
        future: TaskFuture,
    ) -> None:
        ref = self._functions.known(fn) or self._add(fn, future)
        if ref is None:
            return
        try:
            payload, inputs = self._pickle(args, kwargs)
        except (Exception, SystemExit) as error:
            future.set_exception(refusal(error, f"the arguments of {ref.name}"))
            return
        task = Task(ref, payload, resources, future, inputs)
        if self._log_obj_size:
            _LOG.info("task %s: %d bytes of arguments", ref.name, payload.nbytes)
        future.bind(self._dispatcher, task)
        self._dispatcher.post(task)

    def _add(self, fn: Callable[..., Any], future: TaskFuture | MapTask) -> FunctionRef | None:
        if takes_parameter(fn, "resource_dict"):
            raise ValueError(
                f"{function_name(fn)} has a parameter called resource_dict, a name that submit needs for "
                "the resources of the call: rename the parameter."
            )
        try:
            return self._functions.add(fn)
        except (Exception, SystemExit) as error:
            future.set_exception(refusal(error, f"the function {function_name(fn)}"))
            return None

    def _pickle(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Payload, list[Future[Any]] | None]:
        if not kwargs:
            for arg in args:
                if type(arg) not in PLAIN_TYPES:
                    break
            else:
                return dumps_plain((args, kwargs)), None
        if not self._resolve_inputs:
            return dumps((args, kwargs)), None
        for arg in args:
            if isinstance(arg, Future):
                break
        else:
            try:
                return dumps((args, kwargs)), None
            except Exception:  # a future somewhere inside cannot be pickled: look for it
                pass
        payload, inputs = dumps_with_inputs((args, kwargs))
        return payload, inputs or None


def _effective(resources: Resources, name: str) -> Any:
    value = getattr(resources, name)
    return value or 1 if name == "threads_per_core" else value
