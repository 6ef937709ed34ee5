"""The names that other libraries build on.

`SocketInterface` starts a worker program with a spawner and exchanges dictionaries with it; the functions
``interface_*`` are for either end of that channel. For the rest see `executorlib`.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executorlib.executor.single import TestClusterExecutor
    from executorlib.standalone.command import get_command_path
    from executorlib.standalone.errors import ExecutorlibSocketError
    from executorlib.standalone.interactive.communication import (
        SocketInterface,
        interface_bootup,
        interface_connect,
        interface_receive,
        interface_send,
        interface_shutdown,
    )
    from executorlib.standalone.interactive.spawner import MpiExecSpawner, SubprocessSpawner
    from executorlib.standalone.serialize import cloudpickle_register

_HOMES = {
    "ExecutorlibSocketError": "executorlib.standalone.errors",
    "MpiExecSpawner": "executorlib.standalone.interactive.spawner",
    "SocketInterface": "executorlib.standalone.interactive.communication",
    "SubprocessSpawner": "executorlib.standalone.interactive.spawner",
    "TestClusterExecutor": "executorlib.executor.single",
    "cloudpickle_register": "executorlib.standalone.serialize",
    "get_command_path": "executorlib.standalone.command",
    "interface_bootup": "executorlib.standalone.interactive.communication",
    "interface_connect": "executorlib.standalone.interactive.communication",
    "interface_receive": "executorlib.standalone.interactive.communication",
    "interface_send": "executorlib.standalone.interactive.communication",
    "interface_shutdown": "executorlib.standalone.interactive.communication",
}

__all__ = [
    "ExecutorlibSocketError",
    "MpiExecSpawner",
    "SocketInterface",
    "SubprocessSpawner",
    "TestClusterExecutor",
    "cancel_items_in_queue",
    "cloudpickle_register",
    "get_command_path",
    "interface_bootup",
    "interface_connect",
    "interface_receive",
    "interface_send",
    "interface_shutdown",
]


def cancel_items_in_queue(que: queue.Queue[Any]) -> None:
    """Empty a queue of dictionaries and cancel the futures that they hold as ``"future"``.

    A future that runs or is done stays as it is. ``que.task_done`` is called for each item with a future.
    """
    while True:
        try:
            item = que.get_nowait()
        except queue.Empty:
            return
        if isinstance(item, dict) and "future" in item:
            item["future"].cancel()
            que.task_done()


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
