"""What this machine offers: CPUs and GPUs, as far as this process may use them."""

from __future__ import annotations

import functools
import glob
import os
from pathlib import Path

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


def usable_cpus() -> int:
    """CPUs that this process may use: its affinity mask and the CPU quota of its control groups, at least 1."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cpus = os.cpu_count() or 1
    quota = _cgroup_cpus(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return max(1, min(cpus, int(quota)) if quota is not None else cpus)


def _cgroup_cpus(root: Path, membership: Path) -> float | None:
    """The smallest CPU quota on the way from this process's control group up to the root, in CPUs.

    The files are those of the kernel's documentation: cpu.max (version 2), cpu.cfs_quota_us (version 1).
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root if not controllers else root / controllers
        group = top / path.lstrip("/")
        while True:
            quotas.append(_quota(group))
            if group == top or top not in group.parents:
                break
            group = group.parent
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return share if share > 0 else None


@functools.cache
def gpus() -> tuple[str, ...]:
    """The GPUs of this machine by the names that GPU_VARIABLES take; those that the environment allows."""
    for variable in GPU_VARIABLES:
        if variable in os.environ:
            return tuple(name.strip() for name in os.environ[variable].split(",") if name.strip())
    nvidia = glob.glob("/dev/nvidia[0-9]*")
    if nvidia:
        return tuple(str(number) for number in range(len(nvidia)))
    return tuple(str(number) for number in range(len(_amd_gpus())))


def _amd_gpus() -> list[str]:
    # The kernel lists CPUs among the nodes too: these have no SIMD units.
    found = []
    for properties in glob.glob("/sys/class/kfd/kfd/topology/nodes/*/properties"):
        try:
            values = dict(line.split()[:2] for line in Path(properties).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if int(values.get("simd_count", "0")) > 0:
            found.append(properties)
    return found


def thread_environment(threads_per_core: int | None, environment: dict[str, str]) -> dict[str, str]:
    """The variables that hold numerical libraries to their number of threads.

    Args:
        threads_per_core: as in the `ResourceDict`; without it 1, unless the environment says something else
        environment: that of the worker
    """
    if threads_per_core is not None:
        return dict.fromkeys(THREAD_VARIABLES, str(threads_per_core))
    return {name: "1" for name in THREAD_VARIABLES if name not in environment}
