"""The command lines that describe jobs: Flux itself understands them as the launcher does."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from flux_fixtures import FIXTURES, Instance

from executorlib.standalone.flux import agent_command, description, job_command, jobspec_of, urgency
from executorlib.standalone.resources import Resources

flux_instances = FIXTURES[0]
pytestmark = [pytest.mark.flux, pytest.mark.xdist_group("flux")]

PROGRAM = ["/bin/true", "-n", "7", "--exclusive"]
COMMANDS = {
    "flux submit -n 1": job_command(Resources(), PROGRAM),
    "flux submit -n 1 -c 4 -opmi=off": agent_command(4, PROGRAM),
    "flux submit -n 6 -c 2 -g 1 -N 3 --exclusive -oexit-on-error -opmi=pmix": job_command(
        Resources(cores=6, threads_per_core=2, gpus_per_core=1, num_nodes=3, exclusive=True), PROGRAM, pmi_mode="pmix"
    ),
    "flux submit -n 1 -t 62.5s --urgency=20": job_command(
        Resources(run_time_max=2.5, priority=20), PROGRAM, time_limit=True
    ),
    "flux alloc -n 1 -c 8": job_command(Resources(threads_per_core=8), PROGRAM, nesting=True),
    "flux alloc -n 2 flux run -n 2 -oexit-on-error -opmi=pmix": job_command(
        Resources(cores=2), PROGRAM, nesting=True, pmi_mode="pmix"
    ),
    "flux submit -n 1 -t 5s --job-name=lambda '--output=/a b/{x}.log' '--error=/a b/{x}.log' "
    "--dependency=afterok:7 --dependency=afterok:8": job_command(
        Resources(run_time_max=5),
        PROGRAM,
        time_limit=True,
        start_margin=0,
        options=description("<lambda>", "/a b/{x}.log", [7, 8]),
    ),
}


@pytest.mark.parametrize("written", COMMANDS)
def test_the_command_line(written: str) -> None:
    assert shlex.join(COMMANDS[written]) == f"{written} {shlex.join(PROGRAM)}"


@pytest.mark.parametrize("written", [command for command in COMMANDS if command.startswith("flux submit")])
def test_flux_makes_the_same_of_it(written: str, flux_instances: Callable[[int], Instance]) -> None:
    command = COMMANDS[written]
    said = subprocess.run([*command[:2], "--dry-run", "--env=-*", *command[2:]], capture_output=True, check=True).stdout
    jobspec, asked = jobspec_of(command, {}, None)
    theirs, ours = json.loads(said), json.loads(jobspec.dumps())
    assert ours["resources"] == theirs["resources"]
    assert ours["tasks"] == theirs["tasks"]
    assert asked == (20 if "--urgency=20" in written else 16)
    for name in ("duration", "dependencies"):
        assert _system(ours).get(name) == _system(theirs).get(name)
    assert _shell_options(ours) == _shell_options(theirs)
    if "--job-name" in written:
        assert _system(ours)["job"] == _system(theirs)["job"]


def _system(jobspec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = jobspec["attributes"]["system"]
    return found


def _shell_options(jobspec: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = dict(_system(jobspec).get("shell", {}).get("options", {}))
    options.pop("rlimit", None)  # flux submit hands on the limits of the shell
    return options


def test_priorities() -> None:
    assert [urgency(priority) for priority in (0, 1, 31, 100, -5)] == [16, 1, 31, 31, 1]


def test_what_is_no_text_is_left_out_of_the_environment(flux_instances: Callable[[int], Instance]) -> None:
    jobspec, _ = jobspec_of(COMMANDS["flux submit -n 1"], {"A": "\udcff", "B": "ü"}, "/")
    assert jobspec.environment == {"B": "ü"}
