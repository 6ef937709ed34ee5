"""What other threads hand to the dispatcher's thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from executorlib.standalone.callbacks import user_code

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """A queue of items and of things to do, with a bell that wakes the thread that empties it.

    Any thread may use the methods in the first part, its owner alone those in the second.

    Attributes:
        reader: readable when the bell was rung
        ended: nobody empties it any more
    """

    def __init__(self) -> None:
        self._items: deque[Callable[[], None] | Item] = deque()
        self._sleeping = False
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self.ended = False
        self._abandoned = False
        self._refuse: Callable[[Item], None] = lambda item: None

    # From any thread

    def post(self, item: Callable[[], None] | Item) -> None:
        """Hand over an item or something to do; it is refused when the owner has ended."""
        if self._abandoned:
            return
        self._items.append(item)
        if self._sleeping:
            self._sleeping = False
            with contextlib.suppress(OSError):  # full: it will wake anyhow; closed: it has ended
                self._writer.send(b"x")
        if self.ended:  # the owner ended while this was on its way
            self._refuse_all()

    def ask(self, question: Callable[[], Any], default: Any) -> Any:
        """Have something answered in the owner's thread; the default after its end."""
        if self.ended:
            return default
        answered = threading.Event()
        answer = [default]

        def reply() -> None:
            try:
                if not self.ended:
                    answer[0] = question()
            finally:
                answered.set()

        self.post(reply)
        answered.wait()
        return answer[0]

    # For its owner

    def take(self) -> Iterator[Callable[[], None] | Item]:
        """What is there now, and not what comes meanwhile: that must not keep the rest waiting."""
        for _ in range(len(self._items)):
            yield self._items.popleft()

    def may_sleep(self) -> bool:
        """The owner is about to wait for the bell; returns whether nothing came before it could be heard."""
        self._sleeping = True
        return not self._items

    def awake(self) -> None:
        """The owner waits no more."""
        self._sleeping = False

    def hear(self) -> None:
        """Silence the bell."""
        with contextlib.suppress(BlockingIOError):
            self.reader.recv(4096)

    def end(self, refuse: Callable[[Item], None]) -> None:
        """The owner has ended: refuse what is there and what comes."""
        self._refuse = refuse
        self.ended = True
        self._refuse_all()
        self._close()

    def abandon(self) -> None:
        """In a child of the program, where its owner does not exist: nobody does what is posted from now on."""
        self.ended = self._abandoned = True
        self._items.clear()
        self._close()

    def _close(self) -> None:
        self.reader.close()
        self._writer.close()

    def _refuse_all(self) -> None:
        while True:
            try:
                item = self._items.popleft()
            except IndexError:
                return
            with user_code():
                if callable(item):
                    item()  # whoever asked must get an answer
                else:
                    self._refuse(item)
