"""What the tests of dictionaries to workers have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from executorlib.standalone.command import get_command_path

SERIAL = [sys.executable, get_command_path("interactive_serial.py")]


def call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The request of a call."""
    return {"fn": fn, "args": args, "kwargs": kwargs}


def keys() -> list[str]:
    """The variables that hold the keys of open ports."""
    return [name for name in os.environ if name.startswith("EXECUTORLIB_KEY_")]
