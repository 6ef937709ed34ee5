"""What the machine offers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from executorlib.standalone import hardware
from executorlib.standalone.hardware import THREAD_VARIABLES, gpus, thread_environment, usable_cpus


@pytest.fixture
def fresh_gpus() -> Iterator[None]:
    gpus.cache_clear()
    yield
    gpus.cache_clear()


def cgroup(tmp_path: Path, membership: str, files: dict[str, str]) -> float | None:
    """The CPU quota that a tree of control groups gives to a process."""
    root = tmp_path / "cgroup"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "self").write_text(membership)
    return hardware.cgroup_cpus(str(root), str(tmp_path / "self"))


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, None),
        ("0::/job\n", {"job/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b/c\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000", "a/b/c/x": ""}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"}, 2.0),
        ("0::/a/b\n", {"cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000"}, 1.0),
        ("0::/gone\n", {"other/cpu.max": "100000 100000"}, None),
        ("0::/job\n", {"job/cpu.max": "nonsense"}, None),
        ("0::/job\n", {"job/cpu.max": ""}, None),
    ],
)
def test_version_2(tmp_path: Path, membership: str, files: dict[str, str], quota: float | None) -> None:
    assert cgroup(tmp_path, membership, files) == quota


@pytest.mark.parametrize(
    ("quota_text", "quota"), [("-1\n", None), ("50000\n", 0.5), ("300000\n", 3.0), ("0\n", None), ("x\n", None)]
)
def test_version_1(tmp_path: Path, quota_text: str, quota: float | None) -> None:
    membership = "12:memory:/m\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/s\n"
    files = {
        "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": quota_text,
        "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        "memory/m/cpu.cfs_quota_us": "1\n",
        "memory/m/cpu.cfs_period_us": "100000\n",
    }
    assert cgroup(tmp_path, membership, files) == quota


def test_version_1_limits_of_the_groups_above(tmp_path: Path) -> None:
    files = {
        "cpu/a/cpu.cfs_quota_us": "100000\n",
        "cpu/a/cpu.cfs_period_us": "100000\n",
        "cpu/a/b/cpu.cfs_quota_us": "800000\n",
        "cpu/a/b/cpu.cfs_period_us": "100000\n",
    }
    assert cgroup(tmp_path, "4:cpu:/a/b\n", files) == 1.0


def test_no_control_groups(tmp_path: Path) -> None:
    assert hardware.cgroup_cpus(str(tmp_path), str(tmp_path / "missing")) is None


def test_a_group_outside_the_root_does_not_lead_astray(tmp_path: Path) -> None:
    """A container sees paths of the host such as /../../x."""
    assert cgroup(tmp_path, "0::/../../x\n", {"cpu.max": "200000 100000"}) in (None, 2.0)


@pytest.mark.parametrize(("quota", "cpus"), [(None, 3), (1.5, 1), (0.2, 1), (2.0, 2), (64.0, 3)])
def test_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, quota: float | None, cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    monkeypatch.setattr(hardware, "cgroup_cpus", lambda *_: quota)
    assert usable_cpus() == cpus


def test_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(hardware, "cgroup_cpus", lambda *_: None)
    for count, cpus in ((8, 8), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert usable_cpus() == cpus


def test_this_machine() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.usefixtures("fresh_gpus")
@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("0,1", ("0", "1")),
        ("", ()),
        (" GPU-a , 3 ", ("GPU-a", "3")),
        ("MIG-x/1/0", ("MIG-x/1/0",)),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("2,-1,3", ("2",)),
    ],
)
@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
def test_gpus_that_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, names: tuple[str, ...]
) -> None:
    for other in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, value)
    assert gpus() == names


@pytest.mark.usefixtures("fresh_gpus")
def test_gpus_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    devices = ["nvidia0", "nvidia1", "nvidia-uvm", "nvidiactl", "null"]
    monkeypatch.setattr(hardware, "_list", lambda folder: devices if folder == "/dev" else [])
    assert gpus() == ("0", "1")


@pytest.mark.parametrize("threads", [1, 6])
def test_threads_that_are_asked_for(threads: int) -> None:
    environment = thread_environment(threads, {"OMP_NUM_THREADS": "9"})
    assert environment == dict.fromkeys(THREAD_VARIABLES, str(threads))


def test_threads_that_are_not_asked_for() -> None:
    environment = thread_environment(None, {"OMP_NUM_THREADS": "9", "OTHER": "1"})
    assert environment == {name: "1" for name in THREAD_VARIABLES if name != "OMP_NUM_THREADS"}
    assert len(THREAD_VARIABLES) == 7
