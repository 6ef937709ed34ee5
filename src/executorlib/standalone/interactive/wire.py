"""The channel between the dispatcher and a worker: messages over a stream socket.

    message :=  body size (u64) | number of buffers (u32) | buffer sizes (u64 each) | [tag (32 bytes)] | body | buffers

A worker forked on this machine holds one end of a socket pair: nobody else can reach it, and its messages carry no
tag. Every other worker connects over TCP. Both sides send a random nonce first, and from then on each message carries
an HMAC-SHA256 under a key derived from the executor's key, both nonces and the direction, over a message counter and
all that follows. So a message cannot be forged, replayed, reordered or reflected, and nothing is unpickled before its
tag has been checked.

A buffer of a megabyte or more is received straight into memory of its own, into which arrays are then unpickled
without a copy.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence
    from typing import Any

PREFIX = struct.Struct("<QI")
NONCE_BYTES = 16
TAG_BYTES = 32
MAGIC = b"EXLB1\r\n\0"
GREETING_BYTES = len(MAGIC) + NONCE_BYTES

_RECV_BYTES = 1 << 16
_OWN_MEMORY_BYTES = 1 << 20
_MAX_BUFFERS = 1 << 20
_UNTRUSTED_BYTES = 1 << 16
_IOV_MAX = 64
# Huge pages, where the system lends them, make a large message three times as fast: most of its time went into faults.
# Else all pages at once cost less than a fault for each.
_HUGE_BYTES = 1 << 22
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
# A child that a call forks must have a copy, as of all other memory.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_POPULATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE if hasattr(mmap, "MAP_POPULATE") else None
_POPULATE_BYTES = 1 << 28


class ProtocolError(ConnectionError):
    """The peer sent what no worker of this executor would send; the connection is of no more use."""


class ClosedError(ProtocolError):
    """The peer has closed the connection before it has said anything."""


Message = tuple[bytes, "Sequence[Any]"]
"""A body and the buffers that belong to it."""


class Signer:
    """Tags the messages of one direction of one connection."""

    def __init__(self, key: bytes, nonces: bytes, direction: bytes) -> None:
        import hmac

        self._hmac = hmac
        self._key = hmac.digest(key, direction + nonces, "sha256")
        self._counter = 0

    def tag(self, parts: Iterable[Any]) -> bytes:
        code = self._hmac.new(self._key, self._counter.to_bytes(8, "little"), "sha256")
        self._counter += 1
        for part in parts:
            code.update(part)
        return code.digest()

    def verify(self, tag: bytes, parts: Iterable[Any]) -> None:
        if not self._hmac.compare_digest(tag, self.tag(parts)):
            raise ProtocolError("a message without the key of this executor")


class Encoder:
    """Turns messages into the pieces that go to the socket."""

    def __init__(self, signer: Signer | None = None) -> None:
        self._signer = signer

    def encode(self, body: bytes, buffers: Sequence[Any] = ()) -> list[Any]:
        if not buffers and self._signer is None:
            return [PREFIX.pack(len(body), 0) + body]
        sizes = [memoryview(buffer).nbytes for buffer in buffers]
        head = PREFIX.pack(len(body), len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        if self._signer is None:
            return [head + body, *buffers]
        # Copies: an array that its owner changes while it is under way must not break the tag, and so the connection.
        copies = [bytes(buffer) for buffer in buffers]
        return [head + self._signer.tag([head, body, *copies]) + body, *copies]


class Decoder:
    """Reads messages from a socket, blocking or not.

    Args:
        signer: checks the tag of every message; until the first has passed, a message may not be large
    """

    def __init__(self, signer: Signer | None = None) -> None:
        self._signer = signer
        self._trusted = signer is None
        self._pending = b""
        self._space = memoryview(bytearray(_RECV_BYTES))
        self._large: _LargeMessage | None = None

    def read(self, sock: socket.socket) -> tuple[list[Message], bool]:
        """Read what one system call gives.

        Returns:
            the messages that are complete now, and whether the peer has closed the connection

        Raises:
            ProtocolError: the peer does not speak our language or does not have the key
            BlockingIOError: there is nothing to read, on a non-blocking socket
        """
        if self._large is not None:
            size = sock.recv_into(self._large.space())
            if size == 0:
                return [], True
            if not self._large.filled(size):
                return [], False
            message = self._finish(self._large)
            self._large = None
            return [message], False
        # Into memory that stays: the C library maps and unmaps a buffer of this size for each message otherwise.
        size = sock.recv_into(self._space)
        if size == 0:
            return [], True
        data = bytes(self._space[:size])
        return self._parse(self._pending + data if self._pending else data), False

    def _parse(self, data: bytes) -> list[Message]:
        messages: list[Message] = []
        start, end = 0, len(data)
        signed = self._signer is not None
        while end - start >= PREFIX.size:
            size, count = PREFIX.unpack_from(data, start)
            if count == 0 and not signed:  # the common case, in a few steps
                stop = start + PREFIX.size + size
                if stop <= end:
                    messages.append((data[start + PREFIX.size : stop], ()))
                    start = stop
                    continue
            if not self._trusted and (size > _UNTRUSTED_BYTES or count):
                raise ProtocolError("a large message from a peer that has not shown the key")
            if count > _MAX_BUFFERS:
                raise ProtocolError("a message with too many buffers")
            head_size = PREFIX.size + 8 * count + (TAG_BYTES if signed else 0)
            if end - start < head_size:
                break
            try:
                large = _LargeMessage(data[start : start + head_size], size, count, signed)
            except (MemoryError, OSError, OverflowError) as error:  # its size is not yet known to be true
                raise ProtocolError("a message of a size that cannot be") from error
            start = large.take(data, start + head_size)
            if not large.complete:
                self._large = large
                break
            messages.append(self._finish(large))
        self._pending = data[start:]
        return messages

    def _finish(self, large: _LargeMessage) -> Message:
        body = bytes(large.parts[0])
        buffers = large.parts[1:]
        if self._signer is not None:
            self._signer.verify(large.tag, [large.head, body, *buffers])
            self._trusted = True
        return body, buffers


class _LargeMessage:
    """A message that is filled piece by piece, into memory that its arrays will use."""

    def __init__(self, head: bytes, size: int, count: int, signed: bool) -> None:
        self.tag = head[-TAG_BYTES:] if signed else b""
        self.head = head[:-TAG_BYTES] if signed else head
        sizes = [size, *struct.unpack_from(f"<{count}Q", head, PREFIX.size)]
        self.parts = [_memory(part) for part in sizes]
        self._open = deque(memoryview(part)[:number] for part, number in zip(self.parts, sizes, strict=True) if number)

    @property
    def complete(self) -> bool:
        return not self._open

    def space(self) -> memoryview:
        return self._open[0]

    def filled(self, size: int) -> bool:
        """Note that so many bytes of `space` are there; returns whether the message is complete."""
        view = self._open.popleft()
        if size < len(view):
            self._open.appendleft(view[size:])
        return not self._open

    def take(self, data: bytes, start: int) -> int:
        """Fill from data that was already received; returns where in it the next message starts."""
        while self._open and start < len(data):
            view = self._open[0]
            size = min(len(view), len(data) - start)
            view[:size] = data[start : start + size]
            start += size
            self.filled(size)
        return start


def _memory(size: int) -> Any:
    # Anonymous memory is not written twice, as a bytearray's would be: first with zeros, then with the data.
    if size < _OWN_MEMORY_BYTES:
        return bytearray(size)
    if size >= _HUGE_BYTES and _has_huge_pages():
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        return memory
    if _POPULATE is None or size > _POPULATE_BYTES:  # a size that is not true must not take memory at once
        return mmap.mmap(-1, size, **_PRIVATE)
    return mmap.mmap(-1, size, flags=_POPULATE)


@functools.cache
def _has_huge_pages() -> bool:
    """Whether a process gets huge pages where it asks for them."""
    try:
        with open(_THP) as file:
            return hasattr(mmap, "MADV_HUGEPAGE") and "[never]" not in file.read()
    except OSError:
        return False


class Connection:
    """One end of a channel with both directions.

    On a non-blocking socket `send` never waits: what the socket does not take is kept and goes out with `flush`.
    """

    def __init__(self, sock: socket.socket, encoder: Encoder | None = None, decoder: Decoder | None = None) -> None:
        self.sock = sock
        self._encoder = encoder or Encoder()
        self._decoder = decoder or Decoder()
        self._unsent: deque[Any] = deque()
        self._inbox: deque[Message] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def unsent(self) -> bool:
        return bool(self._unsent)

    def send(self, body: bytes, buffers: Sequence[Any] = ()) -> None:
        """Send a message, or as much of it as the socket takes now.

        Raises:
            OSError: the connection is broken
        """
        pieces = self._encoder.encode(body, buffers)
        if not self._unsent and len(pieces) == 1:
            try:
                size = self.sock.send(pieces[0])
            except BlockingIOError:
                size = 0
            if size == len(pieces[0]):
                return
            pieces[0] = memoryview(pieces[0])[size:]
        self._unsent.extend(memoryview(piece).cast("B") for piece in pieces if len(piece))
        self.flush()

    def flush(self) -> bool:
        """Send what is kept; returns whether nothing is left."""
        unsent = self._unsent
        while unsent:
            try:
                size = _send_pieces(self.sock, unsent)
            except BlockingIOError:
                return False
            while unsent and size >= len(unsent[0]):
                size -= len(unsent.popleft())
            if size:
                unsent[0] = unsent[0][size:]
        return True

    def read(self) -> tuple[list[Message], bool]:
        """What has arrived: see `Decoder.read`."""
        return self._decoder.read(self.sock)

    def receive(self) -> Message:
        """Wait for the next message, on a blocking socket.

        Raises:
            EOFError: the peer has closed the connection
        """
        while not self._inbox:
            messages, closed = self.read()
            self._inbox.extend(messages)
            if closed and not messages:
                raise EOFError("the peer has closed the connection")
        return self._inbox.popleft()

    def discard(self) -> None:
        """Forget what has not been sent."""
        self._unsent.clear()

    def close(self) -> None:
        self.discard()
        self.sock.close()


def _send_pieces(sock: socket.socket, pieces: deque[Any]) -> int:
    if not hasattr(sock, "sendmsg"):  # Windows
        return sock.send(pieces[0])
    return sock.sendmsg([pieces[i] for i in range(min(len(pieces), _IOV_MAX))])


def greeting() -> bytes:
    """What each side sends first over TCP: the protocol's name and a fresh nonce."""
    return MAGIC + os.urandom(NONCE_BYTES)


