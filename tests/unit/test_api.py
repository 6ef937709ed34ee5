"""`executorlib.api`: the names that libraries build on, and the spawners."""

from __future__ import annotations

import importlib
import inspect
import os
import queue
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from dictionaries import SERIAL, call

from conftest import Eventually, Script, has_ended
from executorlib.api import (
    ExecutorlibSocketError,
    MpiExecSpawner,
    SubprocessSpawner,
    cancel_items_in_queue,
    get_command_path,
    interface_bootup,
)
from executorlib.standalone import command as command_module
from executorlib.standalone.interactive import spawner as spawner_module

_SPAWNER = "cwd=None, cores=1, worker_id=0, openmpi_oversubscribe=False"
_COMMUNICATION = {
    "SocketInterface": "spawner=None, log_obj_size=False, time_out_ms=1000",
    "SocketInterface.__del__": "self",
    "SocketInterface.__init__": "self, spawner=None, log_obj_size=False, time_out_ms=1000",
    "SocketInterface._reset_socket": "self",
    "SocketInterface.bind_to_random_port": "self",
    "SocketInterface.bootup": "self, command_lst=None, stop_function=None",
    "SocketInterface.receive_dict": "self",
    "SocketInterface.send_and_receive_dict": "self, input_dict",
    "SocketInterface.send_dict": "self, input_dict",
    "SocketInterface.shutdown": "self, wait=True",
    "interface_bootup": (
        "command_lst, connections, hostname_localhost=None, log_obj_size=False, worker_id=None, stop_function=None"
    ),
    "interface_connect": "host, port",
    "interface_receive": "socket",
    "interface_send": "socket, result_dict",
    "interface_shutdown": "socket, context",
}
_SPAWNERS = {
    f"{name}{method}": parameters
    for name in ("SubprocessSpawner", "MpiExecSpawner")
    for method, parameters in {
        "": f"{_SPAWNER}, threads_per_core=1",
        ".__init__": f"self, {_SPAWNER}, threads_per_core=1",
        ".bootup": "self, command_lst, stop_function=None",
        ".generate_command": "self, command_lst",
        ".poll": "self",
        ".shutdown": "self, wait=True",
    }.items()
}
SIGNATURES = {
    "executorlib.api": {
        **_COMMUNICATION,
        **_SPAWNERS,
        "cancel_items_in_queue": "que",
        "cloudpickle_register": "ind=2",
        "get_command_path": "executable",
    },
    "executorlib.standalone.command": {"get_command_path": "executable"},
    "executorlib.standalone.interactive.communication": _COMMUNICATION,
    "executorlib.standalone.interactive.spawner": {
        **_SPAWNERS,
        "BaseSpawner": _SPAWNER,
        "BaseSpawner.__init__": f"self, {_SPAWNER}",
        "BaseSpawner.bootup": "self, command_lst, stop_function=None",
        "BaseSpawner.poll": "self",
        "BaseSpawner.shutdown": "self, wait=True",
    },
    "executorlib.standalone.serialize": {"cloudpickle_register": "ind=2"},
}
"""Those of executorlib 1.11.0, all of them parameters that can be given by position and by keyword."""


# Names


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in SIGNATURES.items() for name in names])
def test_a_program_written_for_1_11_calls_by_position_or_by_name(module: str, name: str) -> None:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    parameters = inspect.signature(found).parameters.values()
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    assert ", ".join(str(p.replace(annotation=p.empty)) for p in parameters) == SIGNATURES[module][name]


def test_an_import_of_the_names_costs_little(script: Script) -> None:
    done = script("import sys, executorlib.api as api; print('cloudpickle' in sys.modules, 'socket' in sys.modules)")
    assert done.stdout.split() == ["False", "False"]


def test_every_name_is_there() -> None:
    api = importlib.import_module("executorlib.api")
    for name in api.__all__:
        assert getattr(api, name) is not None
        assert name in dir(api)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = api.nonsense
    assert issubclass(ExecutorlibSocketError, RuntimeError)


def test_the_worker_programs_are_files() -> None:
    for name in ("interactive_serial.py", "interactive_parallel.py"):
        assert Path(get_command_path(name)).is_file()


