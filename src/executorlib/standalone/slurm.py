"""Slurm's allocation as the environment tells it, and the commands that start steps in it.

The names and formats are those of the manual pages of srun and sbatch (section OUTPUT ENVIRONMENT VARIABLES).
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from executorlib.standalone.resources import Resources

# Steps that share their nodes with others came with Slurm 20.11.
_OVERLAP_VERSION = (20, 11)
# Steps with numbers from here up are Slurm's own, such as the script of a job: they hold no cores.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
# Set in a job by its options, and taken by srun for options of a step. How much a step gets was counted here.
_STEP_OPTIONS = frozenset(
    f"{prefix}_{name}"
    for prefix in ("SLURM", "SRUN")
    for name in (
        "CPUS_PER_TASK",
        "CPU_BIND",
        "CPU_BIND_LIST",
        "CPU_BIND_TYPE",
        "CPU_BIND_VERBOSE",
        "DISTRIBUTION",
        "EXPORT_ENV",
        "GPUS",
        "GPUS_PER_NODE",
        "GPUS_PER_TASK",
        "MEM_PER_CPU",
        "MEM_PER_GPU",
        "MEM_PER_NODE",
        "NTASKS_PER_CORE",
        "NTASKS_PER_GPU",
        "NTASKS_PER_NODE",
        "TRES_PER_TASK",
    )
)
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


class Node(NamedTuple):
    """A compute node of an allocation.

    Attributes:
        name: as Slurm calls it
        cores: CPUs of it that belong to the allocation
        gpus: GPUs of it; None where the environment does not tell
    """

    name: str
    cores: int
    gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """The nodes that a job has.

    Attributes:
        job: the job's number
        nodes: its nodes, in Slurm's order
    """

    job: str
    nodes: tuple[Node, ...]

    @property
    def cores(self) -> int:
        return sum(node.cores for node in self.nodes)

    @property
    def gpus(self) -> int | None:
        """GPUs of all nodes; None where nobody tells."""
        if any(node.gpus is None for node in self.nodes):
            return None
        return sum(node.gpus or 0 for node in self.nodes)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Allocation | None:
        """The allocation that a program runs in; None outside of one.

        Raises:
            ValueError: the variables contradict each other
        """
        job = environment.get("SLURM_JOB_ID")
        nodes = environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST")
        counts = environment.get("SLURM_JOB_CPUS_PER_NODE")
        if not job or not nodes or not counts:
            return None
        names, cores = expand_nodes(nodes), expand_counts(counts)
        if len(names) != len(cores):
            raise ValueError(f"SLURM_JOB_NODELIST={nodes} names {len(names)} nodes, SLURM_JOB_CPUS_PER_NODE={counts}")
        gpus = environment.get("SLURM_GPUS_ON_NODE", "")
        each = int(gpus) if gpus.isdigit() else None
        return cls(job, tuple(Node(name, count, each) for name, count in zip(names, cores, strict=True)))


def expand_counts(text: str) -> list[int]:
    """``"4(x2),2"`` as ``[4, 4, 2]``.

    Raises:
        ValueError: it is no such list
    """
    found = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        if match is None:
            raise ValueError(f"not a list of counts as Slurm writes it: {text!r}")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def expand_nodes(text: str) -> list[str]:
    """``"n[1-2,07],m3"`` as ``["n1", "n2", "n07", "m3"]``.

    Raises:
        ValueError: it is no such list
    """
    # Only commas outside of brackets separate names.
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if ",".join(parts) != text:
        raise ValueError(f"not a list of nodes as Slurm writes it: {text!r}")
    return [name for part in parts for name in _expand_name(part)]


def _expand_name(text: str) -> list[str]:
    pieces = re.split(r"\[([^\[\]]*)\]", text)  # in turn: plain text, what was in brackets
    choices = [[piece] if place % 2 == 0 else _expand_ranges(piece) for place, piece in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _expand_ranges(text: str) -> list[str]:
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise ValueError(f"not a range of nodes as Slurm writes it: {part!r}")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found


@functools.cache
def srun_path() -> str:
    """The srun on PATH.

    Raises:
        FileNotFoundError: there is none
    """
    path = shutil.which("srun")
    if path is None:
        raise FileNotFoundError("There is no srun on PATH: this executor needs Slurm.")
    return path


@functools.cache
def has_overlap() -> bool:
    """Whether steps of this Slurm may share their nodes with others, as node agents do."""
    said = subprocess.run([srun_path(), "--version"], capture_output=True, text=True, check=False).stdout
    numbers = re.search(r"(\d+)\.(\d+)", said)
    return numbers is None or (int(numbers[1]), int(numbers[2])) >= _OVERLAP_VERSION


def needs_step(resources: Resources) -> bool:
    """Whether a call needs a job step of its own, which a process forked on a node cannot stand in for."""
    return bool(
        resources.cores > 1
        or resources.gpus
        or resources.slurm_cmd_args
        or resources.exclusive
        or resources.num_nodes is not None
    )


def step_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for the start of a step, in which nothing but the command line says how much it gets."""
    return {name: value for name, value in environment.items() if name not in _STEP_OPTIONS}


