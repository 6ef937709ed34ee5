"""The functions that are measured: in a module that every library's workers can import.

It imports next to nothing, as each fresh process would have to pay for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any


def nothing(item: Any = None) -> Any:
    """An empty call that can be told from others."""
    return item


def increment(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def total(numbers: Iterable[int]) -> int:
    return sum(numbers)


def nap(seconds: float) -> float:
    """Sleep; returns how long it was really."""
    start = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - start


def await_file(path: str) -> bool:
    """Keep a worker busy until a file appears."""
    while not os.path.exists(path):
        time.sleep(0.02)
    return True


def process_id() -> int:
    return os.getpid()


def started() -> float:
    """When the call began, by the clock that all processes of a machine share."""
    return time.monotonic()


def empty_likelihood(position: Any) -> float:
    return 0.0


def likelihood_with_data(position: Any, data: Any) -> float:
    """A likelihood whose data matter, at next to no cost."""
    return float(data[0]) - 0.5 * float(position[0]) ** 2