def test_a_module_that_workers_cannot_import_travels_when_it_is_registered(script: Script, tmp_path: Path) -> None:
    """A library registers the module of its caller, whose functions then run in any worker."""
    (tmp_path / "notebook_helpers.py").write_text(
        "from executorlib.api import cloudpickle_register\n"
        "def double(x): return 2 * x\n"
        "def register(): cloudpickle_register(ind=1)\n"
    )
    done = script(
        "import sys\n"
        "import notebook_helpers\n"
        "from executorlib.api import SubprocessSpawner, get_command_path, interface_bootup\n"
        "for register in (lambda: None, notebook_helpers.register):\n"
        "    register()\n"
        "    command = [sys.executable, get_command_path('interactive_serial.py')]\n"
        "    interface = interface_bootup(command, SubprocessSpawner(), hostname_localhost=True)\n"
        "    print(interface.send_and_receive_dict({'fn': notebook_helpers.double, 'args': [21], 'kwargs': {}}))\n"
        "    interface.shutdown()\n"
    )
    assert "ModuleNotFoundError" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1] == "{'result': 42}"


def test_cancelling_a_queue_empties_it() -> None:
    """Futures that wait are cancelled; those that run or are done stay as they are."""
    pending, running, done = Future[int](), Future[int](), Future[int]()
    running.set_running_or_notify_cancel()
    done.set_result(1)
    que: queue.Queue[Any] = queue.Queue()
    for item in ({"future": pending}, {"future": running}, {"shutdown": True}, None, {"future": done}):
        que.put(item)
    cancel_items_in_queue(que)
    assert pending.cancelled()
    assert running.running()
    assert done.result() == 1
    assert que.empty()
    assert que.unfinished_tasks == 2


# Spawners


def test_a_spawner_starts_asks_and_ends() -> None:
    spawner = SubprocessSpawner()
    assert not spawner.poll()
    spawner.shutdown()
    assert spawner.bootup(["sleep", "60"]) is True
    assert spawner.poll()
    spawner.shutdown(wait=True)
    assert not spawner.poll()
    assert spawner._process is None
    with pytest.raises(FileNotFoundError):
        spawner.bootup(["no such program"])


def test_a_spawner_makes_the_working_directory(tmp_path: Path) -> None:
    spawner = SubprocessSpawner(cwd=str(tmp_path / "new" / "directory"))
    spawner.bootup([sys.executable, "-c", "open('here', 'w')"])
    spawner._process.wait()
    assert (tmp_path / "new" / "directory" / "here").exists()
    spawner.shutdown()


@pytest.mark.parametrize(("threads", "given", "expected"), [(3, "5", "3"), (1, "5", "5"), (1, None, "1")])
def test_threads_per_core_holds_the_numerical_libraries(
    monkeypatch: pytest.MonkeyPatch, threads: int, given: str | None, expected: str
) -> None:
    """The default of one thread does not overrule what the user has set."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    interface = interface_bootup(SERIAL, SubprocessSpawner(threads_per_core=threads), hostname_localhost=True)
    assert interface.send_and_receive_dict(call(os.getenv, "OMP_NUM_THREADS")) == {"result": expected}
    interface.shutdown()


@pytest.mark.faults
@pytest.mark.parametrize("wait", [True, False])
def test_a_process_that_will_not_end_is_ended_with_its_children(
    wait: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eventually: Eventually
) -> None:
    monkeypatch.setattr(spawner_module, "_TERM_SECONDS", 0.3 if wait else 4.0)
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path(sys.argv[1]).mkdir()\n"
        "time.sleep(60)\n"
    )
    spawner = SubprocessSpawner()
    spawner.bootup([sys.executable, "-c", code, str(tmp_path / "ready")])
    eventually((tmp_path / "ready").exists)
    family = [psutil.Process(spawner._process.pid), *psutil.Process(spawner._process.pid).children()]
    assert len(family) == 2
    start = time.monotonic()
    spawner.shutdown(wait=wait)
    assert time.monotonic() - start < (5 if wait else 3.5)  # it does not wait for the 4 s
    eventually(lambda: all(has_ended(process) for process in family))


def test_mpiexec_stands_before_the_command_where_there_is_more_than_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_module, "mpiexec_path", lambda: "/opt/mpi/bin/mpiexec")
    assert MpiExecSpawner().generate_command(["python", "x"]) == ["python", "x"]
    command = MpiExecSpawner(cores=2, openmpi_oversubscribe=True).generate_command(["python", "x"])
    assert command == ["/opt/mpi/bin/mpiexec", "-n", "2", "--oversubscribe", "python", "x"]
