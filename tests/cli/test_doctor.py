"""``executorlib doctor``: every check tries the real thing, and says so where it does not work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import SOURCES, needs_mpi, write_program
from executorlib.cli import main
from executorlib.cli.checks import BROKEN, CHECKS, Finding
from executorlib.cli.doctor import try_out

Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str]) -> Doctor:
    """Runs checks; returns what is found of the first, and the exit status with it."""

    def run(*names: str) -> dict[str, Any]:
        status = main(["doctor", "--json", "--timeout", "40", *names])
        answer = json.loads(capfd.readouterr().out)
        assert answer["works"] == (status == 0)
        found: dict[str, Any] = answer["checks"][names[0]]
        return {**found, "status": status}

    return run


@pytest.mark.parametrize("name", ["python", "packages", "cores", "single", "h5py", "cache", "network", "graph"])
def test_what_works_here_is_said_to_work(doctor: Doctor, name: str) -> None:
    if name in ("h5py", "cache", "graph"):
        pytest.importorskip({"graph": "pygraphviz"}.get(name, "h5py"), reason="an extra")
    found = doctor(name)
    assert (found["state"], found["cure"], found["status"]) == ("works", "", 0), found


@pytest.mark.mpi
def test_two_ranks(doctor: Doctor) -> None:
    found = doctor("mpi")
    assert found["state"] == "works", found
    assert os.path.basename(found["details"]["mpiexec"]) == "mpiexec"


def test_ranks_that_do_not_see_each_other(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_neighbours: None
) -> None:
    needs_mpi()
    launcher = tmp_path / "mpiexec"  # starts each rank as a world of its own
    write_program(launcher, 'shift 2\n"$@" & "$@" &\nwait')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = doctor("mpi")
    assert (found["state"], found["status"]) == ("broken", 1)
    assert "do not belong together" in found["said"]


def test_no_launcher(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_neighbours: None) -> None:
    needs_mpi()
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor("mpi")
    assert found["said"] == "there is mpi4py, but no mpiexec"
    assert "pip install mpi4py mpich" in found["cure"]


@pytest.fixture
def without_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter in a directory of its own: the mpiexec of its environment is not beside it."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    write_program(python, f'exec "{sys.executable}" "$@"')
    monkeypatch.setattr(sys, "executable", str(python))


def test_a_gpu_or_none(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = doctor("gpu")
    assert (found["state"], found["status"]) == ("absent", 1)
    assert found["cure"] == "unset CUDA_VISIBLE_DEVICES"


def test_a_gpu_that_no_driver_knows(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000000-0000-0000-0000-000000000000")
    found = doctor("gpu")
    assert found["state"] == "broken"
    assert "its driver sees 0" in found["said"]


@pytest.mark.parametrize("name", ["slurm", "flux", "pysqa"])
def test_what_is_not_here(doctor: Doctor, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor(name)
    if name == "pysqa":
        pytest.importorskip("pysqa", reason="is there without a queueing system")
        assert (found["state"], found["status"]) == ("works", 0)
        assert "no queueing system here" in found["said"]
    elif name == "slurm":
        assert (found["state"], found["status"]) == ("absent", 1)
    else:
        assert found["state"] in ("absent", "broken", "works")  # its Python module may be here


def test_slurm_without_its_controller(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("sinfo") is None:
        pytest.skip("needs the commands of Slurm")
    conf = tmp_path / "slurm.conf"
    conf.write_text(
        "ClusterName=none\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=9\nMessageTimeout=1\n"
        "AuthType=auth/munge\nNodeName=localhost\nPartitionName=main Nodes=ALL\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(conf))
    found = doctor("slurm")
    assert (found["state"], found["status"]) == ("broken", 1)
    assert "Unable to contact slurm controller" in found["said"]


def test_a_check_that_hangs_is_ended_with_what_it_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("srun", "sinfo"):
        program = tmp_path / command
        write_program(program, "sleep 1000")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    start = time.monotonic()
    finding = try_out("slurm", 1.0)
    assert (finding.state, finding.said) == (BROKEN, "no answer after 1 s")
    assert time.monotonic() - start < 10.0


def test_a_check_that_crashes_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pygraphviz.py").write_text("import os, sys\nprint('last words', file=sys.stderr)\nos._exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = try_out("graph", 40.0)
    if finding.state == "absent":
        pytest.skip("needs the extra graph")
    assert finding == Finding(BROKEN, "the check crashed with exit code 3: last words")


def test_the_report_is_for_people(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["doctor", "python", "gpu"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("works  python    CPython ")
    assert "  -    gpu       no GPU is offered: {'CUDA_VISIBLE_DEVICES': ''}" in lines
    assert lines[-1] == "does not work here: gpu"


def test_an_unknown_check_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["doctor", "nonsense"])
    assert f"they are {', '.join(CHECKS)}" in capfd.readouterr().err


@pytest.mark.parametrize(
    "command", [["-m", "executorlib"], ["-c", "import executorlib.cli as c; raise SystemExit(c.main())"]]
)
def test_as_a_command(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command, "--version"],
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "executorlib"), done.stderr


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m executorlib doctor python cores | true",
        shell=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in done.stderr
