"""What this machine offers: CPUs and GPUs, as far as this process may use them."""

from __future__ import annotations

import functools
import itertools
import os

from executorlib.standalone.command import KEY_VARIABLE

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""Environment variables that set the number of threads of numerical libraries."""

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def program_environment() -> dict[str, str]:
    """The environment variables now, whatever another thread does to them meanwhile.

    Without keys of executors, which a `SocketInterface` has put there for its own worker: a task may see them, and a
    queueing system would keep them.
    """
    while True:
        try:
            return {name: value for name, value in dict(os.environ).items() if not name.startswith(KEY_VARIABLE)}
        except (KeyError, RuntimeError):  # one has been removed, or added, during the look
            continue


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity mask and the CPU quota of its control groups, at least 1."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cpus = os.cpu_count() or 1
    quota = cgroup_cpus()
    return max(1, min(cpus, int(quota)) if quota is not None else cpus)


def cgroup_cpus(root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> float | None:
    """The smallest CPU quota on the way from this process's control group up to the root, in CPUs.

    The files are those of the kernel's documentation: cpu.max (version 2), cpu.cfs_quota_us (version 1).
    """
    try:
        lines = _read(membership).splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = os.path.join(root, controllers) if controllers else root
        parts = [part for part in path.split("/") if part]
        quotas += [_quota(os.path.join(top, *parts[:depth])) for depth in range(len(parts) + 1)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: str) -> float | None:
    try:
        if os.path.exists(os.path.join(group, "cpu.max")):
            quota, period = _read(os.path.join(group, "cpu.max")).split()
        else:
            quota = _read(os.path.join(group, "cpu.cfs_quota_us"))
            period = _read(os.path.join(group, "cpu.cfs_period_us"))
        share = int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return share if share > 0 else None


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


@functools.cache
def gpus() -> tuple[str, ...]:
    """The GPUs of this machine by the names that GPU_VARIABLES take; those that the environment allows."""
    for variable in GPU_VARIABLES:
        if variable in os.environ:
            names = (name.strip() for name in os.environ[variable].split(","))
            # CUDA takes the names up to the first that is none, such as -1 or Slurm's NoDevFiles.
            return tuple(itertools.takewhile(lambda name: name and name[0] != "-" and name != "NoDevFiles", names))
    nvidia = sum(name.removeprefix("nvidia").isdigit() for name in _list("/dev"))
    return tuple(str(number) for number in range(nvidia or _amd_gpus()))


def _amd_gpus() -> int:
    # The kernel lists CPUs among the nodes too: these have no SIMD units.
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    found = 0
    for node in _list(nodes):
        try:
            lines = _read(os.path.join(nodes, node, "properties")).splitlines()
        except OSError:
            continue
        found += any(line.split()[0] == "simd_count" and line.split()[1] != "0" for line in lines if line.strip())
    return found


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def thread_environment(threads_per_core: int | None, environment: dict[str, str]) -> dict[str, str]:
    """The variables that hold numerical libraries to their number of threads.

    Args:
        threads_per_core: as in the `ResourceDict`; without it 1, unless the environment says something else
        environment: that of the worker
    """
    if threads_per_core is not None:
        return dict.fromkeys(THREAD_VARIABLES, str(threads_per_core))
    return {name: "1" for name in THREAD_VARIABLES if name not in environment}
