"""The user's code in a thread of this library."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_LOG = logging.getLogger("executorlib")


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Callbacks of a future belong to the user: whatever they raise must not end the thread."""
    try:
        yield
    except BaseException:
        _LOG.exception("a callback of a future has failed")
