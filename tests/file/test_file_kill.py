"""``kill -9`` of the submitting program at any moment: nothing is lost, nothing runs twice, nothing stays behind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from conftest import Script, StartScript

PROGRAM = """
import os, sys, time
from executorlib.api import TestClusterExecutor
import file_tasks
cache, note = sys.argv[1:3]
print("begins", flush=True)
with TestClusterExecutor(cache_directory=cache) as exe:
    firsts = [exe.submit(file_tasks.noted_late, note, n, 0.02) for n in range(3)]
    total = exe.submit(file_tasks.total, firsts)
    last = exe.submit(file_tasks.noted, note, total)
    print(last.result(), flush=True)
"""
KILLS = 50
ROUNDS = 10
LONGEST_SECONDS = 1.0


@pytest.fixture
def script_environment() -> dict[str, str]:
    import executorlib

    paths = [str(Path(executorlib.__file__).parent.parent), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_kill_at_any_moment(start_script: StartScript, script: Script, tmp_path: Path) -> None:
    """Each of ten programs is killed five times, each time it goes on from where its jobs have come."""
    seed = int(os.environ.get("EXECUTORLIB_SEED", time.time_ns()))
    print(f"EXECUTORLIB_SEED={seed}")
    moments = random.Random(seed)
    for number in range(ROUNDS):
        cache, note = tmp_path / f"cache{number}", tmp_path / f"note{number}"
        ended: set[str] = set()
        for _ in range(KILLS // ROUNDS):
            process = start_script(PROGRAM, str(cache), str(note))
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0, LONGEST_SECONDS))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            present = outputs(cache)
            assert ended <= present, "a result has gone"
            ended = present
        done = script(PROGRAM, str(cache), str(note))
        assert done.stdout.split() == ["begins", "3"], done.stderr
        assert Counter(note.read_text().split()) == {"0": 1, "1": 1, "2": 1, "3": 1}, "a task ran again"
        left = set(os.listdir(cache)) - outputs(cache) - {".executorlib-moved"}
        assert not left, left
        assert len(outputs(cache)) == 5
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]


def outputs(cache: Path) -> set[str]:
    return {name for name in os.listdir(cache) if name.endswith("_o.h5")} if cache.is_dir() else set()
