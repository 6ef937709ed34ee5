"""How a program of several MPI ranks begins."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def start_mpi() -> Any:
    """Start MPI; returns a communicator of this library alone, so that its messages do not meet those of tasks.

    Raises:
        SystemExit: there is no mpi4py
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        sys.exit(
            f"More than one core per task needs mpi4py, which {sys.executable} lacks ({error}): "
            "install it with 'pip install mpi4py', or with the extra executorlib[mpi]."
        )
    comm = MPI.COMM_WORLD.Dup()
    # Every rank of this machine has opened its shared memory by now.
    comm.Barrier()
    _unname_shared_memory()
    return comm


def _unname_shared_memory() -> None:
    """Take the name from the memory that MPICH's ranks share, so that it ends with them, however they end.

    MPICH does so in MPI_Finalize, which ranks that are killed never reach. What they leave would fill the memory of the
    machine, and a later job with the same name would not start: MPICH's "Out of memory".
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
            names = {line.rstrip("\n").partition("/")[2] for line in file}
    except OSError:  # not Linux
        return
    for name in names:
        if name.startswith("dev/shm/mpich_shm_"):
            with contextlib.suppress(OSError):  # another rank was first
                os.unlink(f"/{name}")
