"""The program is in a bad state itself: nobody reads its output, it has no descriptors left, it ends futures."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import Any

import pytest
import tasks

from conftest import MakeExecutor, Script, StartScript

pytestmark = pytest.mark.faults

NOISY = """\
import os, resource, sys
from executorlib import SingleNodeExecutor
from tasks import *

def noisy():
    print("x" * 999_999, file=sys.stderr)

os.environ["EXECUTORLIB_FORK_SERVER"] = "0"
with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
"""


def test_nobody_reads_the_standard_error(start_script: StartScript) -> None:
    """A worker that writes more than fits waits; the others go on, and nothing of it is lost."""
    program = start_script(
        f"{NOISY}"
        "    exe.submit(add, 1, 1).result()\n"
        "    loud = exe.submit(noisy)\n"
        "    print(sum(exe.submit(add, i, 1).result() for i in range(50)), flush=True)\n"
        "    loud.result()\n",
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "1275\n"
    out, err = program.communicate(timeout=30)
    assert (program.returncode, out, len(err)) == (0, "", 1_000_000)


def test_nobody_reads_the_standard_error_and_no_descriptor_is_left(start_script: StartScript) -> None:
    """What cannot be passed on is not waited for."""
    program = start_script(
        f"{NOISY}"
        "    pairs = [exe.submit(sleep_and_return, i, 0.5) for i in range(2)]\n"
        "    [pair.result() for pair in pairs]\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "    try:\n"
        "        while True:\n"
        "            os.dup(0)\n"
        "    except OSError:\n"
        "        pass\n"
        "    loud = exe.submit(noisy)\n"
        "    print(sum(exe.submit(add, i, 1).result() for i in range(50)), loud.result(), flush=True)\n",
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "1275 None\n"
    program.communicate(timeout=30)
    assert program.returncode == 0


def test_no_descriptor_is_left_for_who_knocks(script: Script) -> None:
    """It costs no CPU, and who knocks comes in when there is one again."""
    done = script(
        "import os, resource, selectors, socket, time\n"
        "from executorlib.standalone.interactive.listener import Hello, introduce\n"
        "from executorlib.task_scheduler.interactive.door import Door\n"
        "selector = selectors.DefaultSelector()\n"
        "arrived = []\n"
        "def arrive(hello, connection):\n"
        "    connection.send(b'W')\n"
        "    arrived.append(hello)\n"
        "door = Door(selector, True, arrive, print)\n"
        "(key,) = door.environment().values()\n"
        "port = int(door.arguments()[3])\n"
        "if os.fork() == 0:\n"
        "    time.sleep(0.2)\n"
        "    introduce('127.0.0.1', port, bytes.fromhex(key), Hello(7))\n"
        "    os._exit(0)\n"
        "taken = []\n"
        "try:\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "    while True:\n"
        "        taken.append(os.dup(0))\n"
        "except OSError:\n"
        "    pass\n"
        "rounds, end = 0, time.monotonic() + 20\n"
        "while not arrived and time.monotonic() < end:\n"
        "    for key, _ in selector.select(0.5):\n"
        "        key.data()\n"
        "    rounds += 1\n"
        "    if door.deadline() is not None and taken:\n"
        "        for fd in taken[:5]:\n"
        "            os.close(fd)\n"
        "        taken = []\n"
        "    door.expire(time.monotonic())\n"
        "os.wait()\n"
        "print(arrived[0].worker, rounds < 20)\n",
    )
    assert done.stdout == "7 True\n", done.stderr


@pytest.mark.parametrize("fork_server", ["1", "0"])
@pytest.mark.parametrize("block", ["", "block"])
def test_more_workers_than_descriptors(script: Script, block: str, fork_server: str) -> None:
    """As with hundreds of cores where a program may open 1,024 files: calls wait for others, and none fails."""
    done = script(
        "import resource, sys\n"
        "from executorlib import SingleNodeExecutor\n"
        "from tasks import sleep_and_return\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (26, 26))\n"
        "with SingleNodeExecutor(max_workers=20, block_allocation=bool(sys.argv[1])) as exe:\n"
        "    found = list(exe.map(sleep_and_return, range(40), [0.1] * 40))\n"
        "print(found == list(range(40)))\n",
        block,
        env={"EXECUTORLIB_FORK_SERVER": fork_server},
    )
    assert done.stdout == "True\n", done.stderr


def test_workers_at_the_door_wait_until_another_has_ended(script: Script) -> None:
    """Also for longer than a worker may take to report: no descriptor is left for those who have been started."""
    done = script(
        "import logging, resource\n"
        "from executorlib import SingleNodeExecutor\n"
        "from tasks import sleep_and_return\n"
        "logging.basicConfig()\n"
        "with SingleNodeExecutor(max_workers=6) as exe:\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (25, 25))\n"
        "    print(list(exe.map(sleep_and_return, range(6), [7.0] * 6)))\n",
        env={"EXECUTORLIB_FORK_SERVER": "0", "EXECUTORLIB_START_SECONDS": "6"},
    )
    assert done.stdout == "[0, 1, 2, 3, 4, 5]\n", done.stderr
    assert 1 <= done.stderr.count("cannot let a worker in") < 6  # and not for each second


@pytest.mark.parametrize("block", ["", "block"])
def test_no_descriptor_is_left_for_a_worker(script: Script, block: str) -> None:
    """The calls say so, or run; later ones run, and what was opened in vain is closed."""
    done = script(
        "import os, resource, sys\n"
        "from executorlib import SingleNodeExecutor\n"
        "from executorlib.standalone.errors import WorkerStartError\n"
        "from tasks import add\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "def starve(left):\n"
        "    taken = []\n"
        "    with SingleNodeExecutor(max_workers=2, block_allocation=bool(sys.argv[1])) as exe:\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "        try:\n"
        "            while True:\n"
        "                taken.append(os.dup(0))\n"
        "        except OSError:\n"
        "            for _ in range(left):\n"
        "                os.close(taken.pop())\n"
        "        errors = [exe.submit(add, 1).exception(20) for _ in range(3)]\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "        for fd in taken:\n"
        "            os.close(fd)\n"
        "        for error in filter(None, errors):\n"
        "            assert isinstance(error, WorkerStartError), repr(error)\n"
        "            assert 'Too many open files' in str(error) and 'ulimit -n' in str(error), error\n"
        "        assert exe.submit(add, 2, 3).result(20) == 5\n"
        "    return errors\n"
        "assert all(starve(0))\n"
        "before = os.listdir('/dev/fd')\n"
        "tries = [starve(left) for left in range(9)]\n"
        "assert all(tries[0]) and not any(tries[-1]), tries\n"
        "print(os.listdir('/dev/fd') == before)\n",
        block,
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.kinds("fresh", "block", "fresh-spawned", "block-spawned")
def test_a_future_that_the_program_has_ended_itself(make_executor: MakeExecutor) -> None:
    """It keeps what the program has set, and the executor goes on."""
    with make_executor(max_workers=1) as exe:
        first = exe.submit(tasks.sleep_and_return, 1, 0.3)
        second = exe.submit(tasks.add, 1, 1)
        second.set_result("mine")
        first.result(40)
        assert exe.submit(tasks.add, 2, 2).result(40) == 4
        assert second.result(40) == "mine"


def test_another_thread_changes_the_environment(make_executor: MakeExecutor) -> None:
    """The look at the environment when a worker starts meets a variable that comes and goes."""
    over = threading.Event()

    def change() -> None:
        while not over.is_set():
            for number in range(50):
                os.environ[f"EXECUTORLIB_TEST_{number}"] = "1"
            for number in range(50):
                del os.environ[f"EXECUTORLIB_TEST_{number}"]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        with make_executor(max_workers=2) as exe:
            results: list[Any] = [exe.submit(tasks.add, number, 1) for number in range(30)]
            assert [future.result(40) for future in results] == list(range(1, 31))
    finally:
        over.set()
        thread.join()
