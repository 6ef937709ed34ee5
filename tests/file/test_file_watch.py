"""Waiting for jobs: looks into the cache directory, and jobs of a queueing system that another object stands in for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import file_tasks
import pytest

from conftest import Eventually
from executorlib.backend import cache_serial
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.errors import TaskRemovedError, WorkerDiedError
from executorlib.task_scheduler.file.launcher import Job, JobChange, JobLauncher, JobState, LeftJob, end_of_log
from executorlib.task_scheduler.file.task import FileFuture
from executorlib.task_scheduler.file.task_scheduler import FileTaskScheduler
from executorlib.task_scheduler.file.watch import OutputWatch, Seen


class Queue(JobLauncher):
    """A queueing system that starts jobs after others, and whose jobs the test ends."""

    orders_jobs: ClassVar[bool] = True
    output_seconds: ClassVar[float] = 0.5

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.cancelled: list[int | str] = []
        self.left: list[LeftJob] = []
        self.news: list[JobChange] = []
        self.asked = 0
        self.running: dict[str, int] = {}
        self.refusal: Exception | None = None
        self.failure: Exception | None = None

    def find(self, job: Job) -> int | None:
        return self.running.get(job.paths.stem)

    def submit(self, job: Job) -> int:
        if self.refusal is not None:
            raise self.refusal
        number = 100 + len(self.jobs)
        self.jobs[number] = job
        return number

    def changes(self) -> list[JobChange]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        news, self.news = self.news, []
        return news

    def deadline(self) -> float | None:
        return time.monotonic() + 0.05 if self.jobs or self.running else None

    def cancel(self, job: int | str) -> None:
        self.cancelled.append(job)

    @property
    def busy(self) -> bool:
        return False

    def leave(self, jobs: Sequence[LeftJob]) -> None:
        self.left = list(jobs)

    def close(self) -> None:
        pass

    def end(self, number: int, cause: str = "") -> None:
        self.news.append(JobChange(number, JobState.ENDED, cause, where=f"job {number}"))


class Cluster:
    """A scheduler on such a system."""

    def __init__(self, cache: Path, **options: Any) -> None:
        self.queue = Queue()
        self.scheduler = FileTaskScheduler(
            executor_kwargs={"cache_directory": str(cache)}, execute_function=lambda: self.queue, **options
        )

    def run(self, key: str) -> None:
        """What the job of a task does."""
        assert cache_serial.main([str(CachePaths.of(self.directory, key).input)]) == 0

    @property
    def directory(self) -> str:
        info = self.scheduler.info
        assert info is not None
        return str(info["executor_kwargs"]["cache_directory"])


def key(name: str) -> dict[str, str]:
    return {"cache_key": name}


@pytest.fixture
def _job_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executorlib.backend.cache_call.set_up", lambda content: None)
    monkeypatch.setattr("executorlib.backend.cache_call.finish", lambda: None)


@pytest.mark.usefixtures("_job_in_this_process")
def test_jobs_are_submitted_with_what_they_depend_on(tmp_path: Path, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    exe, queue = cluster.scheduler, cluster.queue
    one = exe.submit(file_tasks.add, 1, resource_dict=key("one"))
    two = exe.submit(file_tasks.add, one, 1, resource_dict=key("two"))
    three = exe.submit(file_tasks.add, one, two, resource_dict=key("three"))
    eventually(lambda: len(queue.jobs) == 3)
    assert [queue.jobs[number].depends_on for number in (100, 101, 102)] == [(), (100,), (100, 101)]
    assert isinstance(three, FileFuture)
    assert three.queue_id == 102
    assert not one.running()
    queue.news.append(JobChange(100, JobState.BEGUN))
    eventually(one.running)
    for name in ("one", "two", "three"):
        cluster.run(name)
    assert three.result(timeout=10) == 3
    assert queue.cancelled == []
    exe.shutdown()


@pytest.mark.usefixtures("_job_in_this_process")
def test_the_queue_is_not_given_thousands_of_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """A job with so many inputs is submitted when they have ended."""
    monkeypatch.setattr("executorlib.task_scheduler.file.tasks._MOST_DEPENDENCIES", 2)
    cluster = Cluster(tmp_path)
    inputs = [cluster.scheduler.submit(file_tasks.add, n, resource_dict=key(f"in{n}")) for n in range(3)]
    few = cluster.scheduler.submit(file_tasks.total, inputs[:2], resource_dict=key("few"))
    many = cluster.scheduler.submit(file_tasks.total, inputs, resource_dict=key("many"))
    then = cluster.scheduler.submit(file_tasks.add, few, resource_dict=key("then"))
    eventually(lambda: len(cluster.queue.jobs) == 5)
    assert [job.paths.stem for job in cluster.queue.jobs.values()] == ["in0", "in1", "in2", "few", "then"]
    for name in ("in0", "in1", "in2", "few", "then"):
        cluster.run(name)
    eventually(lambda: len(cluster.queue.jobs) == 6)
    assert cluster.queue.jobs[105].depends_on == ()
    cluster.run("many")
    assert (many.result(timeout=10), then.result(timeout=10)) == (3, 1)
    cluster.scheduler.shutdown()


@pytest.mark.usefixtures("_job_in_this_process")
def test_the_output_may_come_into_sight_after_the_end_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(Queue, "output_seconds", 8.0)
    cluster = Cluster(tmp_path)
    future = cluster.scheduler.submit(file_tasks.add, 1, resource_dict=key("one"))
    eventually(lambda: len(cluster.queue.jobs) == 1)
    cluster.queue.end(100)
    time.sleep(0.2)
    cluster.run("one")
    assert future.result(timeout=10) == 1
    cluster.scheduler.shutdown()


def test_a_job_that_dies_in_the_queue(tmp_path: Path, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    dead = cluster.scheduler.submit(file_tasks.add, 1, resource_dict=key("dead"))
    then = cluster.scheduler.submit(file_tasks.add, dead)
    eventually(lambda: len(cluster.queue.jobs) == 2)
    cluster.queue.end(100, "OUT_OF_MEMORY on node n1")
    with pytest.raises(WorkerDiedError, match=r"^add \(task dead, job 100\) has ended without a result: OUT_OF"):
        dead.result(timeout=10)
    assert then.exception(timeout=5) is dead.exception()
    eventually(lambda: cluster.queue.cancelled == [101])
    cluster.scheduler.shutdown()


def test_the_jobs_go_on_when_the_dispatcher_fails(tmp_path: Path, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    future = cluster.scheduler.submit(file_tasks.add, 1)
    eventually(lambda: len(cluster.queue.jobs) == 1)
    cluster.queue.failure = MemoryError("no memory")
    with pytest.raises(RuntimeError, match=r"has failed: MemoryError.*the job goes on"):
        future.result(timeout=10)
    assert cluster.queue.cancelled == []
    assert not cluster.scheduler.cancel(future)
    cluster.scheduler.shutdown()
    assert cluster.queue.cancelled == [], "nothing is asked of a launcher that is closed"


def test_a_launcher_that_cannot_cancel(tmp_path: Path, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    first, second = (cluster.scheduler.submit(file_tasks.add, n) for n in range(2))
    eventually(lambda: len(cluster.queue.jobs) == 2)
    cluster.queue.cancel = None  # type: ignore[assignment, method-assign]
    cluster.scheduler.shutdown(wait=False, cancel_futures=True)
    eventually(lambda: first.cancelled() and second.cancelled())


def test_what_is_cancelled_before_its_turn_is_not_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """To submit a thousand jobs takes minutes, and Ctrl-C does not wait for that."""
    begun, go_on = threading.Event(), threading.Event()
    cluster = Cluster(tmp_path)
    submit = cluster.queue.submit

    def slow(job: Job) -> int:
        begun.set()
        assert go_on.wait(10)
        return submit(job)

    monkeypatch.setattr(cluster.queue, "submit", slow)
    futures = [cluster.scheduler.submit(file_tasks.add, n) for n in range(20)]
    assert begun.wait(10)
    cluster.scheduler.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    eventually(lambda: all(future.cancelled() for future in futures))
    assert len(cluster.queue.jobs) == 1
    assert cluster.queue.cancelled == [100]


@pytest.mark.usefixtures("_job_in_this_process")
def test_results_are_seen_while_others_are_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.dispatcher._LOOK_SECONDS", 0.0)
    cluster = Cluster(tmp_path, refresh_rate=0.001)
    submit, seen = cluster.queue.submit, threading.Event()
    waited: list[bool] = []

    def slow(job: Job) -> int:
        if job.paths.stem == "second":
            cluster.run("first")
            time.sleep(0.1)  # the next look is due
        if job.paths.stem == "third":
            waited.append(seen.wait(10))
        return submit(job)

    monkeypatch.setattr(cluster.queue, "submit", slow)
    futures = [cluster.scheduler.submit(file_tasks.add, 1, resource_dict=key(k)) for k in ("first", "second", "third")]
    futures[0].add_done_callback(lambda _: seen.set())
    assert futures[0].result(timeout=20) == 1
    cluster.scheduler.shutdown(wait=False, cancel_futures=True)
    assert waited in ([], [True])


def test_a_job_that_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.queue.refusal = RuntimeError("sbatch: error: invalid partition")
    future = cluster.scheduler.submit(file_tasks.add, 1)
    with pytest.raises(RuntimeError, match="invalid partition"):
        future.result(timeout=10)
    cluster.scheduler.shutdown()


@pytest.mark.usefixtures("_job_in_this_process")
def test_a_job_of_another_program_is_waited_for(tmp_path: Path, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    cluster.queue.running["one"] = 7
    content = cluster.scheduler.submit(file_tasks.add, 1, resource_dict=key("two"))
    eventually(lambda: len(cluster.queue.jobs) == 1)
    os.rename(tmp_path / "two_i.h5", tmp_path / "one_i.h5")
    future = cluster.scheduler.submit(file_tasks.add, 5, resource_dict=key("one"))
    assert isinstance(future, FileFuture)
    eventually(lambda: future.queue_id == 7)
    cluster.run("one")
    assert future.result(timeout=10) == 1, "the input of the job that runs is left alone"
    assert len(cluster.queue.jobs) == 1
    cluster.scheduler.shutdown(wait=False, cancel_futures=True)
    eventually(content.done)


@pytest.mark.parametrize("cancel", [False, True])
def test_jobs_are_left_or_cancelled(tmp_path: Path, cancel: bool, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    futures = [cluster.scheduler.submit(file_tasks.add, n) for n in range(3)]
    eventually(lambda: len(cluster.queue.jobs) == 3)
    cluster.scheduler.shutdown(wait=False, cancel_futures=cancel)
    eventually(lambda: all(future.cancelled() for future in futures))
    assert len(cluster.queue.left) == (0 if cancel else 3)
    eventually(lambda: len(cluster.queue.cancelled) == (3 if cancel else 0))
    assert len([name for name in os.listdir(tmp_path) if name.endswith("_i.h5")]) == 3


def test_a_cancelled_job_leaves_the_queue(tmp_path: Path, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    future = cluster.scheduler.submit(file_tasks.add, 1)
    eventually(lambda: len(cluster.queue.jobs) == 1)
    assert future.cancel()
    eventually(lambda: cluster.queue.cancelled == [100])
    cluster.scheduler.shutdown()


@pytest.mark.parametrize("how", ["while both run", "one before it was known to run"])
def test_a_job_leaves_the_queue_when_nobody_wants_it(tmp_path: Path, how: str, eventually: Eventually) -> None:
    cluster = Cluster(tmp_path)
    first, second = (cluster.scheduler.submit(file_tasks.add, 1) for _ in range(2))
    eventually(lambda: len(cluster.queue.jobs) == 1)
    if how == "while both run":
        cluster.queue.news.append(JobChange(100, JobState.BEGUN))
        eventually(lambda: first.running() and second.running())
    assert cluster.scheduler.cancel(first)
    eventually(first.cancelled)
    if not second.running():
        cluster.queue.news.append(JobChange(100, JobState.BEGUN))
        eventually(second.running)
    assert cluster.queue.cancelled == []
    assert not second.done()
    assert cluster.scheduler.cancel(second)
    eventually(lambda: cluster.queue.cancelled == [100])
    assert second.cancelled()
    cluster.scheduler.shutdown()


def test_the_validator_is_asked(tmp_path: Path) -> None:
    def no(resource_dict: dict[str, Any]) -> None:
        raise ValueError(f"not {resource_dict}")

    cluster = Cluster(tmp_path, validator=no)
    with pytest.raises(ValueError, match="not"):
        cluster.scheduler.submit(file_tasks.add, 1, resource_dict={"cores": 1})
    cluster.scheduler.shutdown()


# The watch


def test_one_listing_answers_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = OutputWatch(0.01)
    tasks = [CachePaths.of(tmp_path, f"task{n}") for n in range(100)]
    for paths in tasks:
        Path(paths.input).touch()
        watch.add(paths)
    listed: list[str] = []
    listdir = os.listdir

    def noting(path: str) -> list[str]:
        listed.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", noting)
    assert watch.look().ended == []
    Path(tasks[3].output).touch()
    assert watch.look().ended == [tasks[3].output]
    assert listed == [str(tmp_path)] * 2
    for paths in tasks:
        watch.discard(paths)
    assert watch.due is None


def test_looks_become_rare_while_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = OutputWatch(0.01)
    paths = CachePaths.of(tmp_path, "task")
    Path(paths.input).touch()
    watch.add(paths)
    pauses = []
    for _ in range(20):
        watch.look()
        assert watch.due is not None
        pauses.append(round(watch.due - now[0], 6))
        now[0] = watch.due
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.015)
    assert pauses[-1] == pytest.approx(2.0)
    watch.hurry()
    assert watch.due == now[0] + 0.01


def test_a_task_without_files_is_gone_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once: a network file system may show a file that is being renamed under neither name."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = OutputWatch(0.01)
    gone, running = (CachePaths.of(tmp_path, name) for name in ("gone", "running"))
    Path(running.running).touch()
    for paths in (gone, running):
        watch.add(paths)
    for moment, expected in ((0.0, False), (0.5, False), (2.0, True)):
        now[0] = moment
        seen = watch.look()
        assert seen.gone == ([gone.output] if expected else [])


def test_a_directory_that_is_not_there_is_no_news_for_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its file server may be away, or its mount being made again."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = OutputWatch(0.01)
    paths = CachePaths.of(tmp_path / "mount", "task")
    watch.add(paths)
    for moment in (0.0, 2.0, 4.0, 250.0):
        now[0] = moment
        assert watch.look() == Seen()
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"
    os.mkdir(tmp_path / "mount")
    Path(paths.input).touch()
    now[0] = 260.0
    assert watch.look() == Seen()
    os.rename(tmp_path / "mount", tmp_path / "away")
    now[0] = 320.0
    assert watch.look() == Seen(), "it is counted from the beginning again"
    now[0] = 700.0
    assert watch.look() == Seen(lost=[paths.output])


@pytest.mark.usefixtures("_job_in_this_process")
def test_jobs_go_on_while_the_directory_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(Queue, "output_seconds", 30.0)
    monkeypatch.setattr("executorlib.task_scheduler.file.watch._SECONDS_BEFORE_GONE", 0.0)
    looks: list[Seen] = []
    look = OutputWatch.look

    def counted(watch: OutputWatch) -> Seen:
        looks.append(look(watch))
        return looks[-1]

    monkeypatch.setattr(OutputWatch, "look", counted)
    cluster = Cluster(tmp_path / "mount")
    first = cluster.scheduler.submit(file_tasks.add, 1, resource_dict=key("first"))
    second = cluster.scheduler.submit(file_tasks.add, 2, resource_dict=key("second"))
    eventually(lambda: len(cluster.queue.jobs) == 2)
    os.rename(tmp_path / "mount", tmp_path / "away")
    cluster.queue.end(100)  # its output is there, but not to be seen
    before = len(looks)
    eventually(lambda: len(looks) > before + 5)  # more than a file may be in sight under neither name
    assert not first.done()
    os.rename(tmp_path / "away", tmp_path / "mount")
    cluster.run("first")
    cluster.run("second")
    assert (first.result(timeout=10), second.result(timeout=10)) == (1, 2)
    assert cluster.queue.cancelled == []
    cluster.scheduler.shutdown()


def test_a_directory_that_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.watch.ABSENT_SECONDS", 0.2)
    cluster = Cluster(tmp_path / "mount")
    future = cluster.scheduler.submit(file_tasks.add, 1)
    eventually(lambda: len(cluster.queue.jobs) == 1)
    os.rename(tmp_path / "mount", tmp_path / "away")
    with pytest.raises(TaskRemovedError, match="no longer there"):
        future.result(timeout=10)
    assert cluster.queue.cancelled == [], "a job may have run for hours"
    cluster.scheduler.shutdown()


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert end_of_log(str(path)) == ""
    path.write_text("\n")
    assert end_of_log(str(path)) == ""
    path.write_text("\n".join(f"line {n}" for n in range(1000)))
    assert end_of_log(str(path)).startswith(f"; its output ({path}) ends with:\nline 980\n")


def test_ten_thousand_waiting_tasks_cost_little(tmp_path: Path, eventually: Eventually) -> None:
    """Under 2 % of a core."""
    cluster = Cluster(tmp_path, refresh_rate=0.01)
    count = 10_000
    cluster.queue.deadline = lambda: None  # type: ignore[method-assign]
    for n in range(count):
        cluster.scheduler.submit(file_tasks.add, n, resource_dict=key(f"task{n}"))
    eventually(lambda: len(cluster.queue.jobs) == count, 40)
    start, cpu = time.monotonic(), time.process_time()
    time.sleep(5.0)
    share = (time.process_time() - cpu) / (time.monotonic() - start)
    print(f"{count} waiting tasks: {share:.2%} of a core")
    cluster.scheduler.shutdown(wait=False, cancel_futures=True)
    assert share < 0.02
