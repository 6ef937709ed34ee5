"""Results that survive the program: calls are looked up in a cache directory before they are run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from executorlib.standalone.cache_entry import unpickle
from executorlib.standalone.cache_file import CacheFileError, read
from executorlib.standalone.cache_key import alias_key, call_key
from executorlib.standalone.cache_outcome import cores_in, named_by_call, with_cores
from executorlib.standalone.cache_paths import CachePaths, aliased_output, remember_alias
from executorlib.standalone.callables import function_name
from executorlib.standalone.functions import FunctionRef, FunctionTable
from executorlib.standalone.hdf import dump
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import Payload, dumps, dumps_with_inputs, loads_with_inputs
from executorlib.task_scheduler.interactive.dispatcher import Dispatcher
from executorlib.task_scheduler.interactive.outcome import refusal
from executorlib.task_scheduler.interactive.task import Task, TaskFuture

Run = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Resources, TaskFuture], None]
"""Runs a call in a worker, whose outcome becomes that of the future."""


class ResultCache:
    """Looks calls up; those that are not there are run, and their results kept.

    A call that is found starts no worker. The same call submitted twice runs once. An exception is not kept.

    Args:
        functions: the functions that the executor has seen
        dispatcher: takes the calls that wait: for their inputs, or for the same call that is under way
        run: runs a call in a worker
    """

    def __init__(self, functions: FunctionTable, dispatcher: Dispatcher, run: Run) -> None:
        self._functions = functions
        self._dispatcher = dispatcher
        self._run = run
        self._running: dict[str, Future[Any]] = {}  # by output file

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], resources: Resources
    ) -> Future[Any]:
        """The future of a call, found or run; the resources name the cache directory."""
        future = TaskFuture()
        try:
            payload, inputs = dumps_with_inputs((args, kwargs))
        except (Exception, SystemExit) as error:
            future.set_exception(refusal(error, f"the arguments of {function_name(fn)}"))
            return future
        call = _Call(self, fn, resources, future)
        if inputs:  # the call has a name when its arguments are known
            call.payload = payload
            self._wait(call, inputs)
            return future
        call.args, call.kwargs = args, kwargs
        try:
            answer, to_run = self.look_up(call)
        except (Exception, SystemExit) as error:
            future.set_exception(refusal(error, f"the arguments of {function_name(fn)}"))
            return future
        if answer is None:
            try:
                self._run(to_run, args, kwargs, resources, future)
            except BaseException as error:  # which goes to the caller, but others may wait for it already
                future.set_exception(error)
                raise
        elif answer.done() and not answer.cancelled():
            return answer
        else:
            self._wait(call, [answer])
        return future

    def _wait(self, call: _Call, inputs: list[Future[Any]]) -> None:
        name = FunctionRef(Payload(b""), function_name(call.fn), False)
        call.task = task = Task(name, None, call.resources, call.future, inputs)
        task.late = call.inputs_done
        call.future.bind(self._dispatcher, task)
        self._dispatcher.post(task)

    def look_up(self, call: _Call) -> tuple[Future[Any] | None, Callable[..., Any]]:
        """The future that has the outcome of a call, or will have it; if that is None, the function to run for it."""
        fn, args, kwargs = call.fn, call.args, call.kwargs
        directory, key = call.resources.cache_directory, call.resources.cache_key
        assert directory is not None
        alias = cores = None
        if key is None:
            cores = call.resources.cores
            found = call_key(fn, args, kwargs)
            # What a file of 1.11 says of its cores is seen when it is read: nearly all calls are on one.
            paths = named_by_call(directory, found.key, cores) if cores > 1 else CachePaths.of(directory, found.key)
            alias = alias_key(fn, args, kwargs) if found.movable else None
            if alias is not None and cores > 1:
                alias = with_cores(alias, cores)
        else:
            paths = CachePaths.of(directory, key)
        running = self._claim(paths.output, call.future)
        if running is not None:
            return running, fn
        try:
            for candidate in (paths, aliased_output(directory, alias) if alias else None):
                hit = _read(candidate.output, cores) if candidate is not None else None
                if hit is not None:
                    self._release(paths.output, call.future)
                    return hit, fn
        except BaseException:
            self._release(paths.output, call.future)
            raise
        start = time.monotonic()
        serial = call.resources.cores == 1  # of several ranks each knows only its own result

        def done(future: Future[Any]) -> None:
            if not future.cancelled() and future.exception() is None:
                if not serial:
                    _keep(paths.output, fn, args, kwargs, future.result(), time.monotonic() - start)
                if alias is not None:
                    remember_alias(paths, alias)

        call.future.add_done_callback(done)
        return None, CachedCall(fn, paths.output) if serial else fn

    def pickle(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Payload]:
        """What a worker needs for a call."""
        return self._functions.known(fn) or self._functions.add(fn), dumps((args, kwargs))

    def _claim(self, output: str, future: TaskFuture) -> Future[Any] | None:
        """Whose call writes this output: an earlier future, or None for the given one. Any thread may come first."""
        # Before anybody can wait for it: when it has ended, whoever waits finds nobody that writes.
        future.add_done_callback(lambda done: self._release(output, done))
        running = self._running.setdefault(output, future)
        if running is not future:
            return running
        if future.done():  # it was cancelled a moment ago
            self._release(output, future)
        return None

    def _release(self, output: str, future: Future[Any]) -> None:
        if self._running.get(output) is future:
            del self._running[output]


class _Call:
    """A call whose arguments, or whose outcome, may have to wait for other futures."""

    def __init__(self, cache: ResultCache, fn: Callable[..., Any], resources: Resources, future: TaskFuture) -> None:
        self._cache = cache
        self.fn = fn
        self.resources = resources
        self.future = future
        self.payload: Payload | None = None  # of arguments that refer to inputs, until these are known
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.task: Task | None = None

    def inputs_done(self, inputs: Sequence[Future[Any]]) -> Future[Any] | None:
        """In the dispatcher's thread: the future that has, or will have, the outcome; None if the task is to run."""
        assert self.task is not None
        if self.payload is not None:
            self.args, self.kwargs = loads_with_inputs(self.payload, [future.result() for future in inputs])
            self.payload = None
        elif not inputs[0].cancelled():  # the same call, for which this one has waited
            return inputs[0]
        try:
            answer, fn = self._cache.look_up(self)
            if answer is None:
                self.task.fn, self.task.payload = self._cache.pickle(fn, self.args, self.kwargs)
        except SystemExit as error:
            raise refusal(error, f"the arguments of {function_name(self.fn)}") from error
        return answer


