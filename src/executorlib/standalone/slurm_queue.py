"""What Slurm's controller knows of jobs: one question for all of them."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

_QUERY_SECONDS = 60.0
_OPTIONS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_CLUSTERS")
_FORMAT = "%i|%T|%M|%P|%r"
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
RUNNING = frozenset(
    {"CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
)
# Reasons for which a job waits until somebody changes the job or the cluster. (Nodes that are down have others.)
_NEVER = frozenset({"DependencyNeverSatisfied", "BadConstraints"})
# These are said of the partition that was looked at last: a job that names several may start in another.
_NEVER_IN_PARTITION = frozenset({"PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit"})

# Somebody has to release such a job, or to put right what it was submitted with.
_HELD_STATES = frozenset({"SPECIAL_EXIT", "REQUEUE_HOLD"})
_HELD = frozenset(
    {"JobHeldAdmin", "JobHeldUser", "JobHoldMaxRequeue", "InvalidAccount", "InvalidQOS", "launch_failed_requeued_held"}
)

# What scancel says of jobs that have ended.
_ENDED_ALREADY = ("Invalid job id", "already completing or completed")

_EXPLANATIONS = {
    "TIMEOUT": "it reached its time limit",
    "OUT_OF_MEMORY": "it used more memory than it had",
    "NODE_FAIL": "its node failed",
    "CANCELLED": "somebody has cancelled it",
    "PREEMPTED": "it had to give way to another job",
    "DEADLINE": "it could not end before its deadline",
    "BOOT_FAIL": "its node did not start",
    "COMPLETED": "it ended well, but left no result",
}


class JobStatus(NamedTuple):
    """A job in the queue, or one that has ended not long ago.

    Attributes:
        state: in Slurm's words, for example "RUNNING"
        seconds: how long it has run
        reason: why it waits or has failed
        partitions: those that it may run in, or runs in, with commas between them
    """

    state: str
    seconds: float = 0.0
    reason: str = ""
    partitions: str = ""

    @property
    def ended(self) -> bool:
        return self.state not in WAITING and self.state not in RUNNING

    @property
    def held(self) -> bool:
        """Whether it waits until somebody does something about it."""
        return self.state in _HELD_STATES or (self.state in WAITING and self.reason in _HELD)

    @property
    def unsatisfied(self) -> bool:
        """Whether a job that it depends on has failed."""
        return self.reason == "DependencyNeverSatisfied"

    @property
    def never_starts(self) -> bool:
        """Whether it waits for ever."""
        return self.reason in _NEVER or (self.reason in _NEVER_IN_PARTITION and "," not in self.partitions)

    def explain(self) -> str:
        """The state as part of a sentence."""
        said = _EXPLANATIONS.get(self.state)
        parts = [part for part in (said, self.reason if self.reason not in ("None", "") else None) if part]
        return self.state + (f" ({'; '.join(parts)})" if parts else "")


def query() -> dict[str, JobStatus]:
    """All jobs of this user, each element of an array for itself.

    Raises:
        OSError, subprocess.SubprocessError: the controller does not answer
    """
    user = str(os.getuid())
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={user}", f"--format={_FORMAT}"]
    return parse(_run(command))


def number_of_script(path: str, after: int) -> int | None:
    """The last job of this user that waits or runs with this script, of those with numbers after this one.

    Raises:
        OSError, subprocess.SubprocessError: the controller does not answer
    """
    command = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=PENDING,CONFIGURING,RUNNING"]
    rows = [line.strip().split("|", 1) for line in _run([*command, "--format=%F|%o"]).splitlines()]
    found = [int(row[0]) for row in rows if row[-1] == path and row[0].isdigit()]
    return max((number for number in found if number > after), default=None)


def parse(text: str) -> dict[str, JobStatus]:
    """What squeue prints in our format."""
    found = {}
    for line in text.splitlines():
        if line.count("|") < 4:  # where there are several clusters it names each
            continue
        job, state, used, partitions, reason = line.strip().split("|", 4)
        found[job] = JobStatus(state, _seconds(used), reason, partitions)
    return found


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if match is None:  # it has not begun
        return 0.0
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def query_ended(jobs: Sequence[str]) -> dict[str, JobStatus]:
    """Jobs that the controller has forgotten, as the accounting knows them; nothing where there is none."""
    if not jobs:
        return {}
    command = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--jobs={','.join(jobs)}",
        "--format=JobID,State",
    ]
    try:
        said = _run(command)
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for line in said.splitlines():
        job, _, state = line.partition("|")
        found[job] = JobStatus(state.split()[0] if state.split() else "UNKNOWN")
    return found


def cancel(jobs: Sequence[str], *options: str) -> None:
    """End jobs; those that have ended are left alone.

    Raises:
        OSError: some of them may not have been ended, because the controller does not answer or refuses it
    """
    if not jobs:
        return
    try:
        done = subprocess.run(
            ["scancel", "--quiet", *options, *jobs],
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=_QUERY_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(errno.ETIMEDOUT, f"scancel has not answered in {error.timeout:g} s") from error
    said = [line for line in done.stderr.splitlines() if not any(word in line for word in _ENDED_ALREADY)]
    if done.returncode != 0 and said:
        raise OSError(errno.EIO, said[0].strip())


def requeue(job: str) -> bool:
    """Have a job run again under its number; returns whether Slurm does that."""
    try:
        _run(["scontrol", "requeue", job])
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def forget_dependencies(job: str) -> bool:
    """Let a job start without those that it was to wait for; returns whether Slurm does that."""
    try:
        _run(["scontrol", "update", f"JobId={job}", "Dependency="])
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def largest_array() -> int | None:
    """How many elements an array may have at this site; None where Slurm does not tell."""
    try:
        said = _run(["scontrol", "show", "config"])
    except (OSError, subprocess.SubprocessError):
        return None
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, re.MULTILINE)
    return max(1, int(size[1]) - 1) if size is not None else None


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=_QUERY_SECONDS,
    )
    return done.stdout


def _environment() -> dict[str, str]:
    """That of the program, without its options for these commands, which would change what they say or do.

    They are about the cluster that sbatch submits to, which in `batch_script` sees no variable ``SLURM_CLUSTERS``.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OPTIONS)}
    clusters = kept.get("SBATCH_CLUSTERS")
    return kept if clusters is None else {**kept, "SLURM_CLUSTERS": clusters}
