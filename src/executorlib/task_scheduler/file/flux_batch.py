"""How the job of a task is submitted to Flux: through its Python interface, or with a template through pysqa."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from executorlib.standalone.cache_outcome import remove
from executorlib.standalone.cache_trust import make_own_directory, others_may_write
from executorlib.standalone.command import PATH_VARIABLE, get_command_path
from executorlib.standalone.errors import SubmissionError
from executorlib.standalone.flux import active_job, description, job_command, jobspec_of
from executorlib.standalone.hardware import program_environment
from executorlib.standalone.interactive.flux_connection import words
from executorlib.task_scheduler.file.batch_script import BatchJob, BatchSystem, check_places
from executorlib.task_scheduler.file.launcher import Job


class FluxBatch:
    """Submits the jobs of tasks, from one thread.

    Without a template a job is described to Flux directly, which takes a thousandth of the time of a script. A template
    is one of pysqa, for ``flux batch``; the log, the name and the order of jobs are told on its command line.

    Args:
        config_directory: configuration of pysqa, with its own templates
        pmi_mode: how ranks find each other, as Flux's shell option ``pmi`` takes it
    """

    def __init__(self, config_directory: str | None = None, pmi_mode: str | None = None) -> None:
        self._config_directory = config_directory
        self._pmi_mode = pmi_mode
        self._scripts: FluxScripts | None = None

    def submit(self, handle: Any, job: Job) -> Callable[[], int]:
        """Ask Flux to run a job; what is returned waits for the job's number.

        Raises:
            SubmissionError: Flux refuses the job, from here or from what is returned
            OSError: another user has made its directory or its log
            ValueError: there are variables and no template, or the name of a file has two braces
            Exception: what pysqa raises about the configuration, the template or its variables
        """
        if "{{" in job.paths.input:
            raise ValueError(
                f"Flux takes two braces for a variable of its own: {job.paths.input} cannot be a file of it"
            )
        check_places(job.paths)
        job_directory = os.path.abspath(job.resources.cwd or job.paths.job_directory)
        if job.resources.cwd is None:
            make_own_directory(job_directory)
        else:
            os.makedirs(job_directory, exist_ok=True)
        if self._config_directory is not None or job.resources.submission_template is not None:
            number = self._submit_script(job)
            return lambda: number
        if job.resources.template_variables:
            names = ", ".join(name for name, _ in job.resources.template_variables)
            raise ValueError(f"there is no submission_template whose variables {names} could be")
        return self._submit_jobspec(handle, job, job_directory)

    def clean_up(self, job: Job) -> None:
        """Remove the script of a job, and its working directory if nothing is in it."""
        try:
            remove(os.path.join(job.paths.job_directory, "run_queue.sh"))
            os.rmdir(job.paths.job_directory)
        except OSError:  # the function has files there
            pass

    def _submit_script(self, job: Job) -> int:
        if self._scripts is None:
            self._scripts = FluxScripts(self._config_directory, self._pmi_mode)
        script = BatchJob(
            name=job.name,
            directory=job.paths.job_directory,
            command=job.program,
            resources=job.resources,
            log=job.paths.log,
            depends_on=tuple(str(number) for number in job.depends_on),
        )
        return int(self._scripts.submit(script))

    def _submit_jobspec(self, handle: Any, job: Job, directory: str) -> Callable[[], int]:
        from flux.job import submit_async

        log, program = job.paths.log, job.program
        if others_may_write(job.paths.folder):
            guarded = "" if job.resources.cwd is not None else directory
            program = [sys.executable, get_command_path("cache_log.py"), log, guarded, *program]
            log = os.devnull

        def ask(depends_on: Sequence[Any]) -> Any:
            options = description(job.name, log, [int(number) for number in depends_on])
            command = job_command(
                job.resources, program, pmi_mode=self._pmi_mode, time_limit=True, start_margin=0, options=options
            )
            jobspec, urgency = jobspec_of(command, environment(), directory)
            return submit_async(handle, jobspec, urgency=urgency)

        asked = ask(job.depends_on)

        def number() -> int:
            try:
                return int(asked.get_id())
            except OSError as error:
                # Flux forgets jobs that have ended well: nobody has to wait for those.
                alive = [other for other in job.depends_on if active_job(handle, int(other))]
                if len(alive) == len(job.depends_on):
                    raise SubmissionError(f"Flux refuses the job: {words(error)}") from error
            return int(ask(alive).get_id())

        return number


class FluxScripts(BatchSystem):
    """Writes scripts for ``flux batch`` by a template, and submits them. The size of a job is the template's affair."""

    name = "Flux"
    submitter = ("flux", "batch")

    def command(self, job: BatchJob) -> str:
        if job.resources.cores == 1:
            return shlex.join(job.command)
        pmi = [] if self._pmi_mode is None else [f"-opmi={self._pmi_mode}"]
        return shlex.join(["flux", "run", "-n", str(job.resources.cores), "-oexit-on-error", *pmi, *job.command])

    def log_word(self, job: BatchJob) -> str:
        return shlex.quote(job.log)

    def arguments(self, job: BatchJob, log: str) -> list[str]:
        found = [f"--cwd={os.path.abspath(job.resources.cwd or job.directory)}"]
        return found + description(job.name, log, [int(number) for number in job.depends_on])


def environment() -> dict[str, str]:
    """The environment of a job: that of the program, less what is about the job that the program runs in."""
    found = {name: value for name, value in program_environment().items() if not name.startswith(("PMI_", "FLUX_JOB_"))}
    return {**found, PATH_VARIABLE: json.dumps([os.path.abspath(entry) for entry in sys.path])}
