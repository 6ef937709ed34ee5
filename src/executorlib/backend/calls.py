"""Around the call of a task's function: the place it runs in, the parameters a worker supplies, the errors."""

from __future__ import annotations

import os
import sys

from executorlib.standalone.callables import function_name, takes_parameter
from executorlib.standalone.errors import WorkerStartError, safe_repr
from executorlib.standalone.hardware import GPU_VARIABLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from executorlib.standalone.interactive.messages import Setup

_HIDE_FROM_TRACEBACK = True


def apply_setup(setup: Setup) -> None:
    """Make this process the place that a task expects: the program's paths, environment and working directory.

    Raises:
        WorkerStartError: it cannot work in that directory
    """
    if setup.environment is not None:
        for name in os.environ.keys() - setup.environment.keys():
            del os.environ[name]
        os.environ.update(setup.environment)
    if setup.gpus:
        for variable in GPU_VARIABLES:
            os.environ[variable] = ",".join(setup.gpus)
    sys.path[:] = setup.path
    if setup.cwd is not None:
        _change_directory(setup.cwd)


def _change_directory(path: str) -> None:
    try:
        try:
            os.chdir(path)
        except FileNotFoundError:  # the program has made it on its own machine; this may be another
            os.makedirs(path, exist_ok=True)
            os.chdir(path)
    except OSError as error:
        import socket

        raise WorkerStartError(
            f"A worker (pid {os.getpid()} on {socket.gethostname()}) cannot work in its directory {path}: {error}"
        ) from error


def supplied_for(fn: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Those of a worker's values that a function has a parameter for."""
    return {name: value for name, value in values.items() if takes_parameter(fn, name)}


def left_open(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], supplied: dict[str, Any]) -> dict[str, Any]:
    """Those of the supplied values whose parameter the call has not filled."""
    import functools
    import inspect

    while isinstance(fn, functools.partial):  # whose signature tells nothing of the parameters it has filled
        args, kwargs, fn = fn.args + args, {**fn.keywords, **kwargs}, fn.func
    given = inspect.signature(fn).bind_partial(*args, **kwargs).arguments
    return {name: value for name, value in supplied.items() if name not in given}


def explain_missing_argument(error: BaseException, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Add to the error of a call that lacks an argument what could have supplied it."""
    if not isinstance(error, TypeError) or fn is None or error.__traceback__ is None:
        return
    import inspect

    try:
        signature = inspect.signature(fn)
        given = signature.bind_partial(*args, **kwargs).arguments
    except Exception:  # no signature, an argument too many, or what the user's objects raise
        return
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if name not in given
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if not missing:
        return
    names = ", ".join(repr(name) for name in missing)
    note = (
        f"The call of {function_name(fn)} left {names} open. With block_allocation=True an init_function may "
        f"supply it: it returns a dictionary, here with the key {missing[0]!r}."
    )
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:  # Python 3.10 keeps the note, but does not print it
        setattr(error, "__notes__", [note])  # noqa: B010  # mypy knows of no such attribute there


def log_error(path: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException) -> None:
    """Append a failed call to a file, in one write: the entries of parallel workers do not mix."""
    import traceback

    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    entry = f"function: {safe_repr(fn)}\nargs: {safe_repr(args)}\nkwargs: {safe_repr(kwargs)}\n{trace}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(fd, entry.encode(errors="backslashreplace"))
        finally:
            os.close(fd)
    except OSError as reason:
        print(f"executorlib: cannot write error_log_file {path}: {reason}", file=sys.stderr)


def end_fork(error: BaseException | None = None) -> None:
    """End a process that a call has forked and that came back from it, as Python would: its parent answers."""
    code: Any = 0
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    elif error is not None:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
        code = 1
    flush_output()
    os._exit(code & 0xFF)


def flush_output() -> None:
    """Bring out what the task has printed: the process may be ended before it would do so itself."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # replaced, closed, or nobody reads
            pass
