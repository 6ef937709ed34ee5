"""Feeds changed messages and files to their readers, in a process of its own: ``fuzzing.py KIND SEED COUNT FOLDER``.

It prints how the inputs ended. An input that ends in any other way than it may is left in the folder.
"""

from __future__ import annotations

import os
import pickle
import random
import resource
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executorlib.standalone.cache_entry import CacheEntry
from executorlib.standalone.cache_file import CacheFileError, read, read_all, write
from executorlib.standalone.interactive.listener import Guest, Hello
from executorlib.standalone.interactive.messages import HELLO
from executorlib.standalone.interactive.wire import (
    GREETING_BYTES,
    Decoder,
    Encoder,
    Message,
    ProtocolError,
    Signer,
    greeting,
)

KEY, NONCES = b"k" * 32, b"n" * 32
NUMBERS = [0, 1, 2, 255, 1 << 15, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1]
MEMORY_BYTES = 3 << 30


class Canary:
    """Leaves a directory where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class Bytes:
    """A socket from which some bytes come in pieces of any size."""

    def __init__(self, data: bytes, draw: random.Random) -> None:
        self._data = data
        self._at = 0
        self._draw = draw

    def recv(self, size: int) -> bytes:
        size = min(size, self._draw.choice([7, 100, 5000, 1 << 20]))
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def recv_into(self, view: memoryview) -> int:
        piece = self.recv(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def send(self, data: bytes) -> int:
        return len(data)


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Changed in one to four of the ways in which bytes go wrong, or are made to."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 4])):
        at = draw.randrange(len(changed) + 1)
        if draw.random() < 0.5:  # where the structure is
            at = min(at, draw.randrange(400))
        way = draw.randrange(8)
        if way == 0:
            for _ in range(draw.choice([1, 1, 2, 8])):
                if changed:
                    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        elif way == 1:
            del changed[at:]
        elif way == 2:
            del changed[at : at + draw.choice([1, 4, 8, 50])]
        elif way == 3:
            changed[at:at] = draw.randbytes(draw.choice([1, 4, 8, 100]))
        elif way == 4:
            number = draw.choice(NUMBERS) + draw.choice([-1, 0, 0, 1])
            changed[at : at + 8] = struct.pack("<q", max(-1, min(number, (1 << 63) - 1)))
        elif way == 5:
            changed[at : at + 4] = struct.pack("<I", draw.choice(NUMBERS) & 0xFFFFFFFF)
        elif way == 6:
            changed[at : at + 200] = changed[at : at + 400]
        else:
            other = draw.choice(others)
            start = draw.randrange(len(other) + 1)
            changed[at : at + 64] = other[start : start + draw.choice([8, 64, 500])]
    return bytes(changed)


# The channel


def conversation(canary: bytes, signed: bool) -> tuple[list[Message], bytes]:
    sent: list[Message] = [
        (b"first", ()),
        (canary, ()),
        (b"", ()),
        (canary, (b"a" * 50, b"", canary)),
        (b"long" * 500, (b"b" * 2000,)),
        (b"last", ()),
    ]
    encoder = Encoder(Signer(KEY, NONCES, b"to worker") if signed else None)
    return sent, b"".join(bytes(piece) for body, buffers in sent for piece in encoder.encode(body, buffers))


def decode(data: bytes, signed: bool, draw: random.Random) -> tuple[str, list[Message]]:
    decoder = Decoder(Signer(KEY, NONCES, b"to worker") if signed else None)
    sock: Any = Bytes(data, draw)
    messages: list[Message] = []
    try:
        while True:
            some, closed = decoder.read(sock)
            messages += some
            if closed:
                return "waits for more", messages
    except ProtocolError:
        return "ProtocolError", messages


def fuzz_wire(canary: bytes, draw: random.Random, folder: Path) -> Callable[[], tuple[str, bytes]]:
    """The decoder; what it takes for signed is what was sent, in order."""
    samples = {signed: conversation(canary, signed) for signed in (True, False)}
    others = [data for _, data in samples.values()] + [greeting()]

    def once() -> tuple[str, bytes]:
        signed = draw.random() < 0.6
        sent, data = samples[signed]
        changed = mutated(data, others, draw)
        how, messages = decode(changed, signed, draw)
        if signed:
            plain = [(body, [bytes(buffer) for buffer in buffers]) for body, buffers in messages]
            if plain != [(body, list(buffers)) for body, buffers in sent[: len(plain)]]:
                return "WRONG: it believes what nobody has sent", changed
        return f"{'signed' if signed else 'plain'}: {how}", changed

    return once


def fuzz_door(canary: bytes, draw: random.Random, folder: Path) -> Callable[[], tuple[str, bytes]]:
    """The door for workers: who comes in is the worker that has the key."""
    hello = Hello(7, 0, 1, 4242, "host", "3.11")

    def once() -> tuple[str, bytes]:
        ours: Any = Bytes(b"", draw)
        guest = Guest(ours)
        sent = greeting()
        nonces = guest._sent[-16:] + sent[-16:]
        friend = draw.random() < 0.5
        body = HELLO + (pickle.dumps(tuple(hello)) if friend else canary)
        key = KEY if friend else draw.choice([b"x" * 32, b"", KEY[:31]])
        signed = Encoder(Signer(key, nonces, b"from worker")).encode(body)
        data = sent + b"".join(bytes(piece) for piece in signed)
        if draw.random() < 0.9:
            data = mutated(data, [greeting(), canary], draw)
        guest.sock = Bytes(data, draw)  # type: ignore[assignment]
        try:
            for _ in range(10_000):
                introduced = guest.read(KEY)
                if introduced is not None:
                    wrong = not friend or introduced[0] != hello
                    return ("WRONG: a stranger comes in" if wrong else "comes in"), data
        except ProtocolError:
            return "ProtocolError", data
        return "WRONG: it never ends", data

    assert GREETING_BYTES == 24
    return once


# The cache


def fuzz_cache(canary: bytes, draw: random.Random, folder: Path) -> Callable[[], tuple[str, bytes]]:
    """The reader of cache files, with files of this library."""
    path = str(folder / "sample")
    contents = {"function": canary, "input_args": canary, "output": canary * 3, "runtime": canary}
    write(path, {name: [content] for name, content in contents.items()})
    return _files([Path(path).read_bytes()], draw, folder)


def fuzz_hdf5(canary: bytes, draw: random.Random, folder: Path) -> Callable[[], tuple[str, bytes]]:
    """The same with files of the HDF5 library, for which it is asked."""
    import h5py
    import numpy as np

    samples = []
    for options in ({}, {"compression": "gzip"}, {"chunks": (50,), "fletcher32": True}):
        for version in ("earliest", "latest"):
            path = folder / "sample"
            with h5py.File(path, "w", libver=version) as file:
                for name in ("function", "input_args", "output", "error"):
                    file.create_dataset(name, data=np.frombuffer(canary * 2, "u1"), **options)
            samples.append(path.read_bytes())
    return _files(samples, draw, folder)


def _files(samples: list[bytes], draw: random.Random, folder: Path) -> Callable[[], tuple[str, bytes]]:
    path = str(folder / "key_o.h5")

    def once() -> tuple[str, bytes]:
        changed = mutated(draw.choice(samples), samples, draw)
        with open(path, "wb") as file:
            file.write(changed)
        look = draw.randrange(3)
        try:
            if look == 0:
                found: Any = read(path, ("output", "error"))
            elif look == 1:
                found = read_all(path, largest=100)
            else:
                found = CacheEntry(path).keys()
        except CacheFileError:
            return "CacheFileError", changed
        return ("read" if found else "nothing found"), changed

    return once


KINDS = {"wire": fuzz_wire, "door": fuzz_door, "cache": fuzz_cache, "hdf5": fuzz_hdf5}


def main(kind: str, seed: str, count: str, where: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    folder = Path(where)
    draw = random.Random(int(seed))
    canary = folder / "canary"
    once = KINDS[kind](pickle.dumps(Canary(canary)), draw, folder)
    ended: Counter[str] = Counter()
    for number in range(int(count)):
        state = draw.getstate()
        try:
            how, data = once()
        except BaseException as error:
            (folder / "state").write_bytes(pickle.dumps(state))
            raise AssertionError(f"input {number} of seed {seed}") from error
        ended[how] += 1
        if how.startswith("WRONG") or canary.exists():
            (folder / "wrong").write_bytes(data)
            raise AssertionError(f"input {number} of seed {seed}: {how}, unpickled: {canary.exists()}")
    for how, times in sorted(ended.items()):
        print(f"{how}: {times}")


if __name__ == "__main__":
    main(*sys.argv[1:5])
