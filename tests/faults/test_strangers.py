"""Peers at the port of an executor that are none of its workers.

They are given what an attacker on the same network has: the address, the source code, and what went over the wire
before. They do not have the key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks

from conftest import Script, StartScript, needs_mpi
from executorlib import SingleNodeExecutor
from executorlib.api import get_command_path
from executorlib.standalone.errors import ExecutorlibSocketError
from executorlib.standalone.interactive.listener import Hello, key_variable
from executorlib.standalone.interactive.messages import HELLO, RESULT, RESULT_HEAD, RUN, SETUP, WELCOME
from executorlib.standalone.interactive.wire import (
    GREETING_BYTES,
    PREFIX,
    TAG_BYTES,
    Encoder,
    Signer,
    connect,
    greeting,
    secure,
)

pytestmark = pytest.mark.faults

CONNECTIONS = 2000
MESSAGES = 10_000
GROWTH_BYTES = 16 << 20


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[bytes]:
    """A pickle that would be noticed; the test fails if it was unpickled anywhere."""
    path = tmp_path / "canary"
    yield pickle.dumps(Canary(path))
    assert not path.exists(), "what a stranger has sent was unpickled"


@pytest.fixture(params=["spawned", "mpi"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SingleNodeExecutor]:
    """An executor with one kept worker that comes over TCP: a serial one, or one of two ranks."""
    resources: dict[str, Any] = {}
    if request.param == "mpi":
        needs_mpi()
        resources = {"cores": 2}
    else:
        monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    with SingleNodeExecutor(max_workers=1, block_allocation=True, resource_dict=resources) as executor:
        executor.submit(tasks.pid).result(40)
        yield executor


def port_of_our_worker() -> int:
    """Where the executor of this test listens: everybody on the machine can read that."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            arguments = child.cmdline()
            if "--zmqport" in arguments:
                return int(arguments[arguments.index("--zmqport") + 1])
    raise AssertionError("no worker has a port")


def first(result: Any) -> Any:
    return result[0] if isinstance(result, list) else result


def replace_worker(executor: SingleNodeExecutor) -> None:
    """Have the executor start another worker, which has to get past whoever is at the door."""
    pid = first(executor.submit(tasks.pid).result(40))
    psutil.Process(pid).kill()
    error = executor.submit(tasks.add, 1, 1).exception(40)  # this one may die with it
    assert error is None or isinstance(error, ExecutorlibSocketError)
    assert first(executor.submit(tasks.add, 2, 2).result(50)) == 4


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def refused(sock: socket.socket) -> bool:
    """Whether the other side hangs up; what it sends before that is no matter."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "dropped a connection" in record.getMessage()
    ]


# What they send


def forged(key: bytes, canary: bytes, sent: bytes, received: bytes) -> list[bytes]:
    """Messages of somebody who knows everything but the key."""
    nonces = received[-16:] + sent[-16:]
    bodies = [
        HELLO + canary,
        HELLO + pickle.dumps(tuple(Hello(worker=1))),
        RESULT_HEAD.pack(RESULT, 0, 1, 0.0, 0.0) + canary,
        canary,
        b"",
    ]
    messages = [
        b"".join(Encoder(Signer(key, nonces, direction)).encode(body))
        for direction in (b"from worker", b"to worker")
        for body in bodies
    ]
    messages += [PREFIX.pack(len(body), 0) + body for body in bodies]  # not signed
    messages += [PREFIX.pack(len(body), 0) + bytes(TAG_BYTES) + body for body in bodies]
    return messages


@pytest.mark.timeout(120)
def test_garbage_halves_and_wrong_keys(
    kept: SingleNodeExecutor, canary: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    port = port_of_our_worker()
    begun: list[bytes] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\0" * 100_000,
        canary * 100,
        b"EXLB0\r\n\0" + bytes(16),
        PREFIX.pack(len(canary), 0) + canary,
    ]
    for garbage in begun:
        with connected(port) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(garbage)
            assert refused(sock)
    with connected(port) as sock:
        for i in range(len(forged(b"x" * 32, canary, greeting(), greeting()))):
            with connected(port) as other, contextlib.suppress(ConnectionError):
                sent = greeting()
                other.sendall(sent)
                received = other.recv(GREETING_BYTES)
                other.sendall(forged(b"x" * 32, canary, sent, received)[i] + bytes(100))
                assert refused(other)
        sock.sendall(greeting()[:10])  # half of it, and then nothing
        assert first(kept.submit(tasks.add, 1, 2).result(40)) == 3
        replace_worker(kept)
    for size, count in ((1 << 62, 0), (70_000, 0), (10, 1), (0, (1 << 32) - 1)):
        with connected(port) as other, contextlib.suppress(ConnectionError):
            other.sendall(greeting() + PREFIX.pack(size, count) + bytes(1000))
            assert refused(other)
    assert len(warnings_in(caplog)) == 1


FLOOD = """
import contextlib, socket, sys, time
port, connections, messages, canary = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), bytes.fromhex(sys.argv[4])
from executorlib.standalone.interactive.wire import greeting, PREFIX
from collections import deque
held = deque()
forged = PREFIX.pack(len(canary), 0) + bytes(32) + canary
for i in range(connections):
    if len(held) > 200:
        held.popleft().close()
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    sock.setblocking(False)
    held.append(sock)
    with contextlib.suppress(OSError):
        if i % 3:
            sock.send(greeting())
        if i % 3 == 1:
            sock.send(forged)
