"""Batch jobs of Slurm: their scripts, by a template of pysqa, and their submission.

The template has the variables of pysqa (job_name, working_directory, cores, memory_max, run_time_max, dependency_list,
command) and all those of the resource_dict. What must not depend on the template is told to sbatch on its command line:
the log, the order of jobs, arrays.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from executorlib.standalone import slurm_queue
from executorlib.standalone.cache_outcome import remove
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.cache_trust import check_own, make_own_directory, others_may_write
from executorlib.standalone.command import PATH_VARIABLE, get_command_path
from executorlib.standalone.errors import SubmissionError
from executorlib.standalone.hardware import program_environment
from executorlib.standalone.resources import Resources
from executorlib.standalone.slurm import step_command

_SUBMIT_SECONDS = 120.0
# What sbatch says when it does not know whether the controller has taken the job, and how often that is looked for.
_UNDECIDED = ("timed out", "Zero Bytes were transmitted", "Unexpected message received")
_ATTEMPTS = 3
_ATTEMPT_SECONDS = 2.0

TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{job_name}}
#SBATCH --chdir={{working_directory}}
{%- if partition %}
#SBATCH --partition={{partition}}
{%- endif %}
{%- if account %}
#SBATCH --account={{account}}
{%- endif %}
{%- if qos %}
#SBATCH --qos={{qos}}
{%- endif %}
{%- if run_time_max %}
#SBATCH --time={{ (run_time_max + 59) // 60 }}
{%- endif %}
{%- if memory_max %}
#SBATCH --mem={{memory_max}}G
{%- endif %}
{%- if priority < 0 %}
#SBATCH --nice={{ -priority }}
{%- endif %}
{%- if num_nodes %}
#SBATCH --nodes={{num_nodes}}
{%- endif %}
#SBATCH --ntasks={{ranks}}
{%- if threads_per_core > 1 %}
#SBATCH --cpus-per-task={{threads_per_core}}
{%- endif %}
{%- if gpus_per_core %}
#SBATCH --gpus-per-task={{gpus_per_core}}
{%- endif %}
{%- if exclusive %}
#SBATCH --exclusive
{%- endif %}

{{command}}
"""
"""The script of a job where nobody gives another."""


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What is submitted.

    Attributes:
        name: of the job
        directory: where the script is written, and where it runs unless the resources say otherwise
        command: what the job runs, for each of its ranks
        resources: what it needs
        log: file for what it prints; ``%a`` stands for the number of an element
        elements: how many elements the array has; None for a single job
        depends_on: jobs that have to end well first
        options: further options of sbatch
        environment: what the job finds in its environment, beside that of the program
    """

    name: str
    directory: str
    command: list[str]
    resources: Resources
    log: str
    elements: int | None = None
    depends_on: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


class BatchSystem:
    """Writes scripts and submits them, from one thread.

    Args:
        config_directory: configuration of pysqa, or None for our template
        pmi_mode: how ranks find each other, as ``srun --mpi`` takes it

    Attributes:
        name: of the queueing system, of which pysqa takes the capitals
        submitter: the command that submits a script
    """

    name: ClassVar[str] = "Slurm"
    submitter: ClassVar[tuple[str, ...]] = ("sbatch",)

    def __init__(self, config_directory: str | None = None, pmi_mode: str | None = None) -> None:
        if importlib.util.find_spec("pysqa") is None:
            raise ModuleNotFoundError(
                "Batch jobs need pysqa: install it with the extra executorlib[cluster].", name="pysqa"
            )
        self._config_directory = config_directory
        self._pmi_mode = pmi_mode
        self._adapter: Any = None
        self._last = 0  # the number of the last job: workers of one executor have one script
        self._arguments: list[str] = []
        self._environment: dict[str, str] = {}
        self._stand_in: tuple[str, str] | None = None

    def submit(self, job: BatchJob) -> str:
        """Submit a job, or an array of jobs; returns its number.

        Raises:
            SubmissionError: Slurm refuses it
            OSError: another user has made its directory or its log
            Exception: what pysqa raises about the configuration, the template or its variables
        """
        if self._adapter is None:
            from pysqa import QueueAdapter  # it imports pandas: not before there is something to submit

            kind = {} if self._config_directory is not None else {"queue_type": self.name.upper()}
            self._adapter = QueueAdapter(directory=self._config_directory, execute_command=self._execute, **kind)
        exposed = others_may_write(os.path.dirname(job.directory))
        self._arguments = self.arguments(job, os.devnull if exposed else job.log)
        self._environment = dict(job.environment)
        make_own_directory(job.directory)
        if job.resources.cwd is not None:
            os.makedirs(job.resources.cwd, exist_ok=True)
        variables = self.variables(job, self.guarded(job) if exposed else self.command(job))
        script = os.path.join(job.directory, "run_queue.sh")
        spaced = any(letter.isspace() for letter in job.directory)
        if not spaced and not exposed:
            remove(script)  # it may be a link, from a time when others could write here
            return str(self._adapter.submit_job(working_directory=job.directory, **variables))
        # pysqa takes no directory with white space; and nobody else may exchange the script before it is read.
        with tempfile.TemporaryDirectory(prefix="executorlib-") as folder:
            self._stand_in = None if spaced else (folder, job.directory)
            try:
                return str(self._adapter.submit_job(working_directory=folder, **variables))
            finally:
                self._stand_in = None

    def variables(self, job: BatchJob, command: str) -> dict[str, Any]:
        """The variables of the template."""
        resources = job.resources
        given = dict(resources.template_variables)
        limit = resources.run_time_max
        template = resources.submission_template
        if template is None and self._config_directory is None:
            template = TEMPLATE
        return {
            "job_name": re.sub(r"[^A-Za-z0-9_.-]+", "", job.name) or "executorlib",
            "cores": resources.slots,
            "ranks": resources.cores,
            "threads_per_core": resources.threads_per_core or 1,
            "gpus_per_core": resources.gpus_per_core,
            "num_nodes": resources.num_nodes,
            "exclusive": resources.exclusive,
            "priority": resources.priority,
            "run_time_max": None if limit is None else math.ceil(limit),
            "dependency_list": list(job.depends_on) or None,
            "command": command,
            "submission_template": template,
            **given,
        }

    def command(self, job: BatchJob) -> str:
        """The line of the script that runs the job."""
        resources = job.resources._replace(cwd=None, exclusive=False, run_time_max=None, num_nodes=None)
        if resources.cores == 1 and not resources.slurm_cmd_args:
            return shlex.join(job.command)
        return shlex.join(step_command(resources, job.command, pmi_mode=self._pmi_mode, srun="srun"))

    def guarded(self, job: BatchJob) -> str:
        """The same, where others may write: see `executorlib.backend.cache_log`."""
        directory = job.directory if job.resources.cwd is None else ""
        program = [sys.executable, get_command_path("cache_log.py")]
        return f"{shlex.join(program)} {self.log_word(job)} {shlex.quote(directory)} {self.command(job)}"

    def log_word(self, job: BatchJob) -> str:
        """The log as a word of the script."""
        parts = re.split("(%%|%a)", job.log)
        plain = {"%%": "%", "%a": '"$SLURM_ARRAY_TASK_ID"'}
        return "".join(plain.get(part) or shlex.quote(part) for part in parts if part)

    def arguments(self, job: BatchJob, log: str) -> list[str]:
        """What the submitter is told beside the script."""
        found = [f"--output={log}", f"--error={log}", "--open-mode=append"]
        found.append(f"--chdir={job.resources.cwd or job.directory}")
        if job.elements is not None:
            found.append(f"--array=0-{job.elements - 1}")
        if job.depends_on:
            found.append("--dependency=" + ",".join(f"afterok:{number}" for number in job.depends_on))
        return [*found, *job.options]

    def _execute(self, commands: Sequence[str], working_directory: str | None = None, **_: Any) -> str:
        """Called by pysqa with the command that submits a script."""
        command = list(commands)
        if self._stand_in is not None:
            _replace_in(command[-1], *self._stand_in)
        words = len(self.submitter)
        if tuple(command[:words]) == self.submitter:
            command[words:words] = self._arguments
        try:
            done = subprocess.run(
                command,
                env={**batch_environment(program_environment()), **self._environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SUBMIT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = f"{self.submitter[0]} has not answered in {error.timeout:g} s"
        else:
            if done.returncode == 0:
                number = done.stdout.partition(";")[0]  # and the name of the cluster, where there are several
                self._last = int(number) if number.strip().isdigit() else self._last
                return number
            said = done.stderr.strip() or done.stdout.strip()
            if not any(words in said for words in _UNDECIDED):
                raise SubmissionError(f"{self.name} refuses the job: {said}")
        found = self._submitted_all_the_same(command[-1])
        if found is None:
            raise SubmissionError(f"{self.name} does not say whether it takes the job: {said}")
        self._last = found
        return str(found)

    def _submitted_all_the_same(self, script: str) -> int | None:
        """The number of a job that the controller may have taken before it was too busy to answer."""
        if self.submitter != BatchSystem.submitter:
            return None
        for attempt in range(_ATTEMPTS):
            time.sleep(attempt * _ATTEMPT_SECONDS)
            try:
                number = slurm_queue.number_of_script(os.path.abspath(script), self._last)
            except (OSError, subprocess.SubprocessError):
                continue
            if number is not None:
                return number
        return None


def check_places(paths: CachePaths) -> None:
    """Refuse a task in whose places another user has put something.

    Raises:
        OSError: the directory of its job, or its log, is a link or belongs to another user
    """
    check_own(paths.job_directory)
    check_own(paths.log)


def _replace_in(path: str, old: str, new: str) -> None:
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace(old, new))


def batch_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job: that of the program, less what is about the job that the program runs in."""
    kept = {name: value for name, value in environment.items() if not _is_of_a_job(name)}
    return {**kept, PATH_VARIABLE: json.dumps([os.path.abspath(entry) for entry in sys.path])}


def _is_of_a_job(name: str) -> bool:
    # Such variables would be taken for options of sbatch and srun, see their manual pages.
    return name.startswith(("SLURM_", "SLURMD_", "PMI_", "PMIX_")) and name != "SLURM_CONF"
