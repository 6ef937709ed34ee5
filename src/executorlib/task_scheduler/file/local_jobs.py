"""Jobs on this machine: a process for each, as many at a time as there are cores.

    submit ──► waiting ──┬──► forked by the job server, or started as a program: a session of its own ──► exit
                         └──► the process of another program that runs the same task is watched instead

On Linux the `JobServer` forks the jobs of serial tasks: a new interpreter would take most of the time of a short one.
Jobs of several ranks, and all where there is no fork server, are programs that are started from here.

The processes outlive the program, as batch jobs do. What has not begun then is handed to a process of its own, see
`left_jobs`. On Linux the end of a process is seen at once, elsewhere by asking.
"""

from __future__ import annotations

import heapq
import itertools
import json
import logging
import os
import pickle
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from executorlib.standalone import cache_claim
from executorlib.standalone.cache_outcome import is_ended
from executorlib.standalone.cache_queue import JobNumber
from executorlib.standalone.cache_trust import open_own
from executorlib.standalone.command import PATH_VARIABLE, mpiexec_command
from executorlib.standalone.hardware import program_environment, thread_environment
from executorlib.standalone.interactive.events import Exited, LauncherLostError, Started, describe_exit
from executorlib.standalone.interactive.launcher import START_SECONDS, ForkServer, has_fork_server
from executorlib.standalone.processes import is_alive, signal_group
from executorlib.task_scheduler.file.launcher import (
    Job,
    JobChange,
    JobLauncher,
    JobState,
    LeftJob,
    described,
    end_of_log,
    remove_if_empty,
)
from executorlib.task_scheduler.interactive.pool import Allotment, ResourcePool

_LOG = logging.getLogger("executorlib")
_LOG_FLAGS = os.O_WRONLY | os.O_TRUNC | os.O_APPEND
_KILL_AFTER_SECONDS = 3.0
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.2
_SERVER = 0  # its place among the numbers of jobs
# Children that were left running: buried when there is occasion.
_left: list[int] = []


@dataclass(slots=True)
class _Process:
    """The process of a job.

    Attributes:
        popen: where it is a child of this program
        served: whether it is one of the job server; its process id is 0 until it has started
        descriptor: its pidfd
        allotment: the cores that it takes; None for the process of another program
        deadline: when its time is up
        kill_at: when it is ended by force
        verdict: what its future raises because it was ended
    """

    number: int
    job: Job
    pid: int
    popen: subprocess.Popen[bytes] | None
    descriptor: int | None
    allotment: Allotment | None
    ranks: bool
    deadline: float | None
    served: bool = False
    kill_at: float | None = None
    verdict: BaseException | None = None

    def __str__(self) -> str:
        return described(self.job.name, self.job.paths, self.where)

    @property
    def where(self) -> str:
        return f"pid {self.pid} on {platform.node()}" if self.pid else ""

    def due(self) -> float | None:
        return min((moment for moment in (self.deadline, self.kill_at) if moment is not None), default=None)


class _JobServer(ForkServer):
    """The job server, seen from the program (see `executorlib.backend.job_server`)."""

    def __init__(self) -> None:
        super().__init__("job_server_main.py")

    def run(self, number: int, path: str, environment: dict[str, str], cwd: str, log: int) -> None:
        """Run the task of an input file; its output goes to a descriptor.

        Raises:
            OSError: the server is gone
        """
        self._request(("job", number, path, environment, cwd), (log,), START_SECONDS)


