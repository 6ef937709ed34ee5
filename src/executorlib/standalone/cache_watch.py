"""Futures for tasks that other programs have submitted, ended by what appears in the cache directory."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from executorlib.standalone import cache_claim
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_paths import ABSENT_SECONDS, CachePaths
from executorlib.standalone.callbacks import user_code
from executorlib.standalone.errors import TaskLostError, TaskRemovedError

_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0
_PAUSE_GROWTH = 1.5
# A network file system may show a file that is being renamed under neither name.
_LOOKS_BEFORE_GONE = 3
# A task whose process has ended may be about to be removed, or to run again.
_LOST_SECONDS = 1.0


def future_of(cache_directory: str, cache_key: str) -> Future[Any]:
    """The future of `executorlib.standalone.hdf.get_future_from_cache`."""
    watched = _Watched(CachePaths.of(cache_directory, cache_key), cache_key, Future())
    present = watched.is_present()
    # The output is looked for last: a task that ends in between has been seen on its way.
    if not watched.try_to_end():
        if not present:
            raise FileNotFoundError(
                f"Neither input nor output file for cache key {cache_key} found in cache directory {cache_directory}."
            )
        _watcher.add(watched)
    return watched.future


@dataclass(slots=True)
class _Watched:
    paths: CachePaths
    key: str
    future: Future[Any]
    looks_without_files: int = 0
    absent_since: float | None = None
    had_process: bool = False
    lost_at: float | None = None

    def is_present(self) -> bool:
        return os.path.exists(self.paths.input) or os.path.exists(self.paths.running)

    def try_to_end(self) -> bool:
        """End the future if its task has ended; returns whether it has."""
        from executorlib.standalone.hdf import get_output

        if self.future.cancelled():
            return True
        try:
            ended, succeeded, value = get_output(self.paths.output)
        except FileNotFoundError:
            return False
        except (CacheFileError, MemoryError) as error:
            ended, succeeded, value = True, False, error
        except OSError:  # the file server has lost it for a moment
            return False
        if ended:
            self._end(succeeded, value)
        return ended

    def _end(self, succeeded: bool, value: Any) -> None:
        with user_code():
            if not self.future.set_running_or_notify_cancel():
                pass
            elif succeeded:
                self.future.set_result(value)
            else:
                self.future.set_exception(value)

    def look(self) -> bool:
        """As `try_to_end`, and end the future of a task whose files are gone, or whose process is."""
        present = self.is_present()
        self._look_for_process()
        if self.try_to_end():
            return True
        self.looks_without_files = 0 if present or self._is_absent() else self.looks_without_files + 1
        error: RuntimeError
        if self.looks_without_files >= _LOOKS_BEFORE_GONE:
            error = TaskRemovedError(f"task {self.key} has been removed from {self.paths.directory} before it ended")
        elif self.lost_at is not None and time.monotonic() - self.lost_at > _LOST_SECONDS:
            error = TaskLostError(
                f"the process of task {self.key} in {self.paths.directory} has ended without a result: it was killed, "
                "or died. It runs again when the same call is submitted again."
            )
        else:
            return False
        self._end(False, error)
        return True

    def _is_absent(self) -> bool:
        """Whether the whole directory is not there, be it for a while: that says nothing about the task."""
        if os.path.isdir(self.paths.folder):
            self.absent_since = None
            return False
        now = time.monotonic()
        self.absent_since = self.absent_since or now
        return now - self.absent_since < ABSENT_SECONDS

    def _look_for_process(self) -> None:
        """See whether the task is still run; before it has a process it waits for its turn."""
        alive = cache_claim.state(self.paths)
        self.had_process = self.had_process or alive is not None
        if alive or not self.had_process:
            self.lost_at = None
        elif self.lost_at is None:
            self.lost_at = time.monotonic()


class _Watcher:
    """One thread for all futures, which lives as long as there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._watched: list[_Watched] = []
        self._thread: threading.Thread | None = None

    def add(self, watched: _Watched) -> None:
        with self._lock:
            self._watched.append(watched)
            if self._thread is None or not self._thread.is_alive():  # the latter: in a forked child
                self._thread = threading.Thread(target=self._run, name="executorlib-cache-watch", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            if self._wake.wait(pause):
                self._wake.clear()
                pause = _FIRST_PAUSE
            with self._lock:
                watched = list(self._watched)
            ended = {id(each) for each in watched if each.look()}
            pause = _FIRST_PAUSE if ended else min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE)
            with self._lock:
                self._watched = [each for each in self._watched if id(each) not in ended]
                if not self._watched:
                    self._thread = None
                    return


_watcher = _Watcher()
