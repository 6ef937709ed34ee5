"""At the port of a `SocketInterface`: strangers, programs and spawners of other packages, several ranks."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dictionaries import SERIAL, call

from conftest import SOURCES, Eventually
from executorlib.api import (
    ExecutorlibSocketError,
    MpiExecSpawner,
    SocketInterface,
    SubprocessSpawner,
    get_command_path,
    interface_bootup,
    interface_connect,
)
from executorlib.standalone.errors import WorkerStartError
from executorlib.standalone.interactive.wire import GREETING_BYTES, greeting

# Strangers


@pytest.mark.faults
def test_strangers_at_the_port_do_not_lock_the_worker_out(caplog: pytest.LogCaptureFixture) -> None:
    """Those who are silent, who send garbage, and who know the greeting and not the key; told of once."""
    interface = SocketInterface(spawner=SubprocessSpawner())
    port = interface.bind_to_random_port()
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    strangers[1].sendall(greeting() + b"\0" * 200)
    strangers[2].sendall(greeting()[: GREETING_BYTES - 1])
    interface.bootup([*SERIAL, "--zmqport", str(port)])
    strangers += [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    assert interface.send_and_receive_dict(call(math.sqrt, 4)) == {"result": 2.0}
    late = socket.create_connection(("127.0.0.1", port))
    late.sendall(b"\0" * 10_000)
    assert interface.send_and_receive_dict(call(math.sqrt, 9)) == {"result": 3.0}
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "dropped a connection" in warnings[0].getMessage()
    for stranger in [*strangers, late]:
        stranger.close()
    interface.shutdown()


@pytest.mark.faults
def test_a_program_without_the_key_is_told_so() -> None:
    with pytest.raises(ExecutorlibSocketError, match="EXECUTORLIB_KEY_12345"):
        interface_connect("localhost", "12345")


# Programs and spawners of other packages

WORKER = """
import sys

from executorlib.api import interface_connect, interface_receive, interface_send, interface_shutdown

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
context, socket = interface_connect(host=arguments.get("--host", "localhost"), port=arguments["--zmqport"])
total = 0
while True:
    request = interface_receive(socket=socket)
    if request.get("shutdown"):
        interface_send(socket=socket, result_dict={"result": True})
        interface_shutdown(socket=socket, context=context)
        break
    if request["command"] == "add":
        total = total + request["value"]
        interface_send(socket=socket, result_dict={"result": total})
    else:
        interface_send(socket=socket, result_dict={"error": KeyError(request["command"])})
