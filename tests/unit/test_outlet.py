"""Writing to somebody who may not read."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator

import pytest

if sys.platform != "linux":
    pytest.skip("needs epoll", allow_module_level=True)

from executorlib.standalone.interactive.outlet import Outlet


@pytest.fixture
def poll() -> Iterator[select.epoll]:
    with select.epoll() as made:
        yield made


def test_what_nobody_reads_waits(poll: select.epoll) -> None:
    read, write = os.pipe()
    outlet = Outlet(write, poll, own=True)
    data = os.urandom(300_000)
    outlet.write(data)
    assert poll.poll(0) == []
    outlet.end()
    received = b""
    while piece := os.read(read, 65536):  # ends when it is closed
        received += piece
        if poll.poll(0):
            outlet.flush()
    assert outlet.closed
    assert received == data
    os.close(read)


def test_nobody_is_there_to_read(poll: select.epoll) -> None:
    read, write = os.pipe()
    os.close(read)
    outlet = Outlet(write, poll, own=True)
    outlet.write(b"x" * 300_000)
    outlet.end()
    assert outlet.closed
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(write)


def test_the_end_now(poll: select.epoll) -> None:
    read, write = os.pipe()
    outlet = Outlet(write, poll, own=True)
    outlet.write(b"x" * 300_000)
    outlet.end(now=True)
    assert outlet.closed
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(write)
    os.close(read)


def test_a_descriptor_of_somebody_else_stays_open(poll: select.epoll) -> None:
    read, write = os.pipe()
    outlet = Outlet(write, poll, own=False)
    outlet.write(b"said")
    outlet.end()
    assert os.read(read, 10) == b"said"
    os.close(write)
    os.close(read)
