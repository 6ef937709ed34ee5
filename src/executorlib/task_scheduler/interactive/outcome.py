"""How a task ends: what a worker sent becomes its future's result or exception."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

from executorlib.standalone.callbacks import user_code
from executorlib.standalone.errors import TaskExitError, WorkerDiedError, safe_repr
from executorlib.standalone.interactive.messages import DONE, INIT_FAILED, RANKS_DONE
from executorlib.standalone.serialize import Payload, load_error
from executorlib.task_scheduler.interactive.task import Task
from executorlib.task_scheduler.interactive.worker import Worker

_LOG = logging.getLogger("executorlib")


def deliver(task: Task, status: int, data: bytes, buffers: Sequence[Any]) -> None:
    """Set what a worker sent for a task; it never raises."""
    try:
        if status == DONE:  # thousands a second come this way
            task.future.set_result(pickle.loads(data, buffers=buffers))
        elif status == RANKS_DONE:
            task.future.set_result(_load_ranks(Payload(data, buffers)))
        else:
            what = f"the init_function of {task.fn.name}'s worker" if status == INIT_FAILED else task.fn.name
            task.future.set_exception(error_of(what, data))
    except BaseException as error:
        _undeliverable(task, error)


def fail(task: Task, error: BaseException) -> None:
    """Set why a task has not come to its end."""
    with user_code():
        if isinstance(error, CancelledError) or task.future.cancelled():
            task.future.put_back()
            task.future.cancel()
            task.future.set_running_or_notify_cancel()
        elif not task.future.done():
            task.future.set_exception(error)


def finish(task: Task, result: Any) -> None:
    """Set the result of a task that did not run, because it was known."""
    with user_code():
        if task.future.set_running_or_notify_cancel():
            task.future.set_result(result)


def refusal(error: BaseException, what: str) -> BaseException:
    """The exception of a call that cannot be sent anywhere, because something of it cannot be pickled."""
    if not isinstance(error, SystemExit):
        return error
    refused = pickle.PicklingError(f"pickling {what} called sys.exit({error.code!r})")
    refused.__cause__ = error
    return refused


def death(task: Task, worker: Worker) -> WorkerDiedError:
    """The exception of a task whose worker died while it ran."""
    said = worker.stderr_tail.decode(errors="replace").strip()
    return WorkerDiedError(
        f"{worker!r} died while it ran {task.fn.name}: {worker.cause}"
        + (f"; its standard error ends with:\n{said}" if said else "")
    )


def error_of(what: str, data: bytes) -> BaseException:
    """What the user's code raised in a worker. An exit is told: raised here, it would end the program.

    Args:
        what: the name of that code
        data: the pickled exception
    """
    error = load_error(data)
    if not isinstance(error, (SystemExit, KeyboardInterrupt)):
        return error
    exit_error = TaskExitError(f"{what} raised {safe_repr(error)}")
    exit_error.__cause__ = error.__cause__
    return exit_error


def _undeliverable(task: Task, reason: BaseException) -> None:
    if task.future.done():
        _LOG.error("a callback of the future of %s has failed", task.fn.name, exc_info=reason)
        return
    error = RuntimeError(f"the result of {task.fn.name} cannot be unpickled: {safe_repr(reason)}")
    error.__cause__ = reason
    with user_code():
        task.future.set_exception(error)


def _load_ranks(payload: Payload) -> list[Any]:
    """The results of all ranks, each a pickle of its own."""
    results, at = [], 0
    for data, count in pickle.loads(payload.data):
        results.append(pickle.loads(data, buffers=payload.buffers[at : at + count]))
        at += count
    return results
