"""``executorlib cache``: the tasks that runs have left in a cache directory."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executorlib.cli.tasks import CachedTask, Queue

_ERROR_WIDTH = 60
_REPR_WIDTH = 400


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "cache",
        help="look after the tasks in a cache directory",
        description="Look after the tasks that runs have left in a cache directory. Cache files are pickles: only "
        "files of users that you trust are opened, see the page on security.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    listing = _action(actions, "list", _list, "one line for each task", keys=None)
    listing.add_argument("--state", action="append", metavar="STATE", help="only these: done, failed, running, ...")
    _action(actions, "show", _show, "all there is about tasks", keys="+")
    again = _action(actions, "resubmit", _resubmit, "run tasks again that failed, or were left undone", keys="*")
    again.add_argument(
        "--wait", action=argparse.BooleanOptionalAction, help="wait for them (default on this machine, not for a queue)"
    )
    again.add_argument("--local", action="store_true", help="run them on this machine, wherever they came from")
    ending = _action(actions, "terminate", _terminate, "end the jobs of tasks, and remove the tasks", keys="*")
    ending.add_argument("--all", action="store_true", help="every task that has not ended")
    clean = _action(
        actions,
        "clean",
        _clean,
        "remove tasks that failed, were aborted or are damaged, or the named ones",
        keys="*",
    )
    clean.add_argument("--done", action="store_true", help="remove results too")
    clean.add_argument("--older-than", type=float, default=0.0, metavar="DAYS", help="only what is older")
    clean.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _action(
    actions: Any, name: str, run: Callable[[argparse.Namespace], int], what: str, keys: str | None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("directory", metavar="DIRECTORY", help="the cache directory")
    if keys is not None:
        parser.add_argument("keys", nargs=keys, metavar="KEY", help="keys of tasks, as `list` shows them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--backend", choices=["slurm", "flux"], help="queueing system (default: the one of this machine)"
    )
    parser.add_argument("--config", metavar="DIRECTORY", help="its configuration, as pysqa takes it")
    parser.set_defaults(run=lambda options: _run(run, options))
    return parser


def _run(action: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    from executorlib.cli.tasks import UnknownTaskError

    try:
        return action(options)
    except (UnknownTaskError, FileNotFoundError, NotImplementedError) as error:
        print(f"executorlib cache: {error}", file=sys.stderr)
        return 1


def _queue(options: argparse.Namespace) -> Queue:
    from executorlib.cli.tasks import Queue

    return Queue(options.backend, options.config)


def _tasks(options: argparse.Namespace) -> list[CachedTask]:
    from executorlib.cli.tasks import list_tasks

    queue = _queue(options)
    tasks = list_tasks(options.directory, queue)
    if queue.silence is not None:
        print(f"executorlib cache: {queue.silence}", file=sys.stderr)
    return tasks


# list and show


def _list(options: argparse.Namespace) -> int:
    from executorlib.cli.tasks import STATES

    unknown = set(options.state or ()) - set(STATES)
    if unknown:
        print(f"executorlib cache: no state {', '.join(unknown)}; they are {', '.join(STATES)}", file=sys.stderr)
        return 2
    tasks = [task for task in _tasks(options) if not options.state or task.state in options.state]
    if options.json:
        print(json.dumps([task.described() for task in tasks], indent=2))
        return 0
    rows = [("KEY", "FUNCTION", "STATE", "QUEUE ID", "RUNTIME", "SIZE", "ERROR"), *map(_row, tasks)]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        cells = [
            cell.rjust(width) if at in (3, 4, 5) else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        print("  ".join([*cells, row[6]]).rstrip())
    counts = {state: sum(task.state == state for task in tasks) for state in STATES}
    told = [f"{number} {state}" for state, number in counts.items() if number]
    print(f"{_tasks_word(len(tasks))}{': ' if told else ''}{', '.join(told)}; {_size(sum(t.size for t in tasks))}")
    return 0


def _row(task: CachedTask) -> tuple[str, ...]:
    error = " ".join((task.error or "").split())
    return (
        task.key,
        task.function or "?",
        task.state,
        "" if task.queue_id is None else str(task.queue_id),
        "" if task.runtime is None else _seconds(task.runtime),
        _size(task.size),
        error if len(error) <= _ERROR_WIDTH else f"{error[: _ERROR_WIDTH - 1]}…",
    )


def _show(options: argparse.Namespace) -> int:
    from executorlib.cli.tasks import select

    shown = [_everything(task) for task in select(_tasks(options), options.keys)]
    if options.json:
        print(json.dumps(shown, indent=2))
        return 0
    for number, content in enumerate(shown):
        if number:
            print()
        for name, value in content.items():
            if value is not None:
                print(f"{name}: {_indented(_in_words(name, value))}")
    return 0


def _everything(task: CachedTask) -> dict[str, Any]:
    """What `list` tells of a task, and what is in its files, in words."""
    from executorlib.standalone.cache_entry import CacheEntry
    from executorlib.standalone.cache_file import CacheFileError
    from executorlib.standalone.cache_outcome import read_outcome

    content: dict[str, Any] = task.described()
    try:
        entry = CacheEntry(task.path)
    except (CacheFileError, FileNotFoundError):
        return content
    for name, title in (
        ("input_args", "arguments"),
        ("input_kwargs", "keyword_arguments"),
        ("resource_dict", "resources"),
        ("output", "result"),
    ):
        if name in entry:
            content[title] = _brief(entry, name)
    if task.error is not None:
        try:
            error = read_outcome(task.path).value
            content["traceback"] = "".join(traceback.format_exception(error)).rstrip()
        except (CacheFileError, FileNotFoundError):
            pass
    content["printed"] = _end_of(task.paths.log) or _end_of(task.paths.job_output)
    return content


def _brief(entry: Any, name: str) -> str:
    try:
        text = repr(entry[name])
    except Exception as error:  # what a pickle, or the repr of an object, raises
        text = f"<{error}>"
    return text if len(text) <= _REPR_WIDTH else f"{text[:_REPR_WIDTH]}…"


def _end_of(path: str) -> str | None:
    """The last lines of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4000))
            return file.read().decode(errors="replace").strip() or None
    except OSError:
        return None


