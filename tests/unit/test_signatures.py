"""The signatures of the published executorlib 1.11.0: positional order and defaults stay, additions come at the end.

The table was read off the installed wheel with `inspect.signature`. What does not exist here yet is skipped.
"""

from __future__ import annotations

import importlib
import inspect
from inspect import Parameter
from typing import Any

import pytest

_HEAD = "max_workers=None, cache_directory=None, max_cores=None, resource_dict=None"
_BODY = (
    "hostname_localhost=None, block_allocation=False, init_function=None, disable_dependencies=False, "
    "refresh_rate=0.01, plot_dependency_graph=False, plot_dependency_graph_filename=None, "
    "export_workflow_filename=None, log_obj_size=False, wait=True"
)
_RESTART, _OPENMPI = "restart_limit=0", "openmpi_oversubscribe=False"
_PYSQA, _PMI = "pysqa_config_directory=None", "pmi_mode=None"
_FLUX = "flux_executor=None, flux_executor_nesting=False, flux_log_files=False"

_SINGLE = f"{_HEAD}, {_BODY}, {_RESTART}, {_OPENMPI}"
_TEST_CLUSTER = f"{_HEAD}, {_BODY}, {_OPENMPI}"
_CLUSTER = f"{_HEAD}, {_PYSQA}, {_PMI}, {_BODY}, {_OPENMPI}"
_SLURM_JOB = f"{_HEAD}, {_PMI}, {_BODY}, {_RESTART}, {_OPENMPI}"
_FLUX_JOB = f"{_HEAD}, {_PMI}, {_FLUX}, {_BODY}, {_RESTART}, {_OPENMPI}"

EXECUTORS = {
    "executorlib:SingleNodeExecutor": _SINGLE,
    "executorlib:SlurmClusterExecutor": _CLUSTER,
    "executorlib:SlurmJobExecutor": _SLURM_JOB,
    "executorlib:FluxClusterExecutor": _CLUSTER,
    "executorlib:FluxJobExecutor": _FLUX_JOB,
    "executorlib.api:TestClusterExecutor": _TEST_CLUSTER,
    "executorlib.executor.single:SingleNodeExecutor": _SINGLE,
    "executorlib.executor.single:TestClusterExecutor": _TEST_CLUSTER,
    "executorlib.executor.slurm:SlurmClusterExecutor": _CLUSTER,
    "executorlib.executor.slurm:SlurmJobExecutor": _SLURM_JOB,
    "executorlib.executor.flux:FluxClusterExecutor": _CLUSTER,
    "executorlib.executor.flux:FluxJobExecutor": _FLUX_JOB,
}
METHODS = {
    "submit": "self, fn, /, *args, resource_dict=None, **kwargs",
    "map": "self, fn, *iterables, timeout=None, chunksize=1",
    "batched": "self, iterable, n",
    "shutdown": "self, wait=True, *, cancel_futures=False",
    "__len__": "self",
    "__bool__": "self",
}
FUNCTIONS = {
    "executorlib:BaseExecutor": "executor",
    "executorlib.executor.base:BaseExecutor": "executor",
    "executorlib:get_cache_data": "cache_directory",
    "executorlib:get_cache_data_queue": "cache_directory, queue_type=None, config_directory=None",
    "executorlib:get_future_from_cache": "cache_directory, cache_key",
    "executorlib:get_item_from_future": "future, key",
    "executorlib:split_future": "future, n",
    "executorlib:terminate_task_in_cache": ("cache_directory, cache_key, pysqa_config_directory=None, backend=None"),
    "executorlib:terminate_tasks_in_cache": "cache_directory, pysqa_config_directory=None, backend=None",
    "executorlib.api:cancel_items_in_queue": "que",
    "executorlib.api:cloudpickle_register": "ind=2",
    "executorlib.api:get_command_path": "executable",
    "executorlib.standalone.select:FutureSelector": "future, selector",
    "executorlib.standalone.serialize:cloudpickle_register": "ind=2",
    "executorlib.standalone.command:get_command_path": "executable",
    "executorlib.standalone.hdf:dump": "file_name, data_dict",
    "executorlib.standalone.hdf:load": "file_name",
    "executorlib.standalone.hdf:get_output": "file_name",
    "executorlib.standalone.hdf:get_cache_data": "cache_directory",
    "executorlib.task_scheduler.file.spawner_pysqa:terminate_task_in_cache": (
        "cache_directory, cache_key, pysqa_config_directory=None, backend=None"
    ),
    "executorlib.task_scheduler.file.spawner_pysqa:terminate_tasks_in_cache": (
        "cache_directory, pysqa_config_directory=None, backend=None"
    ),
}
TABLE = {
    **EXECUTORS,
    **FUNCTIONS,
    **{f"{name}.{method}": text for name in EXECUTORS for method, text in METHODS.items()},
    **{f"executorlib:BaseExecutor.{method}": text for method, text in METHODS.items()},
}
# Issue 2 is the single node; the clusters come with later issues.
REQUIRED = [
    "executorlib:SingleNodeExecutor",
    "executorlib:BaseExecutor",
    "executorlib:get_cache_data",
    "executorlib:get_item_from_future",
    "executorlib:split_future",
    "executorlib.executor.single:SingleNodeExecutor",
    "executorlib.standalone.select:FutureSelector",
    "executorlib.standalone.serialize:cloudpickle_register",
    "executorlib.standalone.command:get_command_path",
]


