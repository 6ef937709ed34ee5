"""What the figures depend on, without anything that tells whose machine it is."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

from environments import environment_of
from rows import NAMES, OURS

_PACKAGES = {"loky": "loky", "dask": "distributed", "parsl": "parsl", "published": "executorlib"}


def describe(libraries: list[str]) -> dict[str, str]:
    """Names and values for the head of the table."""
    described = {
        "CPU": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    for library in libraries:
        if library in _PACKAGES:
            described[NAMES[library]] = environment_of(library).versions().get(_PACKAGES[library], "unknown")
    ours = environment_of(OURS).versions()
    described["numpy"] = ours.get("numpy", "unknown")
    return described


def load() -> float:
    """Processes that want to run, on average over the last minute."""
    return os.getloadavg()[0]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
