"""The user's code in a thread of this library."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

_LOG = logging.getLogger("executorlib")
# Not silent by default, as `Future` itself is not: the user is to see what is wrong with a callback.
_FUTURES_LOG = logging.getLogger("concurrent.futures")


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Callbacks of a future belong to the user: whatever they raise must not end the thread."""
    try:
        yield
    except BaseException:
        _LOG.exception("a callback of a future has failed")


class GuardedFuture(Future[Any]):
    """A future of which every callback is called, whatever those before it raise; `Future` stops at a ``sys.exit``."""

    def _invoke_callbacks(self) -> None:
        for callback in self._done_callbacks:  # type: ignore[attr-defined]  # typeshed leaves it out
            try:
                callback(self)
            except BaseException:
                _FUTURES_LOG.exception("exception calling callback for %r", self)
