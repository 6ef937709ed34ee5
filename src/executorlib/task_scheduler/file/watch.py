"""Which tasks have ended, seen in the cache directory: one listing for all of them, seldom while nothing changes."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field

from executorlib.standalone.cache_paths import ABSENT_SECONDS, CachePaths

_LOG = logging.getLogger("executorlib")
_LONGEST_PAUSE = 2.0
_PAUSE_GROWTH = 1.5
# A look may take this part of a core, however many tasks are waited for.
_SHARE = 0.01
# A network file system may show a file that is being renamed under neither name.
_LOOKS_BEFORE_GONE = 3
_SECONDS_BEFORE_GONE = 1.0


@dataclass(slots=True)
class _Watched:
    paths: CachePaths
    input: str
    running: str
    reported: bool = False
    misses: int = 0
    missed_since: float = 0.0


@dataclass(slots=True)
class Seen:
    """What a look has shown.

    Attributes:
        ended: output files that are there
        gone: output files of tasks of which no file is left
        lost: output files of tasks whose directory has not been there for minutes
        news: whether any of the outputs was not there before
    """

    ended: list[str] = field(default_factory=list)
    news: bool = False
    gone: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class OutputWatch:
    """Looks for output files.

    Args:
        first_pause: seconds between two looks after something has changed; while nothing does they grow to 2, or to
            the first pause if that is longer
    """

    def __init__(self, first_pause: float) -> None:
        self._first = max(first_pause, 0.001)
        self._longest = max(_LONGEST_PAUSE, self._first)
        self._pause = self._first
        self._next = 0.0
        self._folders: dict[str, dict[str, _Watched]] = {}
        self._absent: dict[str, float] = {}  # folders that cannot be listed, and since when

    def add(self, paths: CachePaths) -> None:
        """Look for the output of a task from now on."""
        folder, name = os.path.split(paths.output)
        if not self._folders:
            self.hurry()
        self._folders.setdefault(folder, {})[name] = _Watched(
            paths, os.path.basename(paths.input), os.path.basename(paths.running)
        )

    def discard(self, paths: CachePaths) -> None:
        """Look for it no more."""
        folder, name = os.path.split(paths.output)
        watched = self._folders.get(folder)
        if watched is not None and watched.pop(name, None) is not None and not watched:
            del self._folders[folder]
            self._absent.pop(folder, None)

    def hurry(self) -> None:
        """Something has happened: more may follow soon."""
        self._pause = self._first
        self._next = time.monotonic() + self._pause

    @property
    def due(self) -> float | None:
        """When to look, on the monotonic clock; None while there is nothing to look for."""
        return self._next if self._folders else None

    def look(self) -> Seen:
        """List the directories once."""
        start = time.monotonic()
        seen = Seen()
        for folder, watched in self._folders.items():
            try:
                names = set(os.listdir(folder))
            except OSError as error:
                self._cannot_list(folder, error, seen, start)
                continue
            self._absent.pop(folder, None)
            _compare(names, watched, seen, start)
        taken = time.monotonic() - start
        self._pause = self._first if seen.news else min(self._pause * _PAUSE_GROWTH, self._longest)
        self._next = start + max(self._pause, taken / _SHARE)
        return seen

    def _cannot_list(self, folder: str, error: OSError, seen: Seen, now: float) -> None:
        """A file server that is away, or a mount that is being made again, says nothing about the tasks."""
        if folder not in self._absent:
            _LOG.warning("the cache directory cannot be listed, it is waited for: %s", error)
        since = self._absent.setdefault(folder, now)
        if isinstance(error, FileNotFoundError | NotADirectoryError) and now - since >= ABSENT_SECONDS:
            seen.lost += [each.paths.output for each in self._folders[folder].values()]


def _compare(names: set[str], watched: dict[str, _Watched], seen: Seen, now: float) -> None:
    for name in watched.keys() & names:
        seen.ended.append(watched[name].paths.output)
        seen.news = seen.news or not watched[name].reported
        watched[name].reported = True
    for name, each in watched.items():
        if each.input in names or each.running in names or name in names:
            each.misses = 0
            continue
        each.misses += 1
        if each.misses == 1:
            each.missed_since = now
        elif each.misses >= _LOOKS_BEFORE_GONE and now - each.missed_since >= _SECONDS_BEFORE_GONE:
            seen.gone.append(each.paths.output)
