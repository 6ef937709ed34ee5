"""Nodes that go down. These tests have the whole Slurm."""

from __future__ import annotations

import os
import subprocess

import pytest
from slurm_fixtures import FIXTURES, AllocationOf, enter

from executorlib import SlurmJobExecutor

slurm_conf, in_slurm, *_ = FIXTURES
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm"), pytest.mark.faults, pytest.mark.timeout(120)]


def node() -> str:
    return os.environ["SLURMD_NODENAME"]


def test_a_node_goes_down(in_slurm: None, slurm_conf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out; the calls run on the other."""
    held = AllocationOf(slurm_conf, "--nodes=2", "--ntasks=2", "--no-kill")
    try:
        enter(held, monkeypatch)
        command = ["scontrol", "update", "NodeName=n2"]
        subprocess.run([*command, "State=DOWN", "Reason=test"], check=True)
        with SlurmJobExecutor() as exe:
            found = [future.result(40) for future in [exe.submit(node) for _ in range(6)]]
        assert set(found) == {"n1"}
        with SlurmJobExecutor(block_allocation=True) as exe:
            found = [future.result(40) for future in [exe.submit(node) for _ in range(6)]]
        assert set(found) == {"n1"}
    finally:
        # It may have come back by itself.
        subprocess.run(["scontrol", "update", "NodeName=n2", "State=RESUME"], check=False, capture_output=True)
        held.close()
        # The tests that follow find the whole node. (What sinfo says of it may be a minute old.)
        AllocationOf(slurm_conf, "--nodelist=n2", "--exclusive").close()
