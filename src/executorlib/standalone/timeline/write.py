"""A run as a file; the ending of its name is the format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from executorlib.standalone.timeline.page import page
from executorlib.standalone.timeline.picture import picture
from executorlib.standalone.timeline.record import Run
from executorlib.standalone.timeline.trace import trace

_FORMATS: dict[str, Callable[[Run], Iterator[str]]] = {".json": trace, ".svg": picture, ".html": page}


def check_filename(filename: str | os.PathLike[str]) -> str:
    """The absolute path of a file that a run can be written to.

    Raises:
        ValueError: its name ends in none of .json, .svg, .html
        FileNotFoundError: its directory does not exist
    """
    path = os.path.abspath(filename)
    if os.path.splitext(path)[1].lower() not in _FORMATS:
        raise ValueError(f"a timeline is written as {', '.join(_FORMATS)}, not as {os.fspath(filename)!r}")
    if not os.path.isdir(os.path.dirname(path)):
        raise FileNotFoundError(f"there is no directory {os.path.dirname(path)} for the timeline")
    return path


def write_timeline(run: Run, path: str) -> None:
    """Write a run to a file.

    Raises:
        OSError: the file cannot be written
    """
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(_FORMATS[os.path.splitext(path)[1].lower()](run))
