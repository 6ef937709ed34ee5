"""A task of the cache in its worker: its input is read, its function called, its outcome written.

<key>_i.h5 ──► FileCall.load ──► run ──► Outcome ──► <key>_o.h5
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from executorlib.backend.calls import flush_output, left_open, log_error, supplied_for
from executorlib.backend.worker import end_mpi, finish, make_main
from executorlib.standalone import cache_queue
from executorlib.standalone.cache_claim import LEADER_VARIABLE, TAKEN_EXIT_CODE, release, take
from executorlib.standalone.cache_entry import unpickle
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_outcome import is_ended, read_call, write_outcome
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.command import PATH_VARIABLE
from executorlib.standalone.errors import ExecutorlibSocketError
from executorlib.standalone.future_item import HOME, MissingInputError, resolve
from executorlib.standalone.hardware import thread_environment
from executorlib.standalone.serialize import dump_error, dumps

_HIDE_FROM_TRACEBACK = True
# A network file system may take so long to show a file that another machine has written.
_INPUT_SECONDS = 60.0
_FLUSHED_FROM_SECONDS = 0.01
_TURN_SECONDS = 0.5
_FAILED_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
_INTERRUPTED_EXIT_CODE = 130  # that of a shell for SIGINT


class Interruption(KeyboardInterrupt):
    """A SIGINT from outside, be it of Slurm before the time limit: not the function's doing, and no outcome."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call: the pickled result, or the pickled exception and its traceback; seconds of its run."""

    succeeded: bool
    data: bytes
    traceback: str
    runtime: float

    def datasets(self) -> dict[str, bytes]:
        """The outcome as the cache keeps it."""
        found = {"output" if self.succeeded else "error": self.data, "runtime": pickle.dumps(self.runtime, 5)}
        if self.traceback:
            found["traceback"] = pickle.dumps(self.traceback, 5)
        return found


@dataclass(frozen=True, slots=True)
class FileCall:
    """The call of an input file.

    Attributes:
        paths: the files of the task
        content: the input file's datasets
    """

    paths: CachePaths
    content: dict[str, bytes]

    def run(self) -> Outcome:
        """Call the function.

        Raises:
            CacheFileError: the call cannot be unpickled
            MissingInputError: the file of another task, whose result is an argument, cannot be read
            Interruption: somebody has interrupted it
        """
        fn, args, kwargs = (self._value(name) for name in ("function", "input_args", "input_kwargs"))
        start = time.monotonic()
        try:
            if any(HOME.encode() in self.content.get(name, b"") for name in ("input_args", "input_kwargs")):
                args, kwargs = resolve(args, kwargs, _INPUT_SECONDS)
            supplied = supplied_for(fn, {"executorlib_worker_id": 0})
            if supplied:
                kwargs = {**left_open(fn, tuple(args), kwargs, supplied), **kwargs}
            start = time.monotonic()
            result = fn(*args, **kwargs)
            runtime = time.monotonic() - start
            return Outcome(True, _pickled(result), "", runtime)
        except (MissingInputError, Interruption):
            raise
        except BaseException as error:
            runtime = time.monotonic() - start
            log_file = self._value("error_log_file")
            if log_file is not None:
                log_error(log_file, fn, tuple(args), kwargs, error)
            return failure(error, runtime)

    def write(self, outcome: Outcome) -> None:
        """Keep the outcome and remove the input."""
        flush = outcome.runtime >= _FLUSHED_FROM_SECONDS
        write_outcome(self.paths, self.content, outcome.datasets(), flush=flush)

    def _value(self, name: str) -> Any:
        if name in self.content:
            return unpickle(self.paths.input, name, self.content[name])
        if name == "function":
            raise CacheFileError.because(self.paths.input, "it has no function")
        return {"input_args": (), "input_kwargs": {}}.get(name)


def failure(error: BaseException, runtime: float) -> Outcome:
    """The outcome of a call that has raised."""
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        # They would end the program that asks for the result.
        error = ExecutorlibSocketError(f"the task raised {error!r}").with_traceback(error.__traceback__)
    data, text = pickle.loads(dump_error(error))
    return Outcome(False, data, text, runtime)


def set_up(content: dict[str, bytes]) -> None:
    """Make this process the place that the task expects, before anything of it is unpickled."""
    os.environ.pop(LEADER_VARIABLE, None)
    path = os.environ.pop(PATH_VARIABLE, None)
    if path is not None:
        sys.path[:] = json.loads(path)
    make_main()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    resources = pickle.loads(content["resource_dict"]) if "resource_dict" in content else {}
    threads = resources.get("threads_per_core", 1)
    # The default of one thread does not overrule what the environment says.
    os.environ.update(thread_environment(threads if threads and threads > 1 else None, dict(os.environ)))


def _interrupt(signum: int, frame: object) -> None:
    raise Interruption


def work(paths: CachePaths) -> int:
    """Run a task that this process alone has to do with; returns the exit code."""
    if not take_in_turn(paths):
        return TAKEN_EXIT_CODE
    try:
        call = _load(paths)
        if call is not None:
            note_number(call)
            set_up(call.content)
            call.write(call.run())
            finish()
            end_mpi()
    except (Exception, Interruption) as error:
        return report(error, paths)
    finally:
        end(paths)
    return 0


def take_in_turn(paths: CachePaths) -> bool:
    """Take a task, as `cache_claim.take` does. A batch job waits for whoever has it: it cannot be taken for failed."""
    while not take(paths):
        if cache_queue.number_of(paths) is None:
            return False
        time.sleep(_TURN_SECONDS)
    return True


def _load(paths: CachePaths) -> FileCall | None:
    """The call of a task; None if its outcome is there."""
    if is_ended(paths.output):
        return None
    try:
        return FileCall(paths, read_call(paths))
    except FileNotFoundError:
        if is_ended(paths.output):  # its program has written it meanwhile: an input has failed
            return None
        raise


def note_number(call: FileCall) -> None:
    """Keep the number of a batch job with the outcome, as executorlib 1.11 does."""
    number = cache_queue.number_of(call.paths)
    if number is not None:
        call.content["queue_id"] = pickle.dumps(number, 5)


def end(paths: CachePaths) -> None:
    """Leave nothing behind but the output, and what the task has printed."""
    flush_output()
    if os.path.exists(paths.output):
        cache_queue.forget(paths)
    try:
        log, mine = os.stat(paths.log), os.fstat(1)
        if log.st_size == 0 and (log.st_dev, log.st_ino) == (mine.st_dev, mine.st_ino):
            os.unlink(paths.log)
    except OSError:
        pass
    release(paths)


def report(error: BaseException, paths: CachePaths) -> int:
    """Say in the log why there is no outcome; returns the exit code."""
    print(f"executorlib: the task {paths.stem} has no outcome: {error!r}", file=sys.stderr)
    return _INTERRUPTED_EXIT_CODE if isinstance(error, Interruption) else _FAILED_EXIT_CODE


def combine(outcomes: list[Outcome]) -> Outcome:
    """The outcome of all ranks: the list of their results, or the first error."""
    runtime = max(outcome.runtime for outcome in outcomes)
    for outcome in outcomes:
        if not outcome.succeeded:
            return replace(outcome, runtime=runtime)
    return Outcome(True, _pickled([pickle.loads(outcome.data) for outcome in outcomes]), "", runtime)


def _pickled(value: Any) -> bytes:
    import cloudpickle

    # executorlib 1.11 reads neither buffers beside the pickle nor another protocol.
    data: bytes = dumps(value).data if type(value) in (int, float, str, bool) else cloudpickle.dumps(value, protocol=5)
    return data
