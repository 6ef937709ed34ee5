"""The scripts of batch jobs, and what sbatch is told beside them. No Slurm is needed for these."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from golden_files import check_golden

from executorlib.standalone.command import get_command_path
from executorlib.standalone.resources import Resources
from executorlib.standalone.slurm_queue import JobStatus, parse
from executorlib.task_scheduler.file.batch_script import BatchJob, BatchSystem, batch_environment

pytest.importorskip("pysqa")


class Recorder(BatchSystem):
    """Keeps what would be submitted."""

    text = ""

    def _execute(self, commands: Sequence[str], working_directory: str | None = None, **_: Any) -> str:
        command = [commands[0], *self._arguments, *commands[1:]]
        self.text = "# " + shlex.join(command) + "\n" + Path(commands[-1]).read_text() + "\n"
        return "7\n"


JOBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "serial": ({}, {}),
    "ranks": ({"cores": 4, "threads_per_core": 2}, {}),
    "ranks_with_pmi_mode": ({"cores": 2, "num_nodes": 2, "exclusive": True}, {"pmi_mode": "pmi2"}),
    "gpus": ({"cores": 2, "gpus_per_core": 1}, {}),
    "limits": ({"run_time_max": 90, "partition": "short", "memory_max": 4, "priority": -5}, {}),
    "account": ({"account": "physics", "qos": "low", "cwd": "/scratch/a b"}, {}),
    "further_arguments_of_srun": ({"slurm_cmd_args": ["--hint=nomultithread"]}, {}),
    "after_others": ({}, {"depends_on": ("12", "13_4")}),
    "array": ({}, {"elements": 200}),
    "submission_template": ({"submission_template": "#!/bin/sh\n# {{cores}} {{hue}}\n{{command}}\n", "hue": 3}, {}),
    "odd_name": ({}, {"name": "<lambda>; rm -rf"}),
}


@pytest.mark.parametrize("name", JOBS)
def test_the_script_of_a_job(name: str, tmp_path: Path) -> None:
    resource_dict, options = JOBS[name]
    system = Recorder(pmi_mode=options.pop("pmi_mode", None))
    resources = Resources().updated(resource_dict, template=True)
    program = get_command_path("cache_serial.py" if resources.cores == 1 else "cache_parallel.py")
    job = BatchJob(
        **{
            "name": "simulate",
            "directory": str(tmp_path / "simulate"),
            "command": [sys.executable, program, "/cache/it's_i.h5"],
            "resources": resources,
            "log": "/cache/simulate.log",
            **options,
        }
    )
    assert system.submit(job) == "7"
    check_golden(f"sbatch_{name}.sh", system.text, directory=str(tmp_path))


def test_a_job_inherits_nothing_of_the_job_that_the_program_runs_in() -> None:
    found = batch_environment({"SLURM_JOB_ID": "7", "SLURM_CONF": "/etc/slurm.conf", "PMI_RANK": "0", "HOME": "/h"})
    found.pop("EXECUTORLIB_PATH")
    assert found == {"SLURM_CONF": "/etc/slurm.conf", "HOME": "/h"}


def test_what_squeue_says() -> None:
    text = (
        "12|RUNNING|1-02:03:04|main|None\n13_4|PENDING|0:00|main|DependencyNeverSatisfied\n"
        "14|TIMEOUT|1:00|main|TimeLimit\n15|PENDING|0:00|main|PartitionConfig\n16|PENDING|0:00|a,b|PartitionConfig\n"
    )
    found = parse(text)
    assert found["12"] == JobStatus("RUNNING", 93784.0, "None", "main")
    assert not found["12"].ended
    assert [job for job, status in found.items() if status.never_starts] == ["13_4", "15"]
    assert found["14"].ended
    assert found["14"].explain() == "TIMEOUT (it reached its time limit; TimeLimit)"
