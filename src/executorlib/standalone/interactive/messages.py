"""What the dispatcher and its workers say to each other."""

from __future__ import annotations

import struct
from collections import namedtuple

# Message kinds, the first byte of a body. To the worker:
SETUP = b"S"
FUNCTION = b"F"
FORGET = b"G"
RUN = b"R"
STOP = b"X"
# Comes first over TCP and says nothing, but it shows the key: before that a worker takes no large message.
WELCOME = b"W"
# To the dispatcher:
HELLO = b"H"
RESULT = b"D"
RANK_ERROR = b"E"
# A forked worker says first that it is there, with its process id: its fork server may be killed before it says so.
STARTED = b"P"
STARTED_HEAD = struct.Struct("<ci")
# A worker whose tasks nobody takes back says so when it begins one: it may be killed before. With the number of no task
# a worker says that its init function has come to its end.
BEGUN = b"B"
NO_TASK = 0
BEGUN_HEAD = struct.Struct("<cQ")
# Both ways: a dictionary of a `SocketInterface`.
DICT = b"M"

# Number of a batch whose tasks nobody takes back, and the token of a task in the pipe of claims: its batch's number.
UNCLAIMED = 0
CLAIM = struct.Struct("<I")

# Status of a result; EXITED is told for the dictionaries of a `SocketInterface` only.
DONE, FAILED, EXITED, INIT_FAILED, RANKS_DONE = range(5)
RESULT_HEAD = struct.Struct("<cBQdd")


# Not made by typing: a worker starts sooner without it.
class Setup(
    namedtuple(
        "Setup",
        ("worker_id", "path", "environment", "cwd", "init_function", "error_log_file", "gpus", "keep"),
        defaults=(None, None, None, None, (), True),
    )
):
    """What a worker is told before its first task."""

    __slots__ = ()

    worker_id: int
    path: list[str]
    environment: dict[str, str] | None
    cwd: str | None
    init_function: bytes | None
    error_log_file: str | None
    gpus: tuple[str, ...]
    keep: bool


class Item(
    namedtuple("Item", ("number", "function", "data", "buffers", "inputs", "input_buffers"), defaults=(0, None, 0))
):
    """A task of a RUN message; its buffers and those of its inputs follow the message in this order."""

    __slots__ = ()

    number: int
    function: int
    data: bytes
    buffers: int
    inputs: bytes | None
    input_buffers: int
