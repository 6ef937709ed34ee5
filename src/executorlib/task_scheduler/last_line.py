"""The last line of a terminal, kept for bars while the rest scrolls above it."""

from __future__ import annotations

import os
import threading
from typing import Any, ClassVar

# ECMA-48 and DEC, as all terminals of the last decades know them.
_SAVE, _RESTORE, _CLEAR_LINE = "\x1b7", "\x1b8", "\x1b[2K"

_ROWS = 24


class LastLine:
    """A file for tqdm that writes its bar into a line at the bottom of the terminal.

    The terminal is told to scroll only the lines above (DECSTBM). So text that anybody writes, this program or another
    process, never meets the bar. Bars of several executors are stacked. The last state of a bar stays as an ordinary
    line where the output has come to.

    Args:
        stream: the terminal
    """

    _open: ClassVar[list[LastLine]] = []
    _lock: ClassVar[threading.RLock] = threading.RLock()
    _rows: ClassVar[int] = 0

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._text = ""
        self._closed = False
        with self._lock:
            self._open.append(self)
            # Make room below: where the cursor stands in the last lines, all scrolls up.
            self._put("\n" * len(self._open) + f"\x1b[{len(self._open)}A")
            self._lay_out()

    def write(self, text: str) -> None:
        """Show a state of the bar; its end when tqdm says so, with a line feed."""
        with self._lock:
            if self._closed:
                return
            if text.startswith("\n"):
                self._close()
                return
            self._text = text.strip("\r\n") or self._text
            self._lay_out()

    def flush(self) -> None:
        pass

    @property
    def encoding(self) -> str | None:
        return getattr(self._stream, "encoding", None)

    def fileno(self) -> int:
        """For tqdm, which asks the terminal for its width."""
        number: int = self._stream.fileno()
        return number

    def _close(self) -> None:
        self._closed = True
        self._open.remove(self)
        first = LastLine._rows - len(self._open)
        self._put(f"{_SAVE}\x1b[{first};1H{_CLEAR_LINE}{_RESTORE}")
        self._lay_out()
        self._put(f"\r{self._text}\n")

    def _lay_out(self) -> None:
        """Reserve the lines, which a change of the window's size makes void, and write the bars into them."""
        try:
            rows = os.get_terminal_size(self._stream.fileno()).lines or _ROWS
        except OSError:
            rows = _ROWS
        LastLine._rows = rows
        top = rows - len(self._open)
        region = f"\x1b[1;{top}r" if self._open else "\x1b[r"
        bars = "".join(f"\x1b[{top + at};1H{_CLEAR_LINE}{bar._text}" for at, bar in enumerate(self._open, start=1))
        self._put(f"{_SAVE}{region}{bars}{_RESTORE}")

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
