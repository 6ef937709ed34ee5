"""The resources of a task: the keys of a ``resource_dict``, their types, defaults and checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict


class ResourceDict(TypedDict, total=False):
    """The keys of a ``resource_dict``, given to an executor for all its tasks, to a call, or to both: the call wins."""

    cores: int
    """MPI ranks that run the function together, 1 by default. With more than one the result is the list of all ranks'
    results in rank order."""
    threads_per_core: int
    """Threads of each rank: sets OMP_NUM_THREADS and its relatives for the task and takes as many cores of the limit.
    By default 1 core is counted, and the variables are 1 unless the environment already sets them."""
    gpus_per_core: int
    """GPUs of each rank, 0 by default; a rank sees its own through CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES."""
    cwd: str | None
    """Working directory of the task, made if it is missing; by default that of the program."""
    openmpi_oversubscribe: bool
    """Let Open MPI start more ranks than the machine has cores."""
    slurm_cmd_args: list[str]
    """Further arguments of srun (SlurmJobExecutor)."""
    num_nodes: int | None
    """Compute nodes over which the ranks are spread."""
    exclusive: bool
    """Whether the nodes are for this task alone."""
    error_log_file: str | None
    """File to which a failing task appends its function, its arguments and its traceback."""
    run_time_max: int | None
    """Longest run time in seconds; after it the task's processes are ended and its future raises TimeoutError."""
    priority: int | None
    """Tasks of higher priority start first among those that are ready; 0 by default."""
    cache_key: str
    """Name of the task in the cache directory, instead of one made from the function and its arguments."""
    cache_directory: str | None
    """Directory in which the result is kept and looked up."""
    submission_template: str | None
    """Template of the batch script (cluster executors)."""


class Resources(NamedTuple):
    """A checked ``resource_dict``: see `ResourceDict` for the meaning of each field."""

    cores: int = 1
    threads_per_core: int | None = None
    gpus_per_core: int = 0
    cwd: str | None = None
    openmpi_oversubscribe: bool = False
    slurm_cmd_args: tuple[str, ...] = ()
    num_nodes: int | None = None
    exclusive: bool = False
    error_log_file: str | None = None
    run_time_max: float | None = None
    priority: int = 0
    cache_key: str | None = None
    cache_directory: str | None = None
    submission_template: str | None = None
    template_variables: tuple[tuple[str, Any], ...] = ()

    @property
    def slots(self) -> int:
        """Cores of the machine that a task takes."""
        return self.cores * (self.threads_per_core or 1)

    @property
    def gpus(self) -> int:
        return self.cores * self.gpus_per_core

    def given(self) -> dict[str, Any]:
        """Those that are not the default."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}

    def updated(self, resource_dict: Mapping[str, Any], *, template: bool = False) -> Resources:
        """These resources with what a call asks for; the dictionary is not changed.

        Args:
            resource_dict: what the call asks for
            template: whether unknown keys are variables of a submission template

        Raises:
            pydantic.ValidationError: a key is unknown or a value has the wrong type, where pydantic is installed
            TypeError: the same, where it is not
        """
        problems = [p for key in resource_dict if (p := _problem(key, resource_dict[key], template))]
        if problems:
            raise _validation_error(problems)
        known = {key: _normal(key, resource_dict[key]) for key in resource_dict if key in _CHECKS}
        extra = {key: value for key, value in resource_dict.items() if key not in _CHECKS}
        if extra:
            known["template_variables"] = tuple({**dict(self.template_variables), **extra}.items())
        return self._replace(**known)


class _Problem(NamedTuple):
    key: str
    value: Any
    message: str


def _positive(value: Any) -> bool:
    return _integer(value) and value >= 1


def _count(value: Any) -> bool:
    return _integer(value) and value >= 0


def _integer(value: Any) -> bool:
    # NumPy's integers count as integers; True does not.
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _path(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "__fspath__")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "cores": (_positive, "a positive integer"),
    "threads_per_core": (_positive, "a positive integer"),
    "gpus_per_core": (_count, "an integer of 0 or more"),
    "cwd": (_path, "a path"),
    "openmpi_oversubscribe": (_boolean, "True or False"),
    "slurm_cmd_args": (_texts, "a list of strings"),
    "num_nodes": (_positive, "a positive integer"),
    "exclusive": (_boolean, "True or False"),
    "error_log_file": (_path, "a path"),
    "run_time_max": (_seconds, "a positive number of seconds"),
    "priority": (_integer, "an integer"),
    "cache_key": (_text, "a string"),
    "cache_directory": (_path, "a path"),
    "submission_template": (_text, "a string"),
}
_DEFAULTS = Resources._field_defaults


def _normal(key: str, value: Any) -> Any:
    if value is None:
        return _DEFAULTS[key]
    check = _CHECKS[key][0]
    if check is _path:
        import os

        return os.fspath(value)
    if check is _texts:
        return tuple(value)
    return value.__index__() if check in (_positive, _count, _integer) else value


def _problem(key: Any, value: Any, template: bool) -> _Problem | None:
    if key not in _CHECKS:
        if template and isinstance(key, str):
            return None
        import difflib

        near = difflib.get_close_matches(str(key), _CHECKS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_CHECKS)}"
        return _Problem(str(key), value, f"unknown key {key!r} in the resource_dict; {hint}")
    check, wanted = _CHECKS[key]
    if value is None or check(value):
        return None
    return _Problem(key, value, f"{key!r} in the resource_dict must be {wanted}, not {value!r}")


def _validation_error(problems: list[_Problem]) -> Exception:
    try:
        from pydantic import ValidationError
        from pydantic_core import InitErrorDetails, PydanticCustomError
    except ImportError:
        return TypeError("; ".join(problem.message for problem in problems))
    details = [
        InitErrorDetails(
            type=PydanticCustomError("resource_dict", "{message}", {"message": problem.message}),
            loc=(problem.key,),
            input=problem.value,
        )
        for problem in problems
    ]
    return ValidationError.from_exception_data("resource_dict", details)
