"""A real Flux for the tests of this folder: instances of one and of two brokers on this machine.

A test module takes its fixtures from here. The tests need the command ``flux`` and a flux-python of the same version.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executorlib import FluxJobExecutor

_HOLD = "import os, sys; print(os.environ['FLUX_URI'], flush=True); sys.stdin.read()"
_START_SECONDS = 60.0


@functools.cache
def _missing() -> str | None:
    """Why there is no Flux here."""
    if shutil.which("flux") is None:
        return "there is no command flux"
    if importlib.util.find_spec("flux") is None:
        return "there is no flux-python"
    tried = subprocess.run([sys.executable, "-c", "import flux"], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"flux-python cannot be imported: {tried.stderr.strip().splitlines()[-1]}"
    return None


class Instance:
    """A Flux instance that is held, and its address."""

    def __init__(self, brokers: int) -> None:
        # The path of a socket may have 107 characters: that of the tests' temporary directory is long.
        self._folder = tempfile.mkdtemp(prefix="flux-tests-", dir="/tmp")
        # The process that checks jobs lives on for some seconds after each: it would be taken for one of ours.
        settings = ["--conf=ingest.validator.disable=true"]
        command = ["flux", "start", f"--test-size={brokers}", *settings, sys.executable, "-c", _HOLD]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUX_")}
        self.brokers = brokers
        self._process = subprocess.Popen(
            command,
            env={**environment, "TMPDIR": self._folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.uri = self._process.stdout.readline().strip()
        assert self.uri, "Flux has not started"

    def close(self) -> None:
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    def jobs(self, *options: str) -> list[str]:
        """The jobs that have not ended."""
        command = ["flux", "jobs", "--no-header", "--format={id.f58} {name} {status}", *options]
        environment = {**os.environ, "FLUX_URI": self.uri}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    def command(self, *arguments: str) -> str:
        environment = {**os.environ, "FLUX_URI": self.uri}
        done = subprocess.run(["flux", *arguments], env=environment, capture_output=True, text=True, check=True)
        return done.stdout


@pytest.fixture(scope="session")
def flux_instances() -> Iterator[Callable[[int], Instance]]:
    """Starts an instance when it is first asked for."""
    if (reason := _missing()) is not None:
        pytest.skip(reason)
    started: dict[int, Instance] = {}

    def start(brokers: int) -> Instance:
        if brokers not in started:
            started[brokers] = Instance(brokers)
        return started[brokers]

    yield start
    for instance in started.values():
        instance.close()


@pytest.fixture(scope="session", params=[1, 2], ids=["one-broker", "two-brokers"])
def shared_instance(request: pytest.FixtureRequest, flux_instances: Callable[[int], Instance]) -> Instance:
    return flux_instances(request.param)


@pytest.fixture
def instance(shared_instance: Instance, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """This program runs in an instance of Flux."""
    monkeypatch.setenv("FLUX_URI", shared_instance.uri)
    return shared_instance


@pytest.fixture
def make_job(instance: Instance) -> Iterator[Callable[..., FluxJobExecutor]]:
    """Makes executors in the instance; what the test has not shut down then is. No job may be left."""
    made: list[FluxJobExecutor] = []

    def make(**options: Any) -> FluxJobExecutor:
        made.append(FluxJobExecutor(**options))
        return made[-1]

    yield make
    while made:
        made.pop().kill_workers()
    deadline = time.monotonic() + 8
    while left := instance.jobs():
        assert time.monotonic() < deadline, f"jobs are left: {left}"
        time.sleep(0.1)


FIXTURES = flux_instances, shared_instance, instance, make_job