class LocalJobs(JobLauncher):
    """Runs jobs on this machine.

    Args:
        slots: cores that they may use at a time; a job that needs more runs alone
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pool = ResourcePool(slots)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Job] = {}
        self._order: list[tuple[int, int]] = []  # heap of priority and number; numbers that no longer wait are skipped
        self._later: list[tuple[float, int]] = []  # when some of the waiting are to be tried again
        self._processes: dict[int, _Process] = {}
        self._changes: list[JobChange] = []
        self._selector = selectors.DefaultSelector() if hasattr(os, "pidfd_open") else None
        self._pause = _FIRST_PAUSE
        self._server: _JobServer | None = None
        if self._selector is not None and has_fork_server():
            try:
                self._server = _JobServer()
                self._selector.register(self._server.fileno(), selectors.EVENT_READ, _SERVER)
            except OSError as error:
                _LOG.warning("there is no job server: %s", error)
        self._bury_left()

    def fileno(self) -> int | None:
        descriptor: int | None = getattr(self._selector, "fileno", lambda: None)()
        return descriptor

    def deadline(self) -> float | None:
        if self._changes:
            return 0.0
        moments = [due for process in self._processes.values() if (due := process.due()) is not None]
        moments += [moment for moment, _ in self._later[:1]]
        if self._server is not None and (due := self._server.deadline()) is not None:
            moments.append(due)
        if any(process.descriptor is None and not process.served for process in self._processes.values()):
            moments.append(time.monotonic() + self._pause)
        return min(moments, default=None)

    def find(self, job: Job) -> int | None:
        claim = cache_claim.holder(job.paths)
        if claim is None:
            return None
        number = next(self._numbers)
        self._adopt(number, job, claim)
        return number

    def submit(self, job: Job) -> int:
        number = next(self._numbers)
        self._wait(number, job)
        self._start_waiting()
        return number

    def changes(self) -> list[JobChange]:
        ended = self._look()
        self._pause = _FIRST_PAUSE if ended else min(1.5 * self._pause, _LONGEST_PAUSE)
        for process in ended:
            self._has_ended(process, process.popen.wait() if process.popen is not None else None)
        now = time.monotonic()
        for process in list(self._processes.values()):
            due = process.due()
            if due is not None and due <= now:
                self._expire(process, now)
        while self._later and self._later[0][0] <= now:
            number = self._later.pop(0)[1]
            if number in self._waiting:
                self._wait(number, self._waiting[number])
        self._start_waiting()
        changes, self._changes = self._changes, []
        return changes

    def cancel(self, job: JobNumber) -> None:
        assert isinstance(job, int)
        if self._waiting.pop(job, None) is not None:
            return
        process = self._processes.get(job)
        if process is not None:
            self._end(process, time.monotonic())

    @property
    def busy(self) -> bool:
        return any(p.popen is not None or p.served or p.kill_at is not None for p in self._processes.values())

    def leave(self, jobs: Sequence[LeftJob]) -> None:
        processes = self._processes.values()
        # A time limit is to be kept, or the job server has perhaps not begun a job when it is told to end.
        unsure = any(process.deadline is not None or (process.served and not process.pid) for process in processes)
        if self._waiting or unsure or len(jobs) > len(self._processes):
            program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "left_jobs.py")
            with subprocess.Popen(
                [sys.executable, program],
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ) as helper:
                assert helper.stdin is not None
                helper.stdin.write(pickle.dumps((self._pool.slots, list(jobs))))
                helper.stdin.close()
                self._forget(helper)
        self._waiting.clear()
        self._let_go()

    def close(self) -> None:
        self._let_go()
        if self._selector is not None:
            self._selector.close()
        if self._server is not None:
            self._server.close()

    def _let_go(self) -> None:
        for process in self._processes.values():
            if process.popen is not None:
                self._forget(process.popen)
            if process.descriptor is not None:
                self._unwatch(process)
        self._processes.clear()

    # Starting

    def _wait(self, number: int, job: Job) -> None:
        self._waiting[number] = job
        heapq.heappush(self._order, (-job.resources.priority, number))

    def _start_waiting(self) -> None:
        while self._order:
            number = self._order[0][1]
            job = self._waiting.get(number)
            if job is not None:
                claim = cache_claim.holder(job.paths)
                # The cores are this machine's; that a job wants GPUs is of no matter here.
                allotment = None if claim else self._pool.take(job.resources._replace(gpus_per_core=0))
                if claim is None and allotment is None:
                    return
                del self._waiting[number]
                if claim is not None:
                    self._adopt(number, job, claim)
                elif allotment is not None:
                    self._start(number, job, allotment)
            heapq.heappop(self._order)

    def _start(self, number: int, job: Job, allotment: Allotment) -> None:
        try:
            if is_ended(job.paths.output):  # another program has been faster
                self._pool.give_back(allotment)
                self._changes.append(JobChange(number, JobState.ENDED))
                return
            process = self._launch(number, job, allotment)
        except OSError as error:
            self._pool.give_back(allotment)
            self._changes.append(JobChange(number, JobState.ENDED, error=error))
            return
        limit = job.resources.run_time_max
        process.deadline = None if limit is None else time.monotonic() + limit
        if process.served:
            self._processes[number] = process
        else:
            self._watch(process)

    def _launch(self, number: int, job: Job, allotment: Allotment) -> _Process:
        resources = job.resources
        environment = self._environment()
        environment.update(thread_environment(resources.threads_per_core, environment))
        cwd = os.path.abspath(resources.cwd or job.paths.directory)
        os.makedirs(cwd, exist_ok=True)
        serial = resources.cores == 1
        command = [] if serial else mpiexec_command(resources.cores, resources.openmpi_oversubscribe)
        log = open_own(job.paths.log, _LOG_FLAGS)
        try:
            if serial and self._server is not None:
                try:
                    self._server.run(number, job.paths.input, environment, cwd, log)
                except ConnectionError:  # it has just ended
                    self._server_lost()
                else:
                    return _Process(number, job, 0, None, None, allotment, ranks=False, deadline=None, served=True)
            if not serial and os.name == "posix":  # ranks cannot tell by themselves who has started them all
                command = ["/bin/sh", "-c", f'export {cache_claim.LEADER_VARIABLE}=$$; exec "$@"', "sh", *command]
            popen = subprocess.Popen(
                [*command, *job.program],
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        return _Process(number, job, popen.pid, popen, None, allotment, ranks=not serial, deadline=None)

    def _environment(self) -> dict[str, str]:
        return {**program_environment(), PATH_VARIABLE: json.dumps([os.path.abspath(entry) for entry in sys.path])}

    def _adopt(self, number: int, job: Job, claim: cache_claim.Claim) -> None:
        """Watch the process of another program, or of an executor before this one."""
        limit = job.resources.run_time_max
        deadline = None if limit is None else time.monotonic() + limit - (time.time() - claim.since)
        self._watch(_Process(number, job, claim.pid, None, None, None, claim.ranks, deadline))

    def _watch(self, process: _Process) -> None:
        if self._selector is not None:
            try:
                process.descriptor = os.pidfd_open(process.pid)
                self._selector.register(process.descriptor, selectors.EVENT_READ, process.number)
            except OSError:  # it has ended already, or this Linux is older than 5.3: it is asked for
                pass
        self._processes[process.number] = process
        self._pause = _FIRST_PAUSE
        self._changes.append(JobChange(process.number, JobState.BEGUN))

    # Ending

    def _look(self) -> list[_Process]:
        """Hear the job server; returns the other processes that have ended."""
        ready = {key.data for key, _ in self._selector.select(0)} if self._selector is not None else set()
        if self._server is not None:
            self._server.expire(time.monotonic())
            self._hear_server()
        return [
            process
            for process in list(self._processes.values())
            if process.number in ready or (process.descriptor is None and not process.served and not _runs(process))
        ]

    def _hear_server(self) -> None:
        assert self._server is not None
        try:
            events = self._server.events()
        except LauncherLostError:
            self._server_lost()
            return
        for event in events:
            process = self._processes.get(event.worker)
            if process is None:
                continue
            if isinstance(event, Started):
                process.pid = event.pid
                self._changes.append(JobChange(process.number, JobState.BEGUN))
            elif isinstance(event, Exited):
                self._has_ended(process, 0 if event.clean else event.cause)
            else:
                self._has_ended(process, event.reason)

    def _server_lost(self) -> None:
        """The jobs go on, but how they end is not known any more; those to come are started as programs."""
        assert self._server is not None
        assert self._selector is not None
        _LOG.warning("the job server has ended")
        self._selector.unregister(self._server.fileno())
        self._server.close()
        self._server = None
        for process in [process for process in self._processes.values() if process.served]:
            process.served = False
            if process.pid == 0:
                self._has_ended(process, None)
            else:
                self._watch(process)
                if process.verdict is not None:  # the server was asked to end it, and may not have heard
                    signal_group(process.pid, "SIGKILL")

    def _has_ended(self, process: _Process, code: int | str | None) -> None:
        """A process has ended.

        Args:
            process: the process
            code: its exit code, or how it ended in words; None where nobody knows
        """
        cause = "it has ended" if code is None else describe_exit(code) if isinstance(code, int) else code
        del self._processes[process.number]
        if process.descriptor is not None:
            self._unwatch(process)
        if process.allotment is not None:
            self._pool.give_back(process.allotment)
        if code is not None:
            remove_if_empty(process.job.paths.log)
        if code not in (0, None) and process.popen is not None:
            signal_group(process.pid, "SIGKILL")  # what the task had started does not outlive its violent end
        taken = code is None or (
            cause == describe_exit(cache_claim.TAKEN_EXIT_CODE)
            and not cache_claim.was_taken_by(process.job.paths, process.pid)
        )
        cache_claim.forget_dead(process.job.paths)  # it was killed
        claim = cache_claim.holder(process.job.paths)
        if process.verdict is None and taken and not is_ended(process.job.paths.output):
            # It was another program's, or has left the task to another program's.
            if claim is not None:
                self._adopt(process.number, process.job, claim)
            elif os.path.exists(process.job.paths.input):
                # With a pause: whoever has it may be seen by the job, and not from here.
                self._waiting[process.number] = process.job
                self._later.append((time.monotonic() + _LONGEST_PAUSE, process.number))
            else:
                self._changes.append(JobChange(process.number, JobState.ENDED))
            return
        if code != 0:
            cause += end_of_log(process.job.paths.log)
        self._changes.append(JobChange(process.number, JobState.ENDED, cause, process.verdict, process.where))

    def _expire(self, process: _Process, now: float) -> None:
        if process.kill_at is not None and process.kill_at <= now:
            signal_group(process.pid, "SIGKILL")
            process.kill_at = None
        elif process.deadline is not None and process.deadline <= now:
            limit = process.job.resources.run_time_max
            process.verdict = TimeoutError(
                f"{process} was ended after its run_time_max of {limit:g} s" + end_of_log(process.job.paths.log)
            )
            self._end(process, now)

    def _end(self, process: _Process, now: float) -> None:
        process.deadline = None
        process.verdict = process.verdict or RuntimeError(f"{process} was ended by the program")
        if process.served and self._server is not None:
            self._server.kill(process.number, signal.SIGKILL)
        elif process.ranks:  # the launcher of ranks ends them before itself
            signal_group(process.pid, "SIGTERM")
            process.kill_at = now + _KILL_AFTER_SECONDS
        else:
            signal_group(process.pid, "SIGKILL")

    def _unwatch(self, process: _Process) -> None:
        assert process.descriptor is not None
        if self._selector is not None:
            self._selector.unregister(process.descriptor)
        os.close(process.descriptor)

    def _forget(self, popen: subprocess.Popen[bytes]) -> None:
        """Let a child go on by itself."""
        if popen.returncode is None and popen.poll() is None:
            _left.append(popen.pid)
            popen.returncode = 0  # or it would be waited for, and missed with a warning

    def _bury_left(self) -> None:
        for pid in list(_left):
            try:
                if os.waitpid(pid, getattr(os, "WNOHANG", 0))[0] == pid:
                    _left.remove(pid)
            except OSError:
                _left.remove(pid)


def _runs(process: _Process) -> bool:
    if process.popen is not None:
        return process.popen.poll() is None
    return is_alive(process.pid) and cache_claim.holder(process.job.paths) is not None