sock = socket.create_connection(("127.0.0.1", port), timeout=20)
with contextlib.suppress(OSError):
    sock.sendall(greeting())
    for i in range(messages):
        sock.sendall(forged)
print("done")
"""


@pytest.mark.timeout(120)
def test_a_flood_of_connections_and_messages(
    kept: SingleNodeExecutor, canary: bytes, caplog: pytest.LogCaptureFixture, script: Script
) -> None:
    """Nobody is locked out, neither memory nor descriptors grow, and it is told once."""
    own = psutil.Process()
    port = port_of_our_worker()
    script(FLOOD, str(port), "100", "100", canary.hex())
    memory, descriptors = own.memory_info().rss, own.num_fds()
    done = script(FLOOD, str(port), str(CONNECTIONS), str(MESSAGES), canary.hex())
    assert done.stdout == "done\n", done.stderr
    assert first(kept.submit(tasks.add, 1, 2).result(40)) == 3
    assert own.memory_info().rss - memory < GROWTH_BYTES
    assert own.num_fds() - descriptors < 70
    replace_worker(kept)
    assert len(warnings_in(caplog)) == 1


@pytest.mark.timeout(120)
def test_a_worker_gets_in_during_a_flood(kept: SingleNodeExecutor, canary: bytes, start_script: StartScript) -> None:
    port = port_of_our_worker()
    flood = start_script(FLOOD, str(port), "1000000", "0", canary.hex())
    for _ in range(3):
        replace_worker(kept)
    assert flood.poll() is None, flood.communicate()


def test_silent_peers_are_shown_out(
    kept: SingleNodeExecutor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("executorlib.standalone.interactive.listener._GREETING_SECONDS", 0.5)
    port = port_of_our_worker()
    silent = [connected(port) for _ in range(5)]
    silent[1].sendall(greeting())
    silent[2].sendall(greeting()[:5])
    start = time.monotonic()
    assert all(refused(sock) for sock in silent)
    assert time.monotonic() - start < 10
    for sock in silent:
        sock.close()
    assert first(kept.submit(tasks.add, 1, 2).result(40)) == 3
    assert len(warnings_in(caplog)) == 1


# On the way between a worker and its executor


class Proxy:
    """Stands between workers and the executor, notes what passes, and may change it.

    Args:
        note: file in which the worker notes the port of its executor
        meddle: called with the direction ("in" to the executor, "out" to the worker), what has passed in it before,
            and the next bytes; returns what to send instead
    """

    def __init__(self, note: Path, meddle: Callable[[str, bytes, bytes], bytes] | None = None) -> None:
        self._note = note
        self._meddle = meddle or (lambda direction, before, data: data)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = [self._server]
        self.port: int = self._server.getsockname()[1]
        self.passed: dict[str, bytes] = {"in": b"", "out": b""}
        self._run(self._accept)

    def _run(self, target: Callable[..., None], *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                worker, _ = self._server.accept()
                executor = connected(self.executor_port)
                executor.settimeout(None)
                self._sockets += [worker, executor]
                self._run(self._pump, "in", worker, executor)
                self._run(self._pump, "out", executor, worker)

    @property
    def executor_port(self) -> int:
        return int(self._note.read_text())

    def _pump(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                changed = self._meddle(direction, self.passed[direction], data)
                self.passed[direction] += data
                sink.sendall(changed)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def through_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Proxy]]:
    """Has workers connect to a proxy in the place of their executor."""
    made: list[Proxy] = []

    def make(meddle: Callable[[str, bytes, bytes], bytes] | None = None) -> Proxy:
        proxy = Proxy(tmp_path / "port", meddle)
        made.append(proxy)
        wrapper = tmp_path / "python"
        wrapper.write_text(
            f"#!{sys.executable}\n"
            "import os, sys\n"
            "arguments = sys.argv[1:]\n"
            "if '--zmqport' in arguments:\n"
            "    at = arguments.index('--zmqport') + 1\n"
            f"    open({str(tmp_path / 'port')!r}, 'w').write(arguments[at])\n"
            f"    os.environ['EXECUTORLIB_KEY_{proxy.port}'] = os.environ.pop('EXECUTORLIB_KEY_' + arguments[at])\n"
            f"    arguments[at] = '{proxy.port}'\n"
            f"os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])\n"
        )
        wrapper.chmod(0o755)
        monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
        monkeypatch.setattr(sys, "executable", str(wrapper))
        return proxy

    yield make
    for proxy in made:
        proxy.close()


def test_what_a_worker_has_sent_is_of_no_use_to_others(
    through_proxy: Callable[..., Proxy], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All that a worker has sent is sent again: whole, without its greeting, and back to front."""
    ran = tmp_path / "ran"
    proxy = through_proxy()
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as executor:
        for i in range(5):
            executor.submit(tasks.append, ran, i).result(40)
        recorded = dict(proxy.passed)
        assert recorded["in"].startswith(b"EXLB1")
        assert len(recorded["in"]) > 5 * RESULT_HEAD.size
        for replay in (
            recorded["in"],
            greeting() + recorded["in"][GREETING_BYTES:],
            recorded["out"],  # reflected
            greeting() + recorded["out"][GREETING_BYTES:],
            recorded["out"][:GREETING_BYTES] + recorded["in"][GREETING_BYTES:],
        ):
            with connected(proxy.executor_port) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(replay)
                assert refused(sock)
        assert executor.submit(tasks.add, 1, 2).result(40) == 3
    assert ran.read_text().split() == list("01234")
    assert len(warnings_in(caplog)) == 1