def find(name: str) -> Any:
    """The object of a name like "module:Class.method"; LookupError if there is none."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise LookupError(name) from error
    return found


def published(text: str) -> list[Parameter]:
    """The parameters of a signature as text."""
    scope: dict[str, Any] = {}
    exec(f"def function({text}): ...", scope)
    return list(inspect.signature(scope["function"]).parameters.values())


@pytest.mark.parametrize("name", TABLE)
def test_positional_order_and_defaults_are_kept(name: str) -> None:
    try:
        ours = list(inspect.signature(find(name)).parameters.values())
    except LookupError:
        pytest.skip(f"{name} does not exist yet")
    theirs = published(TABLE[name])
    keywords = (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD)
    positional = [p for p in theirs if p.kind not in keywords]
    assert [(p.name, p.kind, p.default) for p in ours][: len(positional)] == [
        (p.name, p.kind, p.default) for p in positional
    ]
    by_name = {p.name: p for p in ours}
    for parameter in theirs:
        mine = by_name[parameter.name]
        assert mine.default == parameter.default
        assert type(mine.default) is type(parameter.default)
    known = {p.name for p in theirs}
    for added in (p for p in ours if p.name not in known):
        optional = added.default is not Parameter.empty
        assert optional or added.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL), f"{added} must be optional"


@pytest.mark.parametrize("name", EXECUTORS)
def test_what_is_new_in_all_executors_comes_last(name: str) -> None:
    try:
        parameters = list(inspect.signature(find(name)).parameters.values())
    except LookupError:
        pytest.skip(f"{name} does not exist yet")
    assert [(p.name, p.default) for p in parameters[-2:]] == [("export_timeline_filename", None), ("progress", False)]


@pytest.mark.parametrize("name", REQUIRED)
def test_these_exist(name: str) -> None:
    find(name)


@pytest.mark.parametrize("name", ["max_workers", "info", "future_queue"])
def test_properties(name: str) -> None:
    attribute = inspect.getattr_static(find("executorlib:BaseExecutor"), name)
    assert isinstance(attribute, property)
    assert (attribute.fset is not None) == (name == "max_workers")


def test_the_base_class_takes_what_sits_behind_it_as_executor() -> None:
    """Others make ``BaseExecutor(executor=...)``."""
    assert list(inspect.signature(find("executorlib:BaseExecutor").__init__).parameters)[:2] == ["self", "executor"]
