"""`SocketInterface`: dictionaries to a worker and back, and the end of either side."""

from __future__ import annotations

import math
import operator
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dictionaries import SERIAL, call, keys

from conftest import Eventually, Script, has_ended
from executorlib.api import (
    ExecutorlibSocketError,
    SocketInterface,
    SubprocessSpawner,
    interface_bootup,
)
from executorlib.standalone.errors import RemoteTraceback, TaskExitError, WorkerDiedError, WorkerStartError


@pytest.fixture
def interface() -> Iterator[SocketInterface]:
    """A worker of this library, started by a subprocess spawner."""
    made = interface_bootup(SERIAL, connections=SubprocessSpawner(), hostname_localhost=True)
    yield made
    made.shutdown()


# Calls


def test_calls_are_answered_in_the_order_in_which_they_were_sent(interface: SocketInterface) -> None:
    assert interface.status
    assert interface.send_and_receive_dict(call(math.hypot, 3, 4)) == {"result": 5.0}
    for number in range(20):
        interface.send_dict(call(operator.neg, number))
    assert [interface.receive_dict() for _ in range(20)] == [{"result": -number} for number in range(20)]


def test_a_dictionary_may_have_entries_that_the_worker_does_not_know(interface: SocketInterface) -> None:
    """conda_subprocess sends a resource_dict beside the call."""
    request = {"fn": operator.add, "args": [1, 2], "resource_dict": {"cores": 1}}
    assert interface.send_and_receive_dict(request) == {"result": 3}
    interface.send_dict({"something": "else"})  # is not answered
    assert interface.send_and_receive_dict(request) == {"result": 3}


def test_large_arrays_go_both_ways_at_the_same_time(interface: SocketInterface) -> None:
    """Neither side waits for the other to read before it reads itself; the result may be written to."""
    np = pytest.importorskip("numpy")
    array = np.arange(4_000_000, dtype=float)
    for _ in range(2):
        interface.send_dict(call(np.negative, array))
    for _ in range(2):
        result = interface.receive_dict()["result"]
        assert np.array_equal(result, -array)
        result[0] = 1


def test_the_values_of_init_fill_what_a_call_leaves_open(interface: SocketInterface) -> None:
    """A model is loaded once and used by every call, unless the call brings its own."""

    def init(executorlib_worker_id: int) -> dict[str, Any]:
        return {"model": f"model {executorlib_worker_id}", "unused": None}

    def use(x: int, model: str = "none", executorlib_worker_id: int = -1) -> tuple[int, str, int]:
        return x, model, executorlib_worker_id

    assert interface.send_and_receive_dict(call(use, 1)) == {"result": (1, "none", 0)}
    assert interface.send_and_receive_dict({"init": True, **call(init)}) == {"result": True}
    assert interface.send_and_receive_dict(call(use, 1)) == {"result": (1, "model 0", 0)}
    assert interface.send_and_receive_dict(call(use, 2, "mine")) == {"result": (2, "mine", 0)}
    assert interface.send_and_receive_dict(call(use, 3, model="mine")) == {"result": (3, "mine", 0)}


def test_a_worker_knows_its_number_and_its_host() -> None:
    """The host's name leads to the program from elsewhere too: that is the default."""

    class Recorder(SubprocessSpawner):
        command: list[str]

        def generate_command(self, command_lst: list[str]) -> list[str]:
            self.command = command_lst
            return super().generate_command(command_lst)

    def number(executorlib_worker_id: int) -> int:
        return executorlib_worker_id

    spawner = Recorder()
    given = list(SERIAL)
    interface = interface_bootup(given, connections=spawner, hostname_localhost=False, worker_id=7)
    assert interface.send_and_receive_dict(call(number)) == {"result": 7}
    assert given == SERIAL
    assert spawner.command[2:-1] == ["--host", socket.gethostname(), "--worker-id", "7", "--zmqport"]
    interface.shutdown()


