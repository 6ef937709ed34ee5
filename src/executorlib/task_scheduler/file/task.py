"""A call on its way through the cache, and its future."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, cast

from executorlib.standalone.cache_key import alias_key, call_key
from executorlib.standalone.cache_outcome import Outcome, named_by_call, with_cores
from executorlib.standalone.cache_paths import CachePaths, aliased_output
from executorlib.standalone.cache_queue import JobNumber
from executorlib.standalone.callbacks import user_code
from executorlib.standalone.resources import Resources
from executorlib.standalone.select import FutureSelector
from executorlib.standalone.serialize import Payload, dumps, loads_with_inputs
from executorlib.task_scheduler.file.shared import FutureItem
from executorlib.task_scheduler.interactive.task import TaskFuture

_PROTOCOL = 5
_ALWAYS_STORED = {
    "cores": 1,
    "threads_per_core": 1,
    "gpus_per_core": 0,
    "cwd": None,
    "openmpi_oversubscribe": False,
    "exclusive": False,
}
_numbers = itertools.count(1)


class FileFuture(TaskFuture):
    """The future of a task that works through files.

    Attributes:
        paths: the files of the task, when its name in the cache is known
        output: its output file. One string for all references to it, as in executorlib 1.11: a pickle that holds two
            of them, and with it the name of a call, depends on whether it is the same object.
        kept: whether the exception is in the cache too, as that of the task's function
        queue_id: the number of the task's job, when it is submitted; for an element of an array a text, "12_3"
    """

    __slots__ = ("kept", "output", "paths", "queue_id")

    def __init__(self) -> None:
        super().__init__()
        self.paths: CachePaths | None = None
        self.output: str | None = None
        self.kept = False
        self.queue_id: JobNumber | None = None

    def begin(self) -> None:
        """The task's job runs, for the first time or again."""
        if not self.done() and not self.running():
            self.set_running_or_notify_cancel()

    def cancel_running(self) -> bool:
        """Cancel the future even if its task runs; returns whether it is, or will be, cancelled.

        The job is ended when no other future waits for the same call.
        """
        return self.cancel() or (self._task is not None and bool(self._dispatcher.cancel_running(self)))

    @property
    def task(self) -> FileTask | None:
        """Its task, which another may have been before the same call was found under way; None when it is done."""
        return cast("FileTask | None", self._task)

    def end(self, outcome: Outcome) -> None:
        """The task has ended, or was cancelled."""
        if not outcome.succeeded and isinstance(outcome.value, CancelledError):
            self.abandon()
            return
        try:
            if outcome.succeeded:
                self.set_result(outcome.value)
            else:
                self.set_exception(outcome.value)
        except InvalidStateError:  # its user has cancelled it
            self.tell_cancelled()

    def abandon(self) -> None:
        """Cancel the future, whether its job runs or not."""
        self.put_back()
        Future.cancel(self)
        self.tell_cancelled()

    def tell_cancelled(self) -> None:
        """Let those know of it who wait for several futures."""
        with self._condition:
            if self._state == "CANCELLED":
                self.set_running_or_notify_cancel()