# resubmit, terminate, clean


def _resubmit(options: argparse.Namespace) -> int:
    from executorlib.cli.tasks import AGAIN, Again, UnknownTaskError, executor_of, list_tasks, select
    from executorlib.standalone.cache_file import CacheFileError

    tasks = _tasks(options)
    wanted = select(tasks, options.keys) if options.keys else [task for task in tasks if task.state in AGAIN]
    refused = [task for task in wanted if task.state not in AGAIN]
    for task in refused:
        print(f"{task.key}: is {task.state}", file=sys.stderr)
    queue = _queue(options)
    queued = not options.local and (options.backend or any(task.queue_id is not None for task in wanted))
    backend = queue.backend if queued else None
    if queued and backend is None:
        print("executorlib cache: name the queueing system with --backend, or use --local", file=sys.stderr)
        return 2
    wait = backend is None if options.wait is None else options.wait
    problems = len(refused)
    with executor_of(backend, options.config, options.directory, wait=wait) as executor:
        again = Again(tasks, executor)
        for task in wanted:
            if task.state not in AGAIN:
                continue
            try:
                again.submit(task)
            except (CacheFileError, UnknownTaskError) as error:
                print(f"{task.key}: {error}", file=sys.stderr)
                problems += 1
    after = {task.key: task for task in list_tasks(options.directory, queue)}
    done = [after[key] for key in again.futures if key in after]
    if wait:
        problems += sum(task.state != "done" for task in done)
    if options.json:
        print(json.dumps([task.described() for task in done], indent=2))
    else:
        for task in done:
            print("  ".join([task.key, task.state, *([_row(task)[6]] if task.error else [])]))
        print(f"{_tasks_word(len(done))} submitted again")
    return 1 if problems else 0


def _terminate(options: argparse.Namespace) -> int:
    from executorlib.cli.tasks import ENDED, select
    from executorlib.task_scheduler.file.spawner_pysqa import terminate_task_in_cache

    if bool(options.keys) == options.all:
        print("executorlib cache: name tasks, or give --all", file=sys.stderr)
        return 2
    tasks = _tasks(options)
    wanted = select(tasks, options.keys) if options.keys else [task for task in tasks if task.state not in ENDED]
    queue = _queue(options)
    ended, problems = [], 0
    for task in wanted:
        if not os.path.exists(task.paths.input):
            print(f"{task.key}: has ended already", file=sys.stderr)
            problems += 1
            continue
        try:
            terminate_task_in_cache(options.directory, task.key, queue.config_directory, queue.backend)
            ended.append(task.key)
        except Exception as error:  # nobody to ask about its job, or no answer: pysqa raises what it makes of that
            print(f"{task.key}: its job {task.queue_id} cannot be ended: {error!r}", file=sys.stderr)
            problems += 1
    _report(options, ended, "ended and removed")
    return 1 if problems else 0


def _clean(options: argparse.Namespace) -> int:
    from executorlib.cli.tasks import ABORTED, DONE, FAILED, UNREADABLE, delete, files_of, select
    from executorlib.standalone.temporary_file import remove_abandoned

    states = (FAILED, ABORTED, UNREADABLE, *((DONE,) if options.done or options.keys else ()))
    tasks = _tasks(options)
    named = select(tasks, options.keys) if options.keys else tasks
    newest = time.time() - options.older_than * 86400
    wanted = [task for task in named if task.state in states and (task.modified < newest or not options.older_than)]
    if not options.keys:  # they may be whole for another user, or where h5py is installed
        spared = [task for task in wanted if task.state == UNREADABLE and not task.damaged]
        wanted = [task for task in wanted if task not in spared]
        for task in spared:
            print(f"{task.key}: is not damaged, but cannot be read here: {task.error}", file=sys.stderr)
    problems = 0
    for task in named if options.keys else ():
        if task.state not in states:
            print(f"{task.key}: is {task.state}; `terminate` ends it", file=sys.stderr)
            problems += 1
    if not options.dry_run:
        for task in wanted:
            for path in list(files_of(task)):
                delete(path)
        remove_abandoned(options.directory)
    size = _size(sum(task.size for task in wanted))
    _report(
        options, [task.key for task in wanted], f"would be removed, {size}" if options.dry_run else f"removed, {size}"
    )
    return 1 if problems else 0


def _report(options: argparse.Namespace, keys: Sequence[str], what: str) -> None:
    if options.json:
        print(json.dumps(list(keys), indent=2))
        return
    for key in keys:
        print(key)
    print(f"{_tasks_word(len(keys))} {what}")


# In words


def _tasks_word(number: int) -> str:
    return f"{number} task{'' if number == 1 else 's'}"


def _in_words(name: str, value: Any) -> str:
    if name == "size":
        return _size(value)
    if name == "runtime":
        return _seconds(value)
    if name == "modified":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    return str(value)


def _indented(text: str) -> str:
    lines = text.splitlines() or [""]
    return lines[0] if len(lines) == 1 else os.linesep.join(["", *(f"    {line}" for line in lines)])


def _seconds(value: float) -> str:
    if value < 1.0:
        return f"{1000 * value:.1f} ms"
    if value < 120.0:
        return f"{value:.1f} s"
    hours, rest = divmod(int(value), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
