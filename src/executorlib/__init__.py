"""Run Python functions with their own resources: on a laptop, inside an allocation, or as batch jobs.

All executors have the interface of `concurrent.futures.Executor`; ``submit`` takes a ``resource_dict`` beside the
arguments of the function.
"""

from __future__ import annotations

# A type checker takes the name for true; typing itself would be a large part of the import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from executorlib.executor.base import BaseExecutor
    from executorlib.executor.flux import FluxClusterExecutor, FluxJobExecutor
    from executorlib.executor.single import SingleNodeExecutor
    from executorlib.executor.slurm import SlurmClusterExecutor, SlurmJobExecutor
    from executorlib.standalone.hdf import get_cache_data, get_future_from_cache
    from executorlib.standalone.select import get_item_from_future, split_future
    from executorlib.task_scheduler.file.spawner_pysqa import (
        get_cache_data_queue,
        terminate_task_in_cache,
        terminate_tasks_in_cache,
    )

_HOMES = {
    "BaseExecutor": "executorlib.executor.base",
    "FluxClusterExecutor": "executorlib.executor.flux",
    "FluxJobExecutor": "executorlib.executor.flux",
    "SingleNodeExecutor": "executorlib.executor.single",
    "SlurmClusterExecutor": "executorlib.executor.slurm",
    "SlurmJobExecutor": "executorlib.executor.slurm",
    "get_cache_data": "executorlib.standalone.hdf",
    "get_cache_data_queue": "executorlib.task_scheduler.file.spawner_pysqa",
    "get_future_from_cache": "executorlib.standalone.hdf",
    "get_item_from_future": "executorlib.standalone.select",
    "split_future": "executorlib.standalone.select",
    "terminate_task_in_cache": "executorlib.task_scheduler.file.spawner_pysqa",
    "terminate_tasks_in_cache": "executorlib.task_scheduler.file.spawner_pysqa",
}

__all__ = [
    "BaseExecutor",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
    "get_cache_data",
    "get_cache_data_queue",
    "get_future_from_cache",
    "get_item_from_future",
    "split_future",
    "terminate_task_in_cache",
    "terminate_tasks_in_cache",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: the import of the package itself stays cheap."""
    import importlib

    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("executorlib")
        except PackageNotFoundError:  # run from a source tree that is not installed
            value = "1.11.1.dev0"
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "__version__"])
