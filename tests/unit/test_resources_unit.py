"""The resource_dict, checked: `Resources.updated`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest

from executorlib.standalone.resources import ResourceDict, Resources


def test_defaults() -> None:
    resources = Resources()
    assert (resources.cores, resources.threads_per_core, resources.gpus_per_core) == (1, None, 0)
    assert (resources.slots, resources.gpus) == (1, 0)


@pytest.mark.parametrize(
    ("given", "slots", "gpus"),
    [
        ({"cores": 4}, 4, 0),
        ({"threads_per_core": 3}, 3, 0),
        ({"cores": 2, "threads_per_core": 3}, 6, 0),
        ({"cores": 2, "gpus_per_core": 2}, 2, 4),
    ],
)
def test_what_a_task_takes(given: dict[str, Any], slots: int, gpus: int) -> None:
    resources = Resources().updated(given)
    assert (resources.slots, resources.gpus) == (slots, gpus)


def test_the_call_wins_key_by_key() -> None:
    executor = Resources().updated({"cores": 2, "cwd": "a", "priority": 1})
    call = executor.updated({"cwd": "b"})
    assert (call.cores, call.cwd, call.priority) == (2, "b", 1)
    assert executor.cwd == "a"


def test_none_goes_back_to_the_default() -> None:
    resources = Resources().updated({"cores": 4, "cwd": "a", "run_time_max": 5})
    assert resources.updated({"cores": None, "cwd": None, "run_time_max": None}) == Resources()


def test_every_key_of_the_typed_dictionary_is_a_field_and_known() -> None:
    fields = set(Resources._fields) - {"template_variables"}
    assert set(get_type_hints(ResourceDict)) == fields
    samples: dict[str, Any] = {
        "cores": 2,
        "threads_per_core": 2,
        "gpus_per_core": 1,
        "cwd": "x",
        "openmpi_oversubscribe": True,
        "slurm_cmd_args": ["-v"],
        "num_nodes": 2,
        "exclusive": True,
        "error_log_file": "x",
        "run_time_max": 5,
        "priority": -2,
        "cache_key": "x",
        "cache_directory": "x",
        "submission_template": "x",
    }
    assert set(samples) == fields
    for key, value in samples.items():
        got = getattr(Resources().updated({key: value}), key)
        assert got == (tuple(value) if isinstance(value, list) else value)


def test_paths_become_text() -> None:
    resources = Resources().updated({"cwd": Path("a"), "error_log_file": Path("b"), "cache_directory": Path("c")})
    assert (resources.cwd, resources.error_log_file, resources.cache_directory) == ("a", "b", "c")


def test_they_are_frozen_and_can_be_compared() -> None:
    resources = Resources().updated({"slurm_cmd_args": ["-v"]})
    with pytest.raises(AttributeError):
        resources.cores = 5  # type: ignore[misc]
    assert hash(resources) == hash(Resources().updated({"slurm_cmd_args": ("-v",)}))


def test_variables_of_a_template_only_where_there_is_one() -> None:
    with_template = Resources().updated({"partition": "short", "cores": 2}, template=True)
    assert with_template.template_variables == (("partition", "short"),)
    more = with_template.updated({"memory_max": 8, "partition": "long"}, template=True)
    assert dict(more.template_variables) == {"partition": "long", "memory_max": 8}
    with pytest.raises((TypeError, ValueError), match="partition"):
        Resources().updated({"partition": "short"})
    with pytest.raises((TypeError, ValueError)):
        Resources().updated({5: 1}, template=True)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("core", "cores"),
        ("thread_per_core", "threads_per_core"),
        ("gpu_per_core", "gpus_per_core"),
        ("errorlogfile", "error_log_file"),
        ("run_time", "run_time_max"),
        ("prio", "priority"),
    ],
)
def test_the_nearest_key_is_named(key: str, meant: str) -> None:
    with pytest.raises((TypeError, ValueError), match=repr(meant)):
        Resources().updated({key: 1})


def test_without_a_near_key_all_are_named() -> None:
    with pytest.raises((TypeError, ValueError), match=r"cores, threads_per_core.*submission_template"):
        Resources().updated({"zzzzzz": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cores", 2.0),
        ("cores", float("nan")),
        ("cores", [2]),
        ("run_time_max", -1),
        ("run_time_max", float("nan")),
        ("run_time_max", True),
        ("slurm_cmd_args", [1]),
        ("exclusive", 1),
        ("cwd", b"bytes"),
        ("num_nodes", 0),
    ],
)
def test_wrong_values(key: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=key):
        Resources().updated({key: value})


@pytest.mark.parametrize(("key", "value"), [("run_time_max", 0.5), ("run_time_max", float("inf")), ("priority", 0)])
def test_right_values(key: str, value: Any) -> None:
    assert getattr(Resources().updated({key: value}), key) == value
