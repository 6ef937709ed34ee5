"""Exceptions of this library, and what an error of a worker looks like in the program that submitted the task."""

from __future__ import annotations


class ExplainedError(RuntimeError):
    """An error that docs/troubleshooting.md has an entry for, under the name of its class."""

    def __str__(self) -> str:
        return f"{super().__str__()} (see Troubleshooting: {type(self).__name__})"


class ExecutorlibSocketError(RuntimeError):
    """The connection to a worker is lost, usually because the worker's process has ended."""


class WorkerDiedError(ExplainedError, ExecutorlibSocketError):
    """The process that ran the task ended before it returned a result.

    The message names the task, the worker, its process id and host, and the signal or the exit code.
    """


class WorkerStartError(ExplainedError, ExecutorlibSocketError):
    """A worker could not be started, or did not report in time.

    The message holds the command that was run and the end of its standard error.
    """


class SubmissionError(ExplainedError):
    """The queueing system has refused a batch job; the message holds its words."""


class QueueSilentError(ExplainedError):
    """The queueing system has not answered for minutes, so that nobody knows whether a job of the call runs."""


class TaskRemovedError(ExplainedError):
    """The files of a task have been removed from the cache before it ended."""


class TaskLostError(ExplainedError):
    """The process of a task in a cache has ended without a result, and no executor of this program has started it."""


class TaskExitError(ExplainedError, ExecutorlibSocketError):
    """The task called ``sys.exit`` or was interrupted; its worker goes on."""


class RemoteError(ExplainedError):
    """Stands in for an exception of a task that cannot be pickled: its type and message as text."""


def safe_repr(obj: object) -> str:
    """What `repr` says; the name of the class where that raises, as the user's code may do."""
    try:
        return repr(obj)
    except BaseException:
        return f"<{type(obj).__name__} without a repr>"


class RemoteTraceback(Exception):  # noqa: N818  # it is no error, but where one came from
    """The traceback of an exception as it was formatted in the worker; found in ``__cause__``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
