"""Rank 0 wakes the others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conftest import needs_mpi
from executorlib.standalone.command import mpiexec_command

pytestmark = pytest.mark.mpi

PROGRAM = """
import socket, sys
from mpi4py import MPI
from executorlib.backend.bell import Bell

comm = MPI.COMM_WORLD
if sys.argv[1] == "short":  # of descriptors
    import os, resource

    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
if sys.argv[1] == "apart":
    socket.gethostname = lambda: f"host{comm.rank}"
bell = Bell(comm)
for _ in range(3):
    if comm.rank == 0:
        bell.ring()
    else:
        bell.wait()
print(comm.gather(bell._heard is not None) or "")
"""


@pytest.mark.parametrize(
    ("where", "hear"),
    [
        ("together", "[False, True, True]"),
        ("apart", "[False, False, False]"),
        ("short", "[False, False, False]"),
    ],
)
def test_ranks_of_the_machine_hear_the_bell_and_others_do_not_wait_for_it(where: str, hear: str) -> None:
    needs_mpi()
    command = [*mpiexec_command(3), sys.executable, "-c", PROGRAM, where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1].count(hear) == 1
