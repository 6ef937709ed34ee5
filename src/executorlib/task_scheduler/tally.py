"""How far a run is, in numbers."""

from __future__ import annotations

from typing import NamedTuple


class Tally(NamedTuple):
    """The tasks of an executor at a moment.

    Attributes:
        submitted, ended: how many so far
        failed: how many of the ended ones have raised, or lost their worker
        dropped: how many of them did not run: cancelled, or their inputs failed
        running: calls that run
        workers: processes that there are
    """

    submitted: int
    ended: int
    failed: int
    dropped: int
    running: int
    workers: int
