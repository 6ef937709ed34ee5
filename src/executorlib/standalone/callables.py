"""What can be said of a callable without calling it: its name and its parameters."""

from __future__ import annotations

import functools
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def function_name(fn: Any) -> str:
    """A name for messages and files: that of the function behind a partial or a method, else of the class."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) else type(fn).__name__


def takes_parameter(fn: Any, name: str) -> bool:
    """Whether a function written in Python has a parameter of that name."""
    code = _code(fn)
    if code is None:
        return False
    return name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _code(fn: Any) -> types.CodeType | None:
    while isinstance(fn, functools.partial):
        fn = fn.func
    while hasattr(fn, "__wrapped__"):  # functools.wraps: the parameters are those of the wrapped function
        fn = fn.__wrapped__
    if not hasattr(fn, "__code__"):  # an object with a __call__; a bound method has the code of its function
        fn = vars(type(fn)).get("__call__", fn)
    code = getattr(fn, "__code__", None)
    return code if isinstance(code, types.CodeType) else None
