"""The scheduler of jobs that work through files: the part that runs in the threads of its users."""

from __future__ import annotations

import pickle
import queue
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

from executorlib.standalone.callables import function_name, takes_parameter
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import dumps_with_inputs, loads_with_inputs
from executorlib.task_scheduler.dispatched import DispatchedScheduler
from executorlib.task_scheduler.file.dispatcher import FileDispatcher
from executorlib.task_scheduler.file.launcher import JobLauncher
from executorlib.task_scheduler.file.task import Call, FileFuture, FileTask, OpenCall, reference
from executorlib.task_scheduler.mapping import calls_of, map_calls
from executorlib.task_scheduler.observer import Observer

DEFAULT_DIRECTORY = "executorlib_cache"


@dataclass(frozen=True, slots=True)
class Settings:
    """How an executor that works through files deals with its tasks.

    Attributes:
        wait: whether its end waits for the jobs; if not, they go on without the program
        refresh_rate: shortest pause between two looks into the cache directory, in seconds
        resolve_inputs: whether futures among the arguments are waited for
        max_workers: how many jobs run at a time, where that is known
    """

    wait: bool = True
    refresh_rate: float = 0.01
    resolve_inputs: bool = True
    max_workers: int | None = None


class FileScheduler(DispatchedScheduler):
    """Runs calls as jobs whose input and output are files in a cache directory.

    Args:
        resources: what a task needs unless the call says otherwise; they name the cache directory
        launcher: runs the jobs, from now on only for this scheduler
        settings: how tasks are dealt with
        observer: hears of what happens
        progress: whether a bar is shown
    """

    def __init__(
        self,
        resources: Resources,
        launcher: JobLauncher,
        settings: Settings,
        observer: Observer | None = None,
        progress: bool = False,
    ) -> None:
        self._resources = resources
        self._settings = settings
        self._dispatcher = FileDispatcher(launcher, settings.refresh_rate, observer)
        forgotten = self._dispatcher.shutdown if settings.wait else self._dispatcher.leave
        super().__init__(self._dispatcher, forgotten, progress=progress)

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Future[Any]:
        resources = self._resources
        if resource_dict:
            resources = updated(resources, resource_dict, stacklevel=4)
        self._check_open()
        future, task = self._prepared(fn, list(args), kwargs, resources)
        if task is not None:
            self._dispatcher.post(task)
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | Future[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        self._check_open()
        calls, finite = calls_of(iterables)

        def submit(some: Iterable[tuple[Any, ...]]) -> list[Future[Any]]:
            made = [self._prepared(fn, list(args), {}, self._resources) for args in some]
            self._check_open()
            self._dispatcher.post([task for _, task in made if task is not None])
            return [future for future, _ in made]

        return map_calls(submit, calls, finite, timeout, buffersize)

    def _prepared(
        self, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], resources: Resources
    ) -> tuple[FileFuture, FileTask | None]:
        """A call and its future; None for a call that has failed already."""
        if takes_parameter(fn, "resource_dict"):
            raise ValueError(
                f"{function_name(fn)} has a parameter called resource_dict, a name that submit needs for "
                "the resources of the call: rename the parameter. (The parameter resource_dict is used internally in "
                "executorlib, so it cannot be used as a parameter in the submitted functions.)"
            )
        future = FileFuture()
        try:
            task = self._task(fn, args, kwargs, resources, future)
        except Exception as error:
            future.set_exception(error)
        except SystemExit as error:
            reason = pickle.PicklingError(f"pickling a call of {function_name(fn)} called sys.exit({error.code!r})")
            reason.__cause__ = error
            future.set_exception(reason)
        else:
            task.name = function_name(fn)
            future.bind(self._dispatcher, cast(Any, task))
            return future, task
        return future, None

    def _task(
        self, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], resources: Resources, future: FileFuture
    ) -> FileTask:
        direct = [value for value in (*args, *kwargs.values()) if isinstance(value, Future)]
        if not self._settings.resolve_inputs:
            if direct:
                raise ValueError("Future objects are not supported as input if disable_dependencies=True.")
            return FileTask(Call.of(fn, args, kwargs, resources), resources, future, [])
        try:
            # Without an inner future this is all; one inside of another argument cannot be pickled.
            known = Call.of(fn, [self._known(arg) for arg in args], self._known_values(kwargs), resources)
            return FileTask(known, resources, future, direct)
        except Exception:
            payload, inputs = dumps_with_inputs((args, kwargs))
            if not inputs:
                raise
        items = [reference(each, self._dispatcher) for each in inputs]
        if None not in items:
            args, kwargs = loads_with_inputs(payload, items)
            return FileTask(Call.of(fn, args, kwargs, resources), resources, future, inputs)
        import cloudpickle

        return FileTask(OpenCall(cloudpickle.dumps(fn, protocol=5), payload), resources, future, inputs)

    def _known(self, value: Any) -> Any:
        return (reference(value, self._dispatcher) or value) if isinstance(value, Future) else value

    def _known_values(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: self._known(value) for name, value in kwargs.items()}

    def cancel(self, future: Future[Any]) -> bool:
        return future.cancel_running() if isinstance(future, FileFuture) else future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: whether to wait for the jobs. Without, they go on; what has not begun is begun without the program,
                and the futures are cancelled. An executor that was made with ``wait=False`` never waits.
            cancel_futures: cancel what has not begun; if nobody waits, end the running jobs too
        """
        dispatcher = self._dispatcher
        if cancel_futures:
            self._end(lambda: dispatcher.cancel(running=not wait), wait)
        elif wait and self._settings.wait:
            self._end(dispatcher.shutdown, True)
        else:
            self._end(dispatcher.leave, True)

    def finish(self) -> None:
        self._end(self._dispatcher.shutdown if self._settings.wait else self._dispatcher.leave, False)

    def terminate_workers(self) -> None:
        self._end(self._dispatcher.kill if self._settings.wait else self._dispatcher.leave, True)

    @property
    def max_workers(self) -> int | None:
        return self._settings.max_workers

    @max_workers.setter
    def max_workers(self, max_workers: int) -> None:
        raise NotImplementedError(
            "The max_workers setter is not implemented: the queueing system decides how many jobs run at a time."
        )

    @property
    def info(self) -> dict[str, Any] | None:
        return None if self._closed else {"refresh_rate": self._settings.refresh_rate, "wait": self._settings.wait}

    @property
    def future_queue(self) -> queue.Queue[dict[str, Any]]:
        waiting: queue.Queue[dict[str, Any]] = queue.Queue()
        for future in self._dispatcher.waiting():
            waiting.put({"future": future})
        return waiting

    def __len__(self) -> int:
        return len(self._dispatcher.waiting())


def updated(resources: Resources, resource_dict: Mapping[str, Any], *, stacklevel: int) -> Resources:
    """Resources with what a call asks for; keys that are not known are variables of a submission template.

    Raises:
        TypeError, pydantic.ValidationError: a value has the wrong type
    """
    new = resources.updated(resource_dict, template=True)
    known = dict(new.template_variables)
    unknown = [key for key in resource_dict if key in known]
    if unknown:
        warnings.warn(
            f"The following keys are not recognized and cannot be validated: {unknown}",
            UserWarning,
            stacklevel=stacklevel,
        )
    return new