def is_in_step(environment: Mapping[str, str]) -> bool:
    """Whether a program runs in a step that holds cores of the allocation, as ``srun --pty bash`` does."""
    step = environment.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def agent_command(node: str, program: Sequence[str]) -> list[str]:
    """Start of a step that shares a node with all others: it holds none of the CPUs and of the memory."""
    return [
        srun_path(),
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={node}",
        "--overlap",
        "--mem=0",
        "--mpi=none",
        *program,
    ]


def step_command(
    resources: Resources,
    program: Sequence[str],
    *,
    places: Sequence[tuple[str, int]] = (),
    pmi_mode: str | None = None,
    time_limit: bool = False,
    overlap: bool = False,
    no_gpus: bool = False,
    srun: str | None = None,
) -> list[str]:
    """The command line of a step.

    Without ``--mem`` a step would have all the memory of a job that has it by node, and the next would wait for it;
    with 0 all steps share it. Without ``--gres`` it would have all GPUs of the job.

    Args:
        resources: what the call needs
        program: the worker program and its arguments
        places: the nodes and how many ranks run on each; none to leave that to Slurm
        pmi_mode: how ranks find each other, as ``srun --mpi`` takes it
        time_limit: whether Slurm is to end the step some time after the ``run_time_max``
        overlap: whether the step may run on CPUs that others use
        no_gpus: whether to keep the GPUs of the job for other steps
        srun: the name of the command, where it is not run here
    """
    command = [srun or srun_path(), f"--ntasks={resources.cores}"]
    if resources.cores > 1:  # the others would wait for a rank that has died for ever
        command.append("--kill-on-bad-exit=1")
    threads = resources.threads_per_core or 1
    if threads > 1:
        command.append(f"--cpus-per-task={threads}")
    if resources.gpus_per_core:
        command.append(f"--gpus-per-task={resources.gpus_per_core}")
    if places:
        command.append(f"--nodes={len(places)}")
        if len(places) == 1:
            command.append(f"--nodelist={places[0][0]}")
        else:  # rank by rank: how many run on which node was counted here
            command.append("--nodelist=" + ",".join(name for name, ranks in places for _ in range(ranks)))
            command.append("--distribution=arbitrary")
    elif resources.num_nodes is not None:
        command.append(f"--nodes={resources.num_nodes}")
    if resources.cwd is not None:
        command.append(f"--chdir={os.path.abspath(resources.cwd)}")
    if overlap:
        command += ["--exact", "--overlap"]
    else:
        command.append("--exclusive" if resources.exclusive else "--exact")
    if not any(argument.startswith("--mem") for argument in resources.slurm_cmd_args):
        command.append("--mem=0")
    if no_gpus and not resources.gpus_per_core:
        command.append("--gres=none")
    if resources.openmpi_oversubscribe:
        command.append("--oversubscribe")
    if time_limit and resources.run_time_max is not None:
        # Slurm counts whole minutes, and from the start of the step: the limit of the executor is to come first.
        command.append(f"--time={int(resources.run_time_max // 60) + 2}")
    if pmi_mode is not None:
        command.append(f"--mpi={pmi_mode}")
    return [*command, *resources.slurm_cmd_args, *program]
