"""Dictionaries on the channel: what a `SocketInterface` and the worker programs of this and other packages exchange.

A request is a DICT message: its number and a pickled dictionary, large arrays out of band. This library's own worker
programs answer with the RESULT messages of a task, numbered like the request; those of other packages with a DICT.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from executorlib.standalone.errors import ExecutorlibSocketError, TaskExitError
from executorlib.standalone.interactive.messages import DICT, DONE, EXITED, RANKS_DONE, RESULT, RESULT_HEAD
from executorlib.standalone.interactive.wire import Message
from executorlib.standalone.serialize import Payload, load_error, loads

_HEAD = struct.Struct("<cQ")


class Request(NamedTuple):
    """A dictionary that was sent and has not been answered.

    Attributes:
        number: unique on its connection
        setting: whether it sets something on all ranks, so that the answer is one value and not a list
    """

    number: int
    setting: bool


def request_of(number: int, dictionary: Any) -> Request | None:
    """What is to be remembered of a dictionary; None where it is not known that there will be an answer."""
    if not isinstance(dictionary, dict):
        return None
    setting = bool(dictionary.get("init") or dictionary.get("shutdown"))
    return Request(number, setting) if setting or "fn" in dictionary else None


def encode_head(number: int) -> bytes:
    """The beginning of a DICT message; the pickle follows."""
    return _HEAD.pack(DICT, number)


def split_dict(message: Message) -> tuple[int, Payload]:
    """The number and the pickled dictionary of a DICT message."""
    body, buffers = message
    _, number = _HEAD.unpack_from(body)
    return number, Payload(body[_HEAD.size :], buffers)


def decode_reply(message: Message, request: Request | None) -> Any:
    """The dictionary that answers a request: ``{"result": ...}`` or ``{"error": ...}``."""
    kind = message[0][:1]
    try:
        if kind == DICT:
            return loads(split_dict(message)[1])
        if kind == RESULT:
            return _decode_result(message, request)
    except Exception as reason:
        error = RuntimeError(f"what the worker has sent cannot be unpickled: {reason!r}")
        error.__cause__ = reason
        return {"error": error}
    return {"error": ExecutorlibSocketError(f"the worker has sent a message of an unknown kind: {kind!r}")}


def _decode_result(message: Message, request: Request | None) -> dict[str, Any]:
    body, buffers = message
    _, status, _, _, _ = RESULT_HEAD.unpack_from(body)
    payload = Payload(body[RESULT_HEAD.size :], buffers)
    if status == DONE:
        return {"result": loads(payload)}
    if status == RANKS_DONE:
        return {"result": True if request is not None and request.setting else _load_ranks(payload)}
    error = load_error(payload.data)
    if status == EXITED:
        cause, error = error, TaskExitError(f"the function raised {error!r}")
        error.__cause__ = cause.__cause__
    return {"error": error}


def _load_ranks(payload: Payload) -> list[Any]:
    """The results of all ranks, each a pickle of its own."""
    results, at = [], 0
    for data, count in loads(Payload(payload.data)):
        results.append(loads(Payload(data, payload.buffers[at : at + count])))
        at += count
    return results
