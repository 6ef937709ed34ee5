"""The channel: messages over a stream socket, signed or not."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from executorlib.standalone.interactive import wire
from executorlib.standalone.interactive.wire import (
    GREETING_BYTES,
    PREFIX,
    TAG_BYTES,
    Connection,
    Decoder,
    Encoder,
    Message,
    ProtocolError,
    Signer,
    greeting,
    secure,
)

KEY, NONCES = b"k" * 32, b"n" * 32
MEGABYTE = 1 << 20
SAMPLES: list[tuple[bytes, list[bytes]]] = [
    (b"first", []),
    (b"", []),
    (b"body", []),
    (b"x" * 100_000, []),
    (b"body", [b""]),
    (b"", [b"buffer"]),
    (b"body", [b"a", b"", b"c" * 70_000]),
    (b"b" * (3 * MEGABYTE), [b"d" * (2 * MEGABYTE), b"e"]),
    (b"last", []),
]


def signer(direction: bytes = b"to worker", key: bytes = KEY, nonces: bytes = NONCES) -> Signer:
    return Signer(key, nonces, direction)


def encoded(body: bytes, buffers: Sequence[Any] = (), signed: Signer | None = None) -> bytes:
    return b"".join(bytes(piece) for piece in Encoder(signed).encode(body, buffers))


def same(message: Message, sample: tuple[bytes, list[bytes]]) -> bool:
    body, buffers = message
    return body == sample[0] and [bytes(buffer) for buffer in buffers] == sample[1]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def after_hello(sample: tuple[bytes, Sequence[Any]]) -> bytes:
    """A signed message, behind the small one with which a peer shows that it has the key."""
    encoder = Encoder(signer())
    return b"".join(bytes(piece) for part in ((b"hello", ()), sample) for piece in encoder.encode(*part))


def decode(data: bytes, signed: Signer | None = None, step: int = 1 << 30) -> list[Message]:
    """All messages of some bytes that arrive in pieces."""
    left, right = socket.socketpair()
    decoder, messages = Decoder(signed), []
    with left, right:
        right.setblocking(False)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        for start in range(0, len(data), step):
            view = memoryview(data)[start : start + step]
            left.setblocking(False)
            while view:
                try:
                    view = view[left.send(view) :]
                except BlockingIOError:
                    pass
                try:
                    while True:
                        messages += decoder.read(right)[0]
                except BlockingIOError:
                    pass
    return messages


# Round trips


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: f"{len(s[0])}-{[len(b) for b in s[1]]}")
def test_round_trip(sample: tuple[bytes, list[bytes]], signed: bool) -> None:
    messages = decode(after_hello(sample), signer()) if signed else decode(encoded(*sample))
    assert same(messages[-1], sample)
    assert len(messages) == 1 + signed


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("step", [1, 3, 13, 4096, 1 << 30])
def test_delivery_in_pieces_of_any_size(step: int, signed: bool) -> None:
    samples = [SAMPLES[0], *(sample for sample in SAMPLES if len(sample[0]) < 10_000 or step > 100)]
    if step < 100:
        samples = [(body, [b[:50] for b in buffers]) for body, buffers in samples]
    sender = signer() if signed else None
    encoder = Encoder(sender)
    data = b"".join(bytes(piece) for sample in samples for piece in encoder.encode(*sample))
    messages = decode(data, signer() if signed else None, step)
    assert len(messages) == len(samples)
    assert all(map(same, messages, samples))


@pytest.mark.parametrize("signed", [False, True])
def test_a_blocking_connection(pair: tuple[socket.socket, socket.socket], signed: bool) -> None:
    left = Connection(pair[0], Encoder(signer() if signed else None))
    right = Connection(pair[1], decoder=Decoder(signer() if signed else None))

    def send() -> None:
        for sample in SAMPLES:
            left.send(*sample)
        left.close()

    thread = threading.Thread(target=send)
    thread.start()
    for sample in SAMPLES:
        assert same(right.receive(), sample)
    with pytest.raises(EOFError):
        right.receive()
    thread.join()


@pytest.mark.parametrize("signed", [False, True])
def test_a_non_blocking_connection_never_waits(pair: tuple[socket.socket, socket.socket], signed: bool) -> None:
    pair[0].setblocking(False)
    pair[1].setblocking(False)
    left = Connection(pair[0], Encoder(signer() if signed else None))
    right = Connection(pair[1], decoder=Decoder(signer() if signed else None))
    for sample in SAMPLES * 2:
        left.send(*sample)
    assert left.unsent
    received: list[Message] = []
    while len(received) < 2 * len(SAMPLES):
        left.flush()
        try:
            received += right.read()[0]
        except BlockingIOError:
            pass
    assert left.flush()
    assert all(map(same, received, SAMPLES * 2))


def test_what_is_sent_while_more_waits_keeps_its_order(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].setblocking(False)
    left, right = Connection(pair[0]), Connection(pair[1])
    left.send(b"large", [b"z" * (4 * MEGABYTE)])
    for i in range(100):
        left.send(b"small %d" % i)

    def drain() -> None:
        while left.unsent:
            left.flush()

    thread = threading.Thread(target=drain)
    thread.start()
    assert right.receive()[0] == b"large"
    assert [right.receive()[0] for _ in range(100)] == [b"small %d" % i for i in range(100)]
    thread.join()


def test_more_pieces_than_one_system_call_takes(pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = Connection(pair[0]), Connection(pair[1])
    buffers = [b"%d" % i for i in range(3000)]
    thread = threading.Thread(target=left.send, args=(b"many", buffers))
    thread.start()
    assert [bytes(buffer) for buffer in right.receive()[1]] == buffers
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("huge", [True, False])
@pytest.mark.parametrize("populated", [True, False])
def test_a_forked_child_changes_a_copy(monkeypatch: pytest.MonkeyPatch, huge: bool, populated: bool) -> None:
    monkeypatch.setattr(wire, "_has_huge_pages", lambda: huge)
    monkeypatch.setattr(wire, "_POPULATE_BYTES", 1 << 30 if populated else 0)
    ((_, (buffer,)),) = decode(encoded(b"", [bytes(8 * MEGABYTE)]))
    child = os.fork()
    if child == 0:
        buffer[0] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert buffer[0] == 0


@pytest.mark.parametrize("count", [10, 100_000, 1_000_000])
@pytest.mark.parametrize("signed", [False, True])
def test_arrays_arrive_writable(count: int, signed: bool) -> None:
    array = np.arange(float(count))
    buffers: list[Any] = []
    data = pickle.dumps(array, 5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
    messages = decode(after_hello((data, buffers)), signer()) if signed else decode(encoded(data, buffers))
    copy = pickle.loads(messages[-1][0], buffers=messages[-1][1])
    copy += 1
    np.testing.assert_array_equal(copy, array + 1)


@pytest.mark.parametrize("make", [bytearray, memoryview, lambda b: np.frombuffer(b, "u1"), pickle.PickleBuffer])
def test_buffers_of_every_kind(make: Any) -> None:
    content = bytes(range(256)) * 300
    ((_, buffers),) = decode(encoded(b"body", [make(content)]))
    assert bytes(buffers[0]) == content


# What is no message of ours

VICTIMS = [(b"body" * 5, [b"buffer" * 20]), (b"only a body", [])]


@pytest.mark.parametrize("victim", VICTIMS, ids=["buffers", "body"])
def test_no_byte_may_be_changed(victim: tuple[bytes, list[bytes]]) -> None:
    data = after_hello(victim)
    hello = len(encoded(b"hello", signed=signer()))
    for position in range(hello, len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x41
        try:
            received = decode(bytes(changed), signer())
        except ProtocolError:
            continue
        assert [body for body, _ in received] == [b"hello"], position


@pytest.mark.parametrize("victim", VICTIMS, ids=["buffers", "body"])
def test_no_byte_may_be_missing(victim: tuple[bytes, list[bytes]]) -> None:
    """Half a message is none, and what follows it does not pass for its end."""
    data = after_hello(victim)
    hello = len(encoded(b"hello", signed=signer()))
    for position in range(hello, len(data), 7):
        assert len(decode(data[:position], signer())) == 1
        try:
            received = decode(data[:position] + data[position + 1 :] + b"\0" * 200, signer())
        except ProtocolError:
            continue
        assert len(received) == 1, "it waits for more"


def test_a_replayed_message_is_refused() -> None:
    data = encoded(b"once", signed=signer())
    with pytest.raises(ProtocolError, match="without the key"):
        decode(data + data, signer())


def test_reordered_and_left_out_messages_are_refused() -> None:
    sender = Encoder(signer())
    first, second = (b"".join(map(bytes, sender.encode(body))) for body in (b"first", b"second"))
    with pytest.raises(ProtocolError):
        decode(second + first, signer())
    with pytest.raises(ProtocolError):
        decode(second, signer())
    assert [body for body, _ in decode(first + second, signer())] == [b"first", b"second"]


@pytest.mark.parametrize(
    "other",
    [
        signer(direction=b"from worker"),
        signer(key=b"K" * 32),
        signer(nonces=b"N" * 32),
        None,
    ],
    ids=["reflected", "another key", "another connection", "not signed"],
)
def test_messages_of_others_are_refused(other: Signer | None) -> None:
    data = encoded(b"stranger", signed=other)
    with pytest.raises(ProtocolError):
        decode(data + b"\0" * TAG_BYTES, signer())


def test_the_border_between_parts_is_signed() -> None:
    """The same bytes, divided differently, are another message."""
    sender = signer()
    body, buffer = b"ab", b"cdefgh"
    data = bytearray(encoded(body, [buffer], sender))
    data[: PREFIX.size + 8] = PREFIX.pack(4, 1) + struct.pack("<Q", 4)
    with pytest.raises(ProtocolError):
        decode(bytes(data), signer())


@pytest.mark.parametrize(
    ("size", "count"), [(1 << 17, 0), (1 << 60, 0), (10, 1), (10, 1 << 19), (0, (1 << 32) - 1), ((1 << 64) - 1, 0)]
)
def test_a_peer_without_the_key_cannot_make_us_take_memory(size: int, count: int) -> None:
    with pytest.raises(ProtocolError):
        decode(PREFIX.pack(size, count) + b"\xff" * 64, signer())


@pytest.mark.parametrize("size", [(1 << 64) - 1, 1 << 62])
def test_a_size_that_cannot_be_is_refused_even_from_friends(size: int) -> None:
    """Sizes come before the tag that makes them sure: somebody on the way may have changed them."""
    data = after_hello((b"", [])) + PREFIX.pack(10, 1) + struct.pack("<Q", size) + b"\0" * 64
    with pytest.raises(ProtocolError):
        decode(data, signer())
    with pytest.raises(ProtocolError):
        decode(PREFIX.pack(10, 1) + struct.pack("<Q", size) + b"\0" * 64)


def test_too_many_buffers_are_refused_even_from_friends() -> None:
    with pytest.raises(ProtocolError, match="too many buffers"):
        decode(PREFIX.pack(10, (1 << 20) + 1) + b"\0" * 64)


def test_nothing_is_unpickled_by_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", refuse)
    bomb = b"cos\nsystem\n(S'echo no'\ntR."
    assert decode(encoded(bomb, signed=signer()), signer())[0][0] == bomb
    with pytest.raises(ProtocolError):
        decode(encoded(bomb, signed=signer(key=b"z" * 32)), signer())
    assert "pickle" not in vars(wire)


def test_an_array_that_changes_while_it_is_sent_does_not_break_the_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[0].setblocking(False)
    left = Connection(pair[0], Encoder(signer()))
    right = Connection(pair[1], decoder=Decoder(signer()))
    array = bytearray(4 * MEGABYTE)
    left.send(b"hello")
    left.send(b"array", [array])
    array[-1] = 1
    thread = threading.Thread(target=lambda: [left.flush() for _ in iter(lambda: left.unsent, False)])
    thread.start()
    assert right.receive()[0] == b"hello"
    _, buffers = right.receive()
    thread.join()
    assert buffers[0][-1] == 0


# The handshake


def handshake(worker_key: bytes, executor_key: bytes) -> tuple[Connection, Connection]:
    ours, theirs = socket.socketpair()
    sent, received = greeting(), greeting()
    return (
        secure(ours, executor_key, sent, received, worker=False),
        secure(theirs, worker_key, received, sent, worker=True),
    )


def test_both_directions_of_a_secure_connection() -> None:
    executor, worker = handshake(KEY, KEY)
    for i in range(3):
        executor.send(b"question %d" % i)
        worker.send(b"answer %d" % i)
        assert worker.receive()[0] == b"question %d" % i
        assert executor.receive()[0] == b"answer %d" % i
    executor.close()
    worker.close()


def test_different_keys_do_not_understand_each_other() -> None:
    executor, worker = handshake(b"x" * 32, KEY)
    worker.send(b"hello")
    with pytest.raises(ProtocolError):
        executor.receive()
    executor.close()
    worker.close()


def test_greetings_are_all_different_and_checked() -> None:
    assert len({greeting() for _ in range(100)}) == 100
    sock, other = socket.socketpair()
    with sock, other:
        for wrong in (b"", b"HTTP/1.1 200 OK\r\n\r\n....", greeting()[:-1], b"X" + greeting()[1:]):
            with pytest.raises(ProtocolError):
                secure(sock, KEY, greeting(), wrong, worker=False)
    assert len(greeting()) == GREETING_BYTES


def test_connecting_to_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"220 mail.example.org ESMTP ready to serve\r\n")
                try:
                    while peer.recv(4096):
                        pass
                except ConnectionResetError:
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProtocolError):
            wire.connect("127.0.0.1", server.getsockname()[1], KEY, timeout=10)
        thread.join()


def test_connecting_to_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        wire.connect("127.0.0.1", port, KEY, timeout=10)
