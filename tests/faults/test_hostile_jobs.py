"""Batch jobs in a cache directory into which other users of the machine can write. No queueing system is needed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import STRANGER, needs_owners, root_only
from executorlib.backend import cache_array
from executorlib.standalone import cache_trust
from executorlib.standalone.cache_outcome import read_outcome
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.cache_trust import VARIABLE
from executorlib.standalone.hdf import dump
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.file.batch_script import BatchSystem, batch_environment
from executorlib.task_scheduler.file.flux_batch import FluxBatch
from executorlib.task_scheduler.file.launcher import Job, end_of_log
from executorlib.task_scheduler.file.local_jobs import LocalJobs
from executorlib.task_scheduler.file.slurm_jobs import SlurmJobs

pytest.importorskip("pysqa")
pytestmark = [pytest.mark.faults, needs_owners]


class Sbatch(BatchSystem):
    """Keeps a script until the test runs it as Slurm does, which follows every link."""

    script = ""

    def _execute(self, commands: Sequence[str], working_directory: str | None = None, **_: Any) -> str:
        BatchSystem._execute(self, ["true", *commands[1:]])
        self.place = Path(commands[-1]).parent
        self.mode = stat.S_IMODE(self.place.stat().st_mode)
        self.script = Path(commands[-1]).read_text()
        return "7"

    def run(self) -> int:
        told = dict(option.lstrip("-").partition("=")[::2] for option in self._arguments)
        with open(told["output"], "ab") as log:
            options: dict[str, Any] = {"cwd": told["chdir"], "env": batch_environment(os.environ), "timeout": 30}
            return subprocess.run(["bash", "-c", self.script], stdout=log, stderr=log, **options).returncode


@pytest.fixture
def cache() -> Iterator[Path]:
    """A cache directory that others reach and may write to, and may remove what is there from."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    (folder / "cache").mkdir()
    (folder / "cache").chmod(0o777)
    yield folder / "cache"
    shutil.rmtree(folder)


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file of the victim that stays as it is."""
    path = tmp_path / "precious"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


def say_and_leave_a_file() -> str:
    print("said", flush=True)
    Path("left").touch()
    return os.getcwd()


def job_in(cache: Path, name: str = "key") -> Job:
    paths = CachePaths.of(cache, name)
    dump(paths.input, {"fn": say_and_leave_a_file, "args": [], "kwargs": {}})
    return Job(paths, Resources(), (), "say")


@pytest.fixture
def system() -> Sbatch:
    return Sbatch()


@pytest.fixture
def jobs(system: Sbatch) -> Iterator[SlurmJobs]:
    launcher = SlurmJobs(system)
    yield launcher
    launcher.close()


Submit = Callable[[Job], object]


@pytest.fixture(params=["slurm", "slurm_array", "flux"])
def submit(request: pytest.FixtureRequest, jobs: SlurmJobs) -> Submit:
    ways: dict[str, Submit] = {
        "slurm": jobs.submit,
        "slurm_array": lambda job: _raised(jobs.submit_together([job])[0]),
        "flux": lambda job: FluxBatch().submit(None, job),
    }
    return ways[request.param]


def _raised(answer: object) -> object:
    if isinstance(answer, Exception):
        raise answer
    return answer


@root_only
def test_a_directory_that_another_user_has_made_is_refused(cache: Path, submit: Submit) -> None:
    job = job_in(cache)
    os.mkdir(job.paths.job_directory)
    os.chown(job.paths.job_directory, STRANGER, STRANGER)
    with pytest.raises(PermissionError, match=f"belongs to the user {STRANGER}.*remove it.*{VARIABLE}.*/cache/key"):
        submit(job)
    assert os.listdir(job.paths.job_directory) == []


@pytest.mark.parametrize("suffix", ["", ".log"])
def test_a_link_in_the_place_of_the_directory_or_the_log_is_refused(
    cache: Path, tmp_path: Path, precious: Path, submit: Submit, suffix: str
) -> None:
    job = job_in(cache)
    os.symlink(precious if suffix else tmp_path, job.paths.job_directory + suffix)
    with pytest.raises(PermissionError, match=f"symbolic link.*/cache/key{suffix}'"):
        submit(job)
    assert os.listdir(tmp_path) == ["precious"]


@root_only
def test_a_log_of_another_user_is_refused(jobs: SlurmJobs, cache: Path) -> None:
    job = job_in(cache)
    Path(job.paths.log).touch()
    os.chown(job.paths.log, STRANGER, STRANGER)
    with pytest.raises(PermissionError, match=rf"belongs to the user {STRANGER}.*key\.log"):
        jobs.submit(job)
    local = LocalJobs(1)
    local.submit(job)
    assert isinstance(local.changes()[0].error, PermissionError)
    local.close()


def test_the_directory_is_for_its_owner_alone(jobs: SlurmJobs, tmp_path: Path, precious: Path) -> None:
    """Also one that executorlib 1.11 has made; where others could write, there may be links."""
    before = os.umask(0)
    try:
        for name in ("new", "old"):
            job = job_in(tmp_path / "cache", name)
            if name == "old":
                os.mkdir(job.paths.job_directory, 0o777)
                os.symlink(precious, os.path.join(job.paths.job_directory, "run_queue.sh"))
            jobs.submit(job)
            mode = stat.S_IMODE(os.stat(job.paths.job_directory).st_mode)
            assert not mode & 0o022
            assert mode == 0o700 or name == "old"
    finally:
        os.umask(before)


def test_the_script_lies_where_nobody_else_can_exchange_it(jobs: SlurmJobs, system: Sbatch, cache: Path) -> None:
    """Whoever may write to the cache may rename the job's directory, whosever it is."""
    job = job_in(cache)
    jobs.submit(job)
    assert cache not in system.place.parents
    assert system.mode == 0o700
    assert os.listdir(job.paths.job_directory) == []
    assert f"--chdir={job.paths.job_directory}\n" in system.script, "the template is told the job's directory"