class CachedCall:
    """A call that keeps its result, in the worker: several workers write at a time, and the program does not wait."""

    def __init__(self, fn: Callable[..., Any], output: str) -> None:
        self.__wrapped__ = fn  # whose name and parameters count
        self._output = output

    @property
    def __name__(self) -> str:
        return str(getattr(self.__wrapped__, "__name__", type(self.__wrapped__).__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        result = self.__wrapped__(*args, **kwargs)
        _keep(self._output, self.__wrapped__, args, kwargs, result, time.monotonic() - start)
        return result


def _keep(
    output: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, runtime: float
) -> None:
    try:
        dump(output, {"fn": fn, "args": args, "kwargs": kwargs, "output": result, "runtime": runtime})
    except Exception as error:  # the result is there all the same
        warnings.warn(f"a result could not be kept in {output}: {error!r}", RuntimeWarning, stacklevel=2)


def _read(output: str, cores: int | None) -> Future[Any] | None:
    """The future of a result that is there; None where it is not, or cannot be read, or is an error.

    Args:
        output: the file
        cores: on how many the call runs; a result of another number, whose shape is another, is none. None where the
            user has named the call, and answers for that.
    """
    try:
        content = read(output, ("output", "resource_dict"))
        if "output" not in content or (cores is not None and cores_in(output, content) not in (None, cores)):
            return None
        value = unpickle(output, "output", content["output"])
    except FileNotFoundError:
        return None
    except CacheFileError as error:
        warnings.warn(f"the call is run again: {error}", RuntimeWarning, stacklevel=2)
        return None
    future: Future[Any] = Future()
    future.set_result(value)
    return future