def secure(sock: socket.socket, key: bytes, sent: bytes, received: bytes, *, worker: bool) -> Connection:
    """The signed connection of two peers that have exchanged greetings.

    Raises:
        ProtocolError: what was received is not a greeting
    """
    if len(received) != GREETING_BYTES or not received.startswith(MAGIC):
        raise ProtocolError("the peer does not speak the protocol of this library")
    theirs, ours = received[len(MAGIC) :], sent[len(MAGIC) :]
    nonces = theirs + ours if worker else ours + theirs
    to_worker = Signer(key, nonces, b"to worker")
    from_worker = Signer(key, nonces, b"from worker")
    if worker:
        return Connection(sock, Encoder(from_worker), Decoder(to_worker))
    return Connection(sock, Encoder(to_worker), Decoder(from_worker))


def keep_alive(sock: socket.socket) -> None:
    """Ask once a minute whether the other end is there, the kernel would after two hours.

    Firewalls forget connections that say nothing during a long call.
    """
    import socket

    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 10)):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def connect(host: str, port: int, key: bytes, timeout: float = 60.0) -> Connection:
    """Connect a worker to its executor, which may take its time to answer: a `SocketInterface` looks when it is used.

    Raises:
        OSError: nothing is there, or does not let us in within so many seconds
        ProtocolError: what answers is not an executor of this library
    """
    import socket

    sock = socket.create_connection((host, port), timeout=timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        sock.settimeout(None)
        sent = greeting()
        sock.sendall(sent)
        received = b""
        while len(received) < GREETING_BYTES:
            data = sock.recv(GREETING_BYTES - len(received))
            if not data:
                raise ClosedError(f"{host}:{port} closed the connection")
            received += data
        return secure(sock, key, sent, received, worker=True)
    except BaseException:
        sock.close()
        raise
