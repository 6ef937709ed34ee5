"""A bar that shows how far a run is, and does not get in the way of what the program and its calls print."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from typing import Any, Protocol

from executorlib.task_scheduler.last_line import LastLine
from executorlib.task_scheduler.tally import Tally

_LOG = logging.getLogger("executorlib")
_SECONDS = 0.1
_SECONDS_IN_A_LOG = 30.0


class Watched(Protocol):
    """A dispatcher as the bar sees it."""

    @property
    def thread(self) -> threading.Thread: ...

    def tally(self) -> Tally:
        """How far it is; may be called from any thread."""


class Progress:
    """A tqdm bar: calls that have ended of those submitted, calls per second, how many run, have failed, did not run.

    A thread of its own looks at the dispatcher now and then, as long as that lives: no call is slower for it, and a
    terminal that is held up does not hold up the run. In a terminal the bar has the last line for itself, and the rest
    scrolls above it: whatever prints, the program, its calls in other processes, compiled code, goes to another line.
    In a log file it is a line now and then. Standard output is never written to.

    Args:
        watched: the dispatcher

    Raises:
        ImportError: tqdm is not installed
    """

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._bar, self._pause = _make_bar()
        self._thread = threading.Thread(target=self._run, name="executorlib-progress", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the last state is drawn, which it is when the dispatcher has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            alive = True
            while alive:
                self._watched.thread.join(self._pause)
                alive = self._watched.thread.is_alive()
                self._draw(self._watched.tally())
            self._bar.close()
        except Exception:  # a terminal that is gone is no reason to fail
            _LOG.debug("the progress bar is given up", exc_info=True)

    def _draw(self, tally: Tally) -> None:
        words = [f"{tally.running} running on {tally.workers} worker{'' if tally.workers == 1 else 's'}"]
        words += [f"{tally.failed} failed"] if tally.failed else []
        words += [f"{tally.dropped} not run"] if tally.dropped else []
        self._bar.total = tally.submitted
        self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(tally.ended - self._bar.n)
        self._bar.refresh()


def _make_bar() -> tuple[Any, float]:
    """A bar for wherever standard error goes, and the seconds between two looks."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # no thread that looks whether bars are drawn: ours are

    options: dict[str, Any] = {"unit": " calls", "total": 0, "mininterval": 0.0, "miniters": 0}
    stream = sys.stderr
    if "ipykernel" in sys.modules and not hasattr(stream, "buffer"):  # a notebook
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without widgets it is a bar of text, which will do
            from tqdm.auto import tqdm as fitting
        return fitting(**options), _SECONDS
    if stream is None or stream.closed:
        return Bar(disable=True), _SECONDS_IN_A_LOG
    if not stream.isatty():
        return Bar(file=_Lines(stream), position=0, ncols=100, leave=False, delay=1e-9, **options), _SECONDS_IN_A_LOG
    if os.name == "nt" or os.environ.get("TERM", "dumb") == "dumb":
        return Bar(dynamic_ncols=True, **options), _SECONDS
    return Bar(file=LastLine(stream), position=0, dynamic_ncols=True, **options), _SECONDS


class _Lines:
    """A file for tqdm that makes a line of each state of the bar, as a log wants it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last = ""

    def write(self, text: str) -> None:
        text = text.strip()
        if text and text != self._last:
            self._last = text
            self._stream.write(f"{text}\n")

    def flush(self) -> None:
        self._stream.flush()
