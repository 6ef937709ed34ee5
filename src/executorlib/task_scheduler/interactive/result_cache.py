"""Results that survive the program: calls are looked up in a cache directory before they are run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_key import alias_key, call_key
from executorlib.standalone.cache_paths import CachePaths, aliased_output, remember_alias
from executorlib.standalone.hdf import dump, get_output
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import dumps_with_inputs, loads_with_inputs
from executorlib.task_scheduler.interactive.task import TaskFuture

Run = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Resources], Future[Any]]
"""Runs a call in a worker."""


class ResultCache:
    """Looks calls up; those that are not there are run, and their results kept.

    A call that is found starts no worker. The same call submitted twice runs once. An exception is not kept.

    Args:
        run: runs a call in a worker
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._running: dict[str, Future[Any]] = {}  # by output file

    def submit(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], resources: Resources
    ) -> Future[Any]:
        """The future of a call, found or run; the resources name the cache directory."""
        try:
            payload, inputs = dumps_with_inputs((args, kwargs))
        except Exception as error:
            return _failed(error)
        if not inputs:
            return self._look_up(fn, args, kwargs, resources)
        # The call has a name when its arguments are known.
        outer = TaskFuture()
        waiting = _Countdown(len(inputs))

        def input_done(_: Future[Any]) -> None:
            if not waiting.last() or not outer.set_running_or_notify_cancel():
                return
            try:
                values = [future.result() for future in inputs]
                known_args, known_kwargs = loads_with_inputs(payload, values)
                inner = self._look_up(fn, known_args, known_kwargs, resources)
            except BaseException as error:
                outer.set_exception(error)
            else:
                inner.add_done_callback(lambda done: _copy(done, outer))

        for future in inputs:
            future.add_done_callback(input_done)
        return outer

    def _look_up(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], resources: Resources
    ) -> Future[Any]:
        directory, key = resources.cache_directory, resources.cache_key
        assert directory is not None
        alias = None
        try:
            if key is None:
                found = call_key(fn, args, kwargs)
                key = found.key
                alias = alias_key(fn, args, kwargs) if found.movable else None
        except Exception as error:
            return _failed(error)
        paths = CachePaths.of(directory, key)
        for candidate in (paths, aliased_output(directory, alias) if alias else None):
            hit = _read(candidate.output) if candidate is not None else None
            if hit is not None:
                return hit
        running = self._running.get(paths.output)
        if running is not None:  # the same call is under way
            outer = TaskFuture()
            running.add_done_callback(lambda done: _copy(done, outer))
            return outer
        return self._start(fn, args, kwargs, resources, paths, alias)

    def _start(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resources: Resources,
        paths: CachePaths,
        alias: str | None,
    ) -> Future[Any]:
        start = time.monotonic()
        serial = resources.cores == 1  # of several ranks each knows only its own result
        running = self._run(CachedCall(fn, paths.output) if serial else fn, args, kwargs, resources)
        self._running[paths.output] = running

        def done(future: Future[Any]) -> None:
            if not future.cancelled() and future.exception() is None:
                if not serial:
                    _keep(paths.output, fn, args, kwargs, future.result(), time.monotonic() - start)
                if alias is not None:
                    remember_alias(paths, alias)
            self._running.pop(paths.output, None)

        running.add_done_callback(done)
        return running


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


class _Countdown:
    """Counts futures that end in several threads; the items of a list are taken out one by one."""

    def __init__(self, count: int) -> None:
        self._open = [None] * (count - 1)

    def last(self) -> bool:
        try:
            self._open.pop()
        except IndexError:
            return True
        return False


def _keep(
    output: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, runtime: float
) -> None:
    try:
        dump(output, {"fn": fn, "args": args, "kwargs": kwargs, "output": result, "runtime": runtime})
    except Exception as error:  # the result is there all the same
        warnings.warn(f"a result could not be kept in {output}: {error!r}", RuntimeWarning, stacklevel=2)


def _read(output: str) -> Future[Any] | None:
    """The future of a result that is there; None where it is not, or cannot be read, or is an error."""
    try:
        ended, succeeded, value = get_output(output)
    except FileNotFoundError:
        return None
    except CacheFileError as error:
        warnings.warn(f"the call is run again: {error}", RuntimeWarning, stacklevel=2)
        return None
    if not (ended and succeeded):
        return None
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _copy(done: Future[Any], outer: TaskFuture) -> None:
    """Let a future end as another has."""
    if not outer.running() and not outer.set_running_or_notify_cancel():
        return
    try:
        result = done.result()
    except CancelledError:
        outer.put_back()
        outer.cancel()
        outer.set_running_or_notify_cancel()
    except BaseException as error:
        outer.set_exception(error)
    else:
        outer.set_result(result)