def test_an_error_comes_back_with_the_traceback_of_the_worker(interface: SocketInterface) -> None:
    def compute() -> None:
        raise ValueError("on purpose")

    error = interface.send_and_receive_dict(call(compute))["error"]
    assert isinstance(error, ValueError)
    assert str(error) == "on purpose"
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in compute" in str(error.__cause__)
    assert "dict_calls.py" not in str(error.__cause__)
    assert interface.send_and_receive_dict(call(math.sqrt, 4)) == {"result": 2.0}


def test_what_cannot_travel_is_an_error_and_the_worker_goes_on(interface: SocketInterface) -> None:
    def make_lock() -> Any:
        import threading

        return threading.Lock()

    class Trap:
        def __reduce__(self) -> Any:
            return operator.truediv, (1, 0)

    def make_trap(kind: type = Trap) -> Any:
        return kind()

    with pytest.raises(TypeError, match="pickle"):
        interface.send_dict(call(operator.not_, make_lock()))
    assert isinstance(interface.send_and_receive_dict(call(make_lock))["error"], TypeError)
    assert isinstance(interface.send_and_receive_dict(call(operator.not_, Trap()))["error"], ZeroDivisionError)
    assert "cannot be unpickled" in str(interface.send_and_receive_dict(call(make_trap))["error"])
    assert isinstance(interface.send_and_receive_dict(call(sys.exit, 3))["error"], TaskExitError)
    assert interface.send_and_receive_dict(call(math.sqrt, 4)) == {"result": 2.0}


def test_the_sizes_of_what_travels_are_logged_on_request(caplog: pytest.LogCaptureFixture) -> None:
    interface = interface_bootup(SERIAL, SubprocessSpawner(), hostname_localhost=True, log_obj_size=True)
    interface.send_and_receive_dict(call(bytes, 1000))
    interface.shutdown()
    texts = [record.getMessage() for record in caplog.records if record.name == "executorlib"]
    assert texts[0].startswith("Send dictionary of size: ")
    assert texts[1].startswith("Received dictionary of size: 10")


# The end of a worker


def test_a_shutdown_ends_the_worker_and_takes_back_the_key() -> None:
    spawner = SubprocessSpawner()
    interface = interface_bootup(SERIAL, connections=spawner, hostname_localhost=True)
    assert len(keys()) == 1
    assert interface.send_and_receive_dict(call(os.getenv, keys()[0])) == {"result": None}
    assert interface.shutdown(wait=True) is True
    assert not spawner.poll()
    assert not keys()
    assert interface.shutdown(wait=True) is None
    with pytest.raises(ExecutorlibSocketError, match="shut down"):
        interface.send_dict({})
    assert isinstance(interface.receive_dict()["error"], ExecutorlibSocketError)


def test_a_shutdown_lets_the_worker_do_what_it_was_sent(tmp_path: Path) -> None:
    interface = interface_bootup(SERIAL, connections=SubprocessSpawner(), hostname_localhost=True)
    for name in "abc":
        interface.send_dict(call(time.sleep, 0.1))
        interface.send_dict(call(os.mkdir, str(tmp_path / name)))
    assert interface.shutdown(wait=True) is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_shutdown_that_does_not_wait_ends_a_busy_worker(eventually: Eventually) -> None:
    interface = interface_bootup(SERIAL, connections=SubprocessSpawner(), hostname_localhost=True)
    worker = psutil.Process(interface.send_and_receive_dict(call(os.getpid))["result"])
    interface.send_dict(call(time.sleep, 60))
    start = time.monotonic()
    assert interface.shutdown(wait=False) is None
    assert time.monotonic() - start < 4
    eventually(lambda: not worker.is_running())


def test_a_shutdown_does_not_wait_for_a_worker_that_is_starting() -> None:
    interface = interface_bootup(SERIAL, connections=SubprocessSpawner(), hostname_localhost=True)
    start = time.monotonic()
    interface.shutdown()
    assert time.monotonic() - start < 4