"""


@pytest.fixture
def worker_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = tmp_path / "other worker.py"
    path.write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(SOURCES))
    return [sys.executable, str(path)]


@pytest.mark.parametrize("localhost", [True, False])
def test_a_worker_program_of_another_package_has_dictionaries_of_its_own(
    worker_program: list[str], localhost: bool
) -> None:
    interface = interface_bootup(worker_program, connections=SubprocessSpawner(), hostname_localhost=localhost)
    assert interface.send_and_receive_dict({"command": "add", "value": 2}) == {"result": 2}
    assert interface.send_and_receive_dict({"command": "add", "value": 3}) == {"result": 5}
    assert isinstance(interface.send_and_receive_dict({"command": "?"})["error"], KeyError)
    np = pytest.importorskip("numpy")
    array = np.ones(1_000_000)
    assert np.array_equal(interface.send_and_receive_dict({"command": "add", "value": array})["result"], array + 5)
    assert interface.shutdown(wait=True) is True


@pytest.mark.faults
def test_a_worker_program_learns_that_its_program_is_gone(worker_program: list[str]) -> None:
    """It does not wait for ever for a dictionary that nobody will send."""
    interface = SocketInterface()
    port = interface.bind_to_random_port()
    command = [*worker_program, "--zmqport", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert interface.send_and_receive_dict({"command": "add", "value": 1}) == {"result": 1}
        interface._reset_socket()
        _, err = process.communicate(timeout=20)
    assert "the program that has started this worker is gone" in err


class OtherPythonSpawner(SubprocessSpawner):
    """As that of conda_subprocess: its own process, under another environment's Python."""

    def __init__(self, prefix: Path, cwd: str | None = None, cores: int = 1) -> None:
        super().__init__(cwd=cwd, cores=cores)
        self._prefix = prefix

    def bootup(self, command_lst: list[str], stop_function: Callable[[], bool] | None = None) -> bool:
        program, *arguments = self.generate_command(command_lst=command_lst)
        assert program == "python"
        self._process = subprocess.Popen(
            args=[str(self._prefix / "bin" / "python"), *arguments],
            cwd=self._cwd,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        return self.poll()


@pytest.mark.skipif(sys.platform == "win32", reason="a virtual environment has another layout")
@pytest.mark.parametrize("wait", [True, False])
def test_a_spawner_of_another_package_runs_the_worker_in_another_environment(
    tmp_path: Path, wait: bool, eventually: Eventually
) -> None:
    """The environment has neither this library nor its dependencies; nor does the worker see ours."""
    venv.create(tmp_path / "env", symlinks=True)
    spawner = OtherPythonSpawner(tmp_path / "env", cwd=str(tmp_path))
    interface = SocketInterface(spawner=spawner)
    command = ["python", get_command_path("interactive_serial.py")]
    command += ["--zmqport", str(interface.bind_to_random_port())]
    interface.bootup(command_lst=command)
    there = interface.send_and_receive_dict(call(sysconfig.get_path, "purelib"))["result"]
    assert Path(there).is_relative_to(tmp_path / "env")
    assert interface.send_and_receive_dict(call(os.getcwd)) == {"result": str(tmp_path)}
    found = interface.send_and_receive_dict(call(eval, "__import__('sys').path"))["result"]
    assert str(SOURCES) not in found
    assert not [path for path in found if "site-packages" in path and not path.startswith(str(tmp_path))]
    process = spawner._process
    interface.shutdown(wait=wait)
    eventually(lambda: process.poll() is not None)
    assert spawner._process is None


@pytest.mark.faults
def test_a_spawner_that_cannot_start_says_so_by_its_status() -> None:
    """As one whose batch job was refused."""

    class Refused(SubprocessSpawner):
        def bootup(self, command_lst: list[str], stop_function: Callable[[], bool] | None = None) -> bool:
            return False

    interface = interface_bootup(SERIAL, connections=Refused(), hostname_localhost=True)
    assert not interface.status
    interface.status = True
    assert interface.status
    with pytest.raises(WorkerStartError, match="ended before it connected"):
        interface.send_dict({})
    interface.shutdown()


def test_nothing_is_started_when_the_stop_function_says_so() -> None:
    spawner = SubprocessSpawner()
    interface = interface_bootup(SERIAL, spawner, hostname_localhost=True, stop_function=lambda: True)
    assert not interface.status
    assert spawner._process is None
    interface.shutdown()


@pytest.mark.faults
def test_a_worker_that_never_connects_is_waited_for_until_the_stop_function_says_so() -> None:
    answers = iter([False, False])
    interface = SocketInterface(spawner=SubprocessSpawner(), time_out_ms=50)
    port = interface.bind_to_random_port()
    command = [sys.executable, "-c", "import time; time.sleep(60)", str(port)]
    interface.bootup(command, stop_function=lambda: next(answers, True))
    assert interface.status
    with pytest.raises(ExecutorlibSocketError, match="stop function"):
        interface.send_dict({})
    interface.shutdown()


def test_a_worker_needs_a_command_a_spawner_and_a_port() -> None:
    with pytest.raises(ValueError, match="command"):
        SocketInterface(spawner=SubprocessSpawner()).bootup()
    with pytest.raises(ValueError, match="spawner"):
        SocketInterface().bootup(SERIAL)
    with pytest.raises(ValueError, match="bind_to_random_port"):
        SocketInterface(spawner=SubprocessSpawner()).bootup(SERIAL)
    SocketInterface().shutdown()


# MPI


@pytest.fixture
def parallel_program(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("PYTHONPATH", str(SOURCES))
    return [sys.executable, get_command_path("interactive_parallel.py")]


@pytest.mark.mpi
def test_several_ranks_answer_with_the_list_of_their_results(parallel_program: list[str]) -> None:
    def init() -> dict[str, Any]:
        from mpi4py import MPI

        return {"rank": MPI.COMM_WORLD.rank}

    def use(x: int, rank: int) -> tuple[int, int]:
        return x, rank

    def fail(rank: int) -> None:
        raise ValueError(f"rank {rank}")

    spawner = MpiExecSpawner(cores=2)
    interface = interface_bootup(parallel_program, connections=spawner, hostname_localhost=True)
    assert interface.send_and_receive_dict({"init": True, **call(init)}) == {"result": True}
    assert interface.send_and_receive_dict(call(use, 5)) == {"result": [(5, 0), (5, 1)]}
    assert str(interface.send_and_receive_dict(call(fail))["error"]) == "rank 0"
    assert interface.send_and_receive_dict(call(use, 6)) == {"result": [(6, 0), (6, 1)]}
    assert interface.shutdown(wait=True) is True


@pytest.mark.mpi
@pytest.mark.faults
def test_a_rank_that_fails_alone_is_told_of_while_the_others_wait_for_it(parallel_program: list[str]) -> None:
    def fail_alone() -> None:
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            raise ValueError("alone")
        MPI.COMM_WORLD.Barrier()

    spawner = MpiExecSpawner(cores=2)
    interface = interface_bootup(parallel_program, connections=spawner, hostname_localhost=True)
    start = time.monotonic()
    error = interface.send_and_receive_dict(call(fail_alone))["error"]
    assert isinstance(error, ValueError)
    assert str(error) == "alone"
    assert time.monotonic() - start < 10
    assert isinstance(interface.send_and_receive_dict(call(fail_alone))["error"], ExecutorlibSocketError)
    interface.bootup()
    assert interface.send_and_receive_dict(call(math.sqrt, 4)) == {"result": [2.0, 2.0]}
    interface.shutdown()


@pytest.mark.mpi
@pytest.mark.faults
def test_a_serial_program_on_several_ranks_is_an_error_and_no_wrong_answer() -> None:
    interface = interface_bootup(SERIAL, connections=MpiExecSpawner(cores=2), hostname_localhost=True)
    error = interface.send_and_receive_dict(call(math.sqrt, 4))["error"]
    assert isinstance(error, WorkerStartError)
    assert "2 MPI ranks but sees 1" in str(error)
    interface.shutdown()
