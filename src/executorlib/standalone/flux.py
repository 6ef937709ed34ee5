"""The Flux instance that a program runs in, and its jobs as command lines.

A job is described by a command line as a user of Flux would type it (manual pages of flux-submit and flux-alloc of
flux-core 0.88). It is what an error message shows; the launcher makes a jobspec of it and never runs it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from getopt import getopt
from typing import Any

from executorlib.standalone.resources import Resources

_DEFAULT_URGENCY = 16
_MOST_URGENT = 31
# The limit of the executor is to come first: that of Flux counts from the start of the job, with that of Python.
_START_MARGIN = 60
_OPTIONS = "n:c:g:N:t:o:", ["exclusive", "urgency=", "output=", "error=", "job-name=", "dependency="]
_CURES = "Start the program with 'flux start', 'flux run' or 'flux batch', or set FLUX_URI (see Troubleshooting: Flux)."


@dataclass(frozen=True, slots=True)
class Instance:
    """What a Flux instance has.

    Attributes:
        cores: of all nodes, and of those that are up
        gpus: of the nodes that are up
        hosts: the names of the nodes
    """

    cores: int
    cores_up: int
    gpus: int
    hosts: frozenset[str]


def open_handle() -> Any:
    """A connection to the Flux instance that the program runs in.

    Raises:
        ModuleNotFoundError: there is no flux-python
        ConnectionError: there is no instance
    """
    try:
        from flux.core.handle import Flux
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}: this executor needs the Python package of Flux, of the same version as flux-core: "
            "'pip install flux-python==VERSION ply', with the VERSION that 'flux version' tells.",
            name=error.name,
        ) from error
    try:
        return Flux()
    except OSError as error:
        raise ConnectionError(f"There is no Flux instance ({error}). {_CURES}") from error


def inspect_instance(handle: Any) -> Instance:
    """Ask an instance what it has."""
    from flux.resource.list import resource_list

    resources = resource_list(handle).get()
    return Instance(
        cores=resources.all.ncores,
        cores_up=resources.up.ncores,
        gpus=resources.up.ngpus,
        hosts=frozenset(str(host) for host in resources.all.nodelist),
    )


def needs_job(resources: Resources) -> bool:
    """Whether a call needs a job of its own, which a process forked in another job cannot stand in for."""
    return bool(resources.cores > 1 or resources.gpus or resources.exclusive or resources.num_nodes is not None)


def urgency(priority: int) -> int:
    """What Flux calls the priority that a user gives: 1 to 31, by default 16. (With 0 a job would be held for ever.)"""
    return min(max(priority, 1), _MOST_URGENT) if priority else _DEFAULT_URGENCY


def job_command(
    resources: Resources,
    program: Sequence[str],
    *,
    pmi_mode: str | None = None,
    time_limit: bool = False,
    start_margin: float = _START_MARGIN,
    nesting: bool = False,
    options: Iterable[str] = (),
) -> list[str]:
    """The command line of a job.

    Args:
        resources: what the job needs
        program: what it runs, and its arguments
        pmi_mode: how ranks find each other, as Flux's shell option ``pmi`` takes it
        time_limit: whether Flux is to end the job after the ``run_time_max``
        start_margin: and how many seconds after it
        nesting: whether the job is an instance of Flux, in which the program runs
        options: further options
    """
    command = ["flux", "alloc" if nesting else "submit", "-n", str(resources.cores)]
    if resources.threads_per_core is not None and resources.threads_per_core > 1:
        command += ["-c", str(resources.threads_per_core)]
    if resources.gpus_per_core:
        command += ["-g", str(resources.gpus_per_core)]
    if resources.num_nodes is not None:
        command += ["-N", str(resources.num_nodes)]
    if resources.exclusive:
        command.append("--exclusive")
    if time_limit and resources.run_time_max is not None:
        command += ["-t", f"{resources.run_time_max + start_margin:g}s"]
    if resources.priority:
        command.append(f"--urgency={urgency(resources.priority)}")
    if resources.cores > 1 and not nesting:  # the others would wait for a rank that has died for ever
        command.append("-oexit-on-error")
    if pmi_mode is not None and not nesting:
        command.append(f"-opmi={pmi_mode}")
    command += options
    if nesting and resources.cores > 1:
        pmi = [] if pmi_mode is None else [f"-opmi={pmi_mode}"]
        command += ["flux", "run", "-n", str(resources.cores), "-oexit-on-error", *pmi]
    return [*command, *program]


def description(name: str, log: str, depends_on: Iterable[int]) -> list[str]:
    """Options for what has nothing to do with the size of a job.

    Args:
        name: what it is called
        log: the file for what it prints
        depends_on: the numbers of jobs that have to end well first
    """
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "", name) or "executorlib"
    files = [f"--output={log}", f"--error={log}"]
    return [f"--job-name={readable}", *files, *(f"--dependency=afterok:{number}" for number in depends_on)]


def active_job(handle: Any, number: int) -> bool:
    """Whether a job waits or runs; Flux may have forgotten one that has ended."""
    from flux.job import get_job

    found = get_job(handle, number)
    return found is not None and found.get("state") != "INACTIVE"


def jobspec_of(command: Sequence[str], environment: dict[str, str], cwd: str | None) -> tuple[Any, int]:
    """The jobspec of a job, and its urgency.

    Args:
        command: a command line of `job_command`
        environment: that of the job
        cwd: its working directory

    Raises:
        ValueError: Flux knows no such job
    """
    from flux.job import JobspecV1

    pairs, program = getopt(command[2:], *_OPTIONS)
    options = dict(pairs)
    nodes = options.get("-N")
    counts: dict[str, Any] = {"num_nodes": None if nodes is None else int(nodes), "exclusive": "--exclusive" in options}
    if command[1] == "alloc":
        names, make = ("num_slots", "cores_per_slot", "gpus_per_slot"), JobspecV1.from_nest_command
    else:
        names, make = ("num_tasks", "cores_per_task", "gpus_per_task"), JobspecV1.from_command
    sizes = int(options["-n"]), int(options.get("-c", 1)), int(options.get("-g", 0)) or None
    counts.update(zip(names, sizes, strict=True))
    jobspec = make(command=program, **counts)
    jobspec.cwd = cwd or os.getcwd()
    # A jobspec is JSON: what is no text cannot travel with it.
    jobspec.environment = {name: value for name, value in environment.items() if _is_text(name) and _is_text(value)}
    if "-t" in options:
        jobspec.duration = float(options["-t"].removesuffix("s"))
    dependencies = []
    for name, value in pairs:
        if name == "-o":
            option, _, setting = value.partition("=")
            jobspec.setattr_shell_option(option, setting or 1)
        elif name in ("--output", "--error"):
            stream = "output.stdout" if name == "--output" else "output.stderr"
            jobspec.setattr_shell_option(f"{stream}.type", "file")
            jobspec.setattr_shell_option(f"{stream}.path", value)
        elif name == "--dependency":
            scheme, _, other = value.partition(":")
            dependencies.append({"scheme": scheme, "value": other})
    if dependencies:
        jobspec.setattr("system.dependencies", dependencies)
    jobspec.setattr("system.job.name", options.get("--job-name", "executorlib"))
    return jobspec, int(options.get("--urgency", _DEFAULT_URGENCY))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def agent_command(threads: int, program: Sequence[str]) -> list[str]:
    """The job in which an agent forks workers, one at a time. They are no ranks of one another."""
    return job_command(Resources(threads_per_core=threads), program, options=["-opmi=off"])
