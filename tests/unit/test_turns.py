"""Tasks of a worker elsewhere: begun by it, or taken back by its agent, and never both."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="agents run on Linux")


@pytest.fixture
def turns() -> Iterator[object]:
    from executorlib.backend.turns import Turns

    made = Turns()
    yield made
    made.close()


def test_in_order(turns: object) -> None:
    from executorlib.backend.turns import Turns

    assert isinstance(turns, Turns)
    assert [turns.take(1), turns.take(1), turns.take(1)] == [True] * 3
    assert turns.begun() == 3
    assert turns.take_back(5) == 3
    assert not turns.take(1), "the fourth was taken back"
    assert not turns.take(5), "so was the fifth, whose message came later"
    assert turns.take(6)
    assert turns.take_back(6) == 6
    assert turns.take(0), "what cannot be taken back needs no turn"


def test_between_two_processes(turns: object) -> None:
    """The worker begins tasks as fast as it can, the agent takes back what is left of each message."""
    from executorlib.backend.turns import Turns

    assert isinstance(turns, Turns)
    messages, size = 40, 200
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            done = []
            for message in range(messages):
                first = 1 + message * size
                done += [first + i for i in range(size) if turns.take(first)]
            with os.fdopen(write, "w") as file:
                file.write(" ".join(map(str, done)))
        finally:
            os._exit(0)
    os.close(write)
    returned: set[int] = set()
    while not os.waitpid(pid, os.WNOHANG)[0]:
        last = min(turns.begun() + 50, messages * size)
        begun = turns.take_back(last)
        returned |= set(range(begun + 1, last + 1))
        time.sleep(0.0005)
    with os.fdopen(read) as file:
        begun_there = set(map(int, file.read().split()))
    assert not begun_there & returned
    assert begun_there | returned == set(range(1, messages * size + 1))
