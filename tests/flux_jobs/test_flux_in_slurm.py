"""A Flux instance in a job of Slurm: where a Slurm runs that `.ci/slurm start` has made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flux_fixtures import FIXTURES, Instance

flux_instances = FIXTURES[0]
pytestmark = [pytest.mark.flux, pytest.mark.slurm, pytest.mark.xdist_group("flux"), pytest.mark.timeout(120)]

_SLURM = Path(__file__).parents[2] / ".ci" / "slurm"
PROGRAM = """
import os
from executorlib import FluxJobExecutor

def rank_and_size():
    from mpi4py import MPI
    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size

with FluxJobExecutor() as exe:
    print(exe.max_workers, exe.submit(os.getenv, "FLUX_URI").result() is not None)
    print(exe.submit(rank_and_size, resource_dict={"cores": 2, "num_nodes": 2}).result())
"""


def test_an_instance_of_an_allocation(
    flux_instances: Callable[[int], Instance], script_environment: dict[str, str], tmp_path: Path
) -> None:
    if not _SLURM.exists() or subprocess.run([_SLURM, "status"], capture_output=True).returncode != 0:
        pytest.skip("no Slurm runs here: `.ci/slurm start` starts one")
    conf = subprocess.run([_SLURM, "conf"], capture_output=True, text=True, check=True).stdout.strip()
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    allocate = ["salloc", "--quiet", "--immediate=20", "--nodes=2", "--ntasks=2", "--mem-per-cpu=700"]
    inside = ["srun", "--mpi=pmi2", "flux", "start", sys.executable, str(path)]
    done = subprocess.run(
        [*allocate, *inside],
        env={**script_environment, "SLURM_CONF": conf, "TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.splitlines() == ["2 True", "[(0, 2), (1, 2)]"], done.stderr