def test_the_job_runs_and_has_its_log(jobs: SlurmJobs, system: Sbatch, cache: Path) -> None:
    job = job_in(cache, "it's 100 % odd")
    jobs.submit(job)
    assert system.run() == 0
    assert read_outcome(job.paths.output).value == job.paths.job_directory
    assert Path(job.paths.log).read_text() == "said\n"


def test_a_link_that_comes_while_the_job_waits_is_not_followed(
    jobs: SlurmJobs, system: Sbatch, cache: Path, precious: Path
) -> None:
    job = job_in(cache)
    jobs.submit(job)
    os.symlink(precious, job.paths.log)
    assert system.run() == 0
    assert read_outcome(job.paths.output).succeeded


def test_a_hard_link_is_no_log(tmp_path: Path, precious: Path) -> None:
    os.link(precious, tmp_path / "log")
    with pytest.raises(PermissionError, match="no file of its own"):
        cache_trust.open_own(str(tmp_path / "log"), os.O_WRONLY | os.O_TRUNC)


def test_a_directory_that_is_exchanged_while_the_job_waits_is_not_entered(
    jobs: SlurmJobs, system: Sbatch, cache: Path, tmp_path: Path
) -> None:
    job = job_in(cache)
    jobs.submit(job)
    os.rename(job.paths.job_directory, cache / "aside")
    os.symlink(tmp_path, job.paths.job_directory)
    assert system.run() != 0
    assert os.listdir(tmp_path) == []
    assert "symbolic link" in Path(job.paths.log).read_text()


def test_an_element_of_an_array_follows_no_link(
    jobs: SlurmJobs, system: Sbatch, cache: Path, tmp_path: Path, precious: Path
) -> None:
    some = [job_in(cache, name) for name in ("one", "two")]
    jobs.submit_together(some)
    assert '/"$SLURM_ARRAY_TASK_ID".log' in system.script.replace("'", "")
    code = "import sys; sys.path[:0] = [sys.argv[1]]; from executorlib.backend import cache_array as c\n"
    code += "from executorlib.standalone.cache_paths import CachePaths as P; c.enter(P.of(*sys.argv[2:4]), '.')"
    folder = Path(cache_array.__file__).parents[2]
    for name, place in (("one", ".log"), ("two", "")):
        os.symlink(precious if place else tmp_path, some[0].paths.directory + f"/{name}{place}")
        command = [sys.executable, "-c", code, str(folder), str(cache), name]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=20)
        assert "PermissionError" in done.stderr
        assert "symbolic link" in done.stderr


def test_the_end_of_a_log_is_not_that_of_another_file(tmp_path: Path, precious: Path) -> None:
    os.symlink(precious, tmp_path / "link.log")
    os.mkfifo(tmp_path / "pipe.log")
    assert end_of_log(str(tmp_path / "link.log")) == end_of_log(str(tmp_path / "pipe.log")) == ""


def test_who_may_write_where(cache: Path) -> None:
    assert cache_trust.others_may_write(str(cache))
    cache.chmod(0o1777)
    assert cache_trust.others_may_write(str(cache)), "they can make what is not there yet"
    own = cache / "own"
    own.mkdir(0o755)
    assert not cache_trust.others_may_write(str(own))
    cache.chmod(0o2770)
    assert cache_trust.others_may_write(str(own)), "they can put another in its place"
    cache.parent.chmod(0o700)
    assert not cache_trust.others_may_write(str(own)), "nobody comes so far"
    link = cache.parent / "link"
    link.symlink_to(own)
    assert not cache_trust.others_may_write(str(link))