@dataclass(frozen=True, slots=True)
class Call:
    """A call whose arguments are known, pickled, and its name in the cache.

    Attributes:
        paths: where it lies in the cache
        datasets: what its input file holds
        alias: another name under which its result is to be found, see `cache_key.alias_key`
    """

    paths: CachePaths
    datasets: dict[str, bytes]
    alias: str | None

    @classmethod
    def of(cls, fn: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], resources: Resources) -> Call:
        """Name and pickle a call.

        Raises:
            Exception: what its pickling raises
        """
        import cloudpickle

        assert resources.cache_directory is not None
        key, alias = resources.cache_key, None
        if key is None:
            found = call_key(fn, args, kwargs)
            alias = alias_key(fn, args, kwargs) if found.movable else None
            if alias is not None and resources.cores > 1:
                alias = with_cores(alias, resources.cores)
            paths = named_by_call(resources.cache_directory, found.key, resources.cores)
        else:
            paths = CachePaths.of(resources.cache_directory, key)
        moved = aliased_output(resources.cache_directory, alias) if alias is not None else None
        values = {"function": fn, "input_args": args, "input_kwargs": kwargs}
        datasets = {name: cloudpickle.dumps(value, protocol=_PROTOCOL) for name, value in values.items()}
        datasets["resource_dict"] = dumps(stored_resources(resources)).data
        datasets["error_log_file"] = dumps(resources.error_log_file).data
        return cls(moved or paths, datasets, alias)


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call some of whose arguments are futures that other executors have to end: it has no name before.

    Attributes:
        fn: the pickled function
        payload: the pickled arguments, for `serialize.loads_with_inputs`
    """

    fn: bytes
    payload: Payload

    def close(self, values: list[Any], resources: Resources) -> Call:
        """The call with these values in the places of the futures.

        Raises:
            Exception: what the pickling of the call raises
        """
        args, kwargs = loads_with_inputs(self.payload, values)
        return Call.of(pickle.loads(self.fn), args, kwargs, resources)


class FileTask:
    """A call, the futures that wait for it, and its job. The dispatcher owns it.

    Attributes:
        call: the call; None for one that another program has written
        paths: its files, when its name is known
        futures: those that end with it: more than one where the same call was submitted again
        inputs: the futures that have to end first
        open_inputs: how many of them have not
        job: the number of its job, once it is submitted
        begun: whether the job runs
        ended_at: when the job ended, where its output is waited for (monotonic clock)
        cause: how it ended
        where: its process and host, or its number in the queue, in words
        name: that of its function
    """

    __slots__ = (
        "begun",
        "call",
        "cause",
        "ended_at",
        "futures",
        "inputs",
        "job",
        "name",
        "number",
        "open_inputs",
        "paths",
        "resources",
        "where",
    )

    def __init__(
        self,
        call: Call | OpenCall | None,
        resources: Resources,
        future: FileFuture,
        inputs: list[Future[Any]],
        paths: CachePaths | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.call = call
        self.resources = resources
        self.futures = [future]
        self.inputs = inputs
        self.open_inputs = len(inputs)
        self.job: JobNumber | None = None
        self.begun = False
        self.ended_at: float | None = None
        self.cause = ""
        self.where = ""
        self.paths = paths
        self.name = ""
        if isinstance(call, Call):
            self.paths = future.paths = call.paths

    def __repr__(self) -> str:
        return f"<FileTask {self.number} {self.paths.stem if self.paths is not None else ''}>"

    def close_call(self, owner: Any) -> None:
        """All inputs have ended: give the call its name.

        Args:
            owner: whose tasks' results are referred to and not copied

        Raises:
            Exception: what the pickling of the call raises
        """
        assert isinstance(self.call, OpenCall)
        values = [reference(future, owner) or future.result() for future in self.inputs]
        self.call = self.call.close(values, self.resources)
        self.paths = self.call.paths
        for future in self.futures:
            future.paths = self.paths

    def has_job(self, job: JobNumber) -> None:
        """Its job is submitted, or found."""
        self.job = job
        for future in self.futures:
            future.queue_id = job

    def begin(self) -> None:
        """Its job runs."""
        self.begun = True
        for future in self.futures:
            with user_code():
                future.begin()

    def open_outputs(self) -> Iterator[str]:
        """The output files that its job has to wait for."""
        for future in self.inputs:
            origin = task_future(future)
            if origin is not None and origin.paths is not None and not origin.done():
                yield origin.paths.output

    @property
    def files(self) -> CachePaths:
        """The paths of a task that has its name."""
        assert self.paths is not None
        return self.paths

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for it."""
        return not all(future.cancelled() for future in self.futures)


def reference(future: Future[Any], owner: Any) -> FutureItem | None:
    """What stands for a future of this owner in a task's input; None for one whose file has no name (yet)."""
    origin = task_future(future)
    if origin is None or origin.paths is None or origin._dispatcher is not owner:
        return None
    if origin.output is None:
        origin.output = origin.paths.output
    return FutureItem(origin.output, future._selector if isinstance(future, FutureSelector) else None)


def task_future(future: Future[Any]) -> FileFuture | None:
    """The future of the task that an input comes from, where it comes from one."""
    if isinstance(future, FutureSelector):
        future = future._future
    return future if isinstance(future, FileFuture) else None


def stored_resources(resources: Resources) -> dict[str, Any]:
    """The resources as executorlib 1.11 keeps them in the input file."""
    left_out = ("cache_key", "cache_directory", "error_log_file", "template_variables")
    stored = {**_ALWAYS_STORED, **{name: value for name, value in resources.given().items() if name not in left_out}}
    if "slurm_cmd_args" in stored:
        stored["slurm_cmd_args"] = list(stored["slurm_cmd_args"])
    return {**stored, **dict(resources.template_variables)}
