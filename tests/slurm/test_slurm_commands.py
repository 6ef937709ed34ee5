"""The commands that start steps, and what the environment says of an allocation. No Slurm is needed for these."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from typing import Any

import pytest
from golden_files import check_golden

from executorlib.standalone import slurm
from executorlib.standalone.command import get_command_path
from executorlib.standalone.resources import Resources
from executorlib.standalone.slurm import (
    Allocation,
    Node,
    agent_command,
    expand_counts,
    expand_nodes,
    needs_step,
    step_command,
)


@pytest.fixture(autouse=True)
def _srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "srun_path", lambda: "/usr/bin/srun")


STEPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "serial": ({}, {"places": [("n1", 1)]}),
    "ranks": ({"cores": 4}, {"places": [("n1", 4)], "pmi_mode": "pmi2"}),
    "ranks_on_two_nodes": ({"cores": 3, "num_nodes": 2}, {"places": [("n1", 2), ("n2", 1)], "pmi_mode": "pmix"}),
    "placed_by_slurm": ({"cores": 8, "num_nodes": 2}, {}),
    "threads": ({"cores": 2, "threads_per_core": 4}, {"places": [("n1", 2)]}),
    "gpus": ({"cores": 2, "gpus_per_core": 1}, {"places": [("n1", 2)]}),
    "exclusive": ({"num_nodes": 1, "exclusive": True}, {"places": [("n2", 1)]}),
    "working_directory": ({"cwd": "/scratch/a b/c"}, {"places": [("n1", 1)]}),
    "time_limit": ({"run_time_max": 90}, {"places": [("n1", 1)], "time_limit": True}),
    "time_limit_of_a_kept_worker": ({"run_time_max": 90}, {"places": [("n1", 1)]}),
    "no_gpus_of_the_job": ({"cores": 2}, {"places": [("n1", 2)], "no_gpus": True}),
    "more_workers_than_cores": ({"exclusive": True}, {"places": [("n1", 1)], "overlap": True}),
    "further_arguments": (
        {"slurm_cmd_args": ["--constraint=a&b", "--comment=it's"], "openmpi_oversubscribe": True},
        {"places": [("n1", 1)], "overlap": True},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_command_of_a_step(name: str) -> None:
    resources, options = STEPS[name]
    program = "interactive_parallel.py" if resources.get("cores", 1) > 1 else "interactive_serial.py"
    command = step_command(Resources().updated(resources), [sys.executable, get_command_path(program)], **options)
    check_golden(f"srun_{name}.txt", "\n".join(map(shlex.quote, command)) + "\n")


def test_the_command_of_an_agent() -> None:
    command = agent_command("n1", [sys.executable, get_command_path("node_agent.py"), "--host", "login"])
    check_golden("srun_agent.txt", "\n".join(map(shlex.quote, command)) + "\n")


NODES = {
    "n1": ["n1"],
    "n[1-2]": ["n1", "n2"],
    "n[1-3,7],m1": ["n1", "n2", "n3", "n7", "m1"],
    "n[08-11]": ["n08", "n09", "n10", "n11"],
    "r[1-2]n[1-2]-ib": ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"],
    "login,gpu[001,003-004]x": ["login", "gpu001x", "gpu003x", "gpu004x"],
}


@pytest.mark.parametrize("text", NODES)
def test_lists_of_nodes(text: str) -> None:
    assert expand_nodes(text) == NODES[text]


@pytest.mark.slurm
@pytest.mark.skipif(shutil.which("scontrol") is None, reason="needs Slurm")
@pytest.mark.parametrize("text", NODES)
def test_lists_of_nodes_as_slurm_reads_them(text: str) -> None:
    found = subprocess.run(["scontrol", "show", "hostnames", text], capture_output=True, text=True)
    # Older versions want a configuration for this, and do not know every form.
    if found.returncode == 0 and "Invalid hostlist" not in found.stderr:
        assert expand_nodes(text) == found.stdout.split()


@pytest.mark.parametrize("text", ["n[1-", "n[1-a]", "n]1[", "n[a]"])
def test_what_is_no_list_of_nodes(text: str) -> None:
    with pytest.raises(ValueError, match="as Slurm writes it"):
        expand_nodes(text)


def test_lists_of_counts() -> None:
    assert expand_counts("4") == [4]
    assert expand_counts("4(x2),2,16(x3)") == [4, 4, 2, 16, 16, 16]
    with pytest.raises(ValueError, match="as Slurm writes it"):
        expand_counts("4(x2")


def test_the_allocation_of_an_environment() -> None:
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_CPUS_PER_NODE": "4(x2),2"}
    found = Allocation.of_environment(environment)
    assert found == Allocation("7", (Node("n1", 4), Node("n2", 4), Node("n3", 2)))
    assert (found.cores, found.gpus) == (10, None)
    found = Allocation.of_environment({**environment, "SLURM_GPUS_ON_NODE": "2"})
    assert found is not None
    assert found.gpus == 6
    assert Allocation.of_environment({}) is None
    with pytest.raises(ValueError, match="names 2 nodes"):
        Allocation.of_environment({**environment, "SLURM_JOB_NODELIST": "n[1-2]"})


@pytest.mark.parametrize(
    ("resources", "needed"),
    [
        ({}, False),
        ({"threads_per_core": 4, "cwd": "/x", "run_time_max": 3, "priority": 1}, False),
        ({"cores": 2}, True),
        ({"gpus_per_core": 1}, True),
        ({"slurm_cmd_args": ["-v"]}, True),
        ({"slurm_cmd_args": []}, False),
        ({"exclusive": True}, True),
        ({"num_nodes": 1}, True),
    ],
)
def test_which_calls_need_a_step(resources: dict[str, Any], needed: bool) -> None:
    assert needs_step(Resources().updated(resources)) is needed


@pytest.mark.xdist_group("slurm")
def test_tests_that_share_a_slurm_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist knows their group by the end of their ids, with those versions of pytest that let it."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@slurm")