def _replay_result(direction: str, before: bytes, data: bytes) -> bytes:
    """The first result comes twice."""
    return data * 2 if direction == "in" and len(before) > GREETING_BYTES + 100 else data


def _flip_bit(direction: str, before: bytes, data: bytes) -> bytes:
    if direction == "out" and len(before) > 3000:
        return data[:-1] + bytes([data[-1] ^ 1])
    return data


@pytest.mark.parametrize("meddle", [_replay_result, _flip_bit])
def test_a_connection_that_is_meddled_with_is_given_up(
    through_proxy: Callable[..., Proxy], meddle: Callable[[str, bytes, bytes], bytes], tmp_path: Path
) -> None:
    """Calls are answered rightly or fail; nothing runs twice, and no wrong result is believed."""
    ran = tmp_path / "ran"
    meddling = threading.Event()
    meddling.set()
    through_proxy(lambda *args: meddle(*args) if meddling.is_set() else args[-1])
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as executor:
        futures = [executor.submit(note_and_add, ran, i) for i in range(20)]
        for i, future in enumerate(futures):
            error = future.exception(40)
            if error is None:
                assert future.result() == i + 1
            else:
                assert isinstance(error, ExecutorlibSocketError)
                meddling.clear()
        meddling.clear()
        assert executor.submit(tasks.add, 1, 2).result(40) == 3
    runs = ran.read_text().split() if ran.exists() else []
    assert len(runs) == len(set(runs)), "each call ran once at most"


def note_and_add(path: Path, i: int) -> int:
    tasks.append(path, i)
    return i + 1


# A worker that meets somebody else at its executor's port


@pytest.mark.parametrize("program", ["interactive_serial.py", "interactive_parallel.py"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_worker_obeys_nobody_without_the_key(canary: bytes, tmp_path: Path, program: str, signed: bool) -> None:
    if program == "interactive_parallel.py":
        needs_mpi()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        worker = subprocess.Popen(
            [sys.executable, get_command_path(program), "--host", "127.0.0.1", "--zmqport", str(port)],
            env={**os.environ, key_variable(port): (b"k" * 32).hex()},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            server.settimeout(40)
            peer, _ = server.accept()
            with peer:
                theirs = b""
                while len(theirs) < GREETING_BYTES:
                    theirs += peer.recv(GREETING_BYTES - len(theirs))
                ours = greeting()
                peer.sendall(ours)
                with contextlib.suppress(OSError):
                    if signed:  # with another key
                        impostor = secure(peer, b"x" * 32, ours, theirs, worker=False)
                        for kind in (WELCOME, SETUP, RUN, b"M"):
                            impostor.send(kind + canary)
                    else:
                        for kind in (WELCOME, SETUP, RUN, b"M"):
                            peer.sendall(PREFIX.pack(1 + len(canary), 0) + kind + canary)
                        peer.sendall(bytes(1000))
                _, err = worker.communicate(timeout=40)
            assert b"without the key" in err or b"large message" in err
        finally:
            worker.kill()
            worker.communicate()


def test_a_worker_waits_for_its_interface() -> None:
    """A `SocketInterface` greets its worker when it is used, which may be long after the start."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet_late() -> None:
            peer, _ = server.accept()
            with peer:
                time.sleep(1.5)
                peer.sendall(greeting())
                peer.recv(100)

        thread = threading.Thread(target=greet_late)
        thread.start()
        connection = connect("127.0.0.1", server.getsockname()[1], b"k" * 32, timeout=0.5)
        connection.close()
        thread.join()