def test_an_interface_that_is_forgotten_ends_its_worker(eventually: Eventually) -> None:
    interface = interface_bootup(SERIAL, connections=SubprocessSpawner(), hostname_localhost=True)
    worker = psutil.Process(interface.send_and_receive_dict(call(os.getpid))["result"])
    del interface
    eventually(lambda: not worker.is_running())
    assert not keys()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("request_", "words"),
    [
        pytest.param(call(os.kill, 0, signal.SIGKILL), "SIGKILL", id="SIGKILL"),
        pytest.param(call(os._exit, 3), "exit code 3", id="exit3"),
    ],
)
def test_a_worker_that_dies_is_told_of_at_once(
    interface: SocketInterface, request_: dict[str, Any], words: str
) -> None:
    pid = interface.send_and_receive_dict(call(os.getpid))["result"]
    start = time.monotonic()
    error = interface.send_and_receive_dict(request_)["error"]
    assert isinstance(error, WorkerDiedError)
    assert words in str(error)
    assert str(pid) in str(error)
    with pytest.raises(ExecutorlibSocketError, match=words):
        interface.send_dict(call(math.sqrt, 4))
    assert time.monotonic() - start < 5


@pytest.mark.faults
def test_a_worker_that_died_is_replaced_by_another_bootup(interface: SocketInterface) -> None:
    """The restart of block allocation: the same command, port and key."""
    assert "error" in interface.send_and_receive_dict(call(os._exit, 3))
    interface.bootup()
    assert interface.status
    assert interface.send_and_receive_dict(call(math.sqrt, 4)) == {"result": 2.0}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("code", "words"), [("import sys; sys.exit('no')", "exit code 1"), ("import os; os.abort()", "SIGABRT")]
)
def test_a_worker_that_ends_before_it_connects_is_told_of(code: str, words: str) -> None:
    command = [sys.executable, "-c", code]
    interface = interface_bootup(command, connections=SubprocessSpawner(), hostname_localhost=True)
    error = interface.send_and_receive_dict(call(math.sqrt, 4))["error"]
    assert isinstance(error, WorkerStartError)
    assert words in str(error)
    assert "import" in str(error)
    interface.shutdown()


@pytest.mark.faults
def test_the_worker_of_a_program_that_was_killed_ends_in_the_middle_of_a_call(
    script_environment: dict[str, str], eventually: Eventually
) -> None:
    """And so does what the call itself has started."""
    code = (
        "import subprocess, sys\n"
        "from executorlib.api import SubprocessSpawner, get_command_path, interface_bootup\n"
        "command = [sys.executable, get_command_path('interactive_serial.py')]\n"
        "interface = interface_bootup(command, SubprocessSpawner(), hostname_localhost=True)\n"
        "interface.send_dict({'fn': subprocess.run, 'args': [['sleep', '60']], 'kwargs': {}})\n"
        "interface.receive_dict()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=script_environment) as program:
        children: list[psutil.Process] = []

        def sleeps() -> bool:
            children[:] = psutil.Process(program.pid).children(recursive=True)
            return any(child.name() == "sleep" for child in children)

        eventually(sleeps)
        program.kill()
    eventually(lambda: all(has_ended(child) for child in children), 5)


@pytest.mark.faults
def test_the_worker_survives_a_fork_of_the_program(script: Script) -> None:
    """A child that ends takes its copy of the interface with it, not the worker."""
    done = script(
        "import math, os, sys\n"
        "from executorlib.api import SubprocessSpawner, get_command_path, interface_bootup\n"
        "command = [sys.executable, get_command_path('interactive_serial.py')]\n"
        "interface = interface_bootup(command, SubprocessSpawner(), hostname_localhost=True)\n"
        "request = {'fn': math.sqrt, 'args': [4], 'kwargs': {}}\n"
        "print(interface.send_and_receive_dict(request), flush=True)\n"
        "if os.fork() == 0:\n"
        "    interface.shutdown()\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "print(interface.send_and_receive_dict(request))\n"
        "interface.shutdown()\n"
    )
    assert done.stdout.splitlines() == ["{'result': 2.0}"] * 2, done.stderr
