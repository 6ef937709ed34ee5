"""Minutes of load: ``make soak``. SOAK_SECONDS shortens it (default 600), and the numbers below shrink with it."""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import tasks

from conftest import descriptors, living_children
from executorlib import SingleNodeExecutor
from executorlib.standalone.errors import WorkerDiedError

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
PART = SECONDS / 600
TASKS = round(200_000 * PART)
CANCELS = round(1000 * PART)
KILL_EVERY = 5.0
RESIZE_EVERY = 3.0
WORKERS = 2  # whenever it is measured

# What may be added between the first minute and the end.
PROGRAM_BYTES = 32 << 20
HELPER_BYTES = 8 << 20

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 300)]


class Figures(NamedTuple):
    """What the program holds, with all calls done and as many workers as ever when it is measured."""

    processes: int
    threads: int
    descriptors: int
    program_bytes: int
    helper_bytes: int

    @classmethod
    def take(cls) -> Figures:
        gc.collect()
        return cls(
            len(living_children()),
            threading.active_count(),
            len(descriptors()),
            psutil.Process().memory_info().rss,
            sum(child.memory_info().rss for child in psutil.Process().children()),
        )


@dataclass
class Soak:
    """Calls of every sort, with the answers that they must have."""

    kept: SingleNodeExecutor
    fresh: SingleNodeExecutor
    random: random.Random = field(default_factory=lambda: random.Random(4))
    open: deque[tuple[Future[Any], Any]] = field(default_factory=deque)
    counts: Counter[str] = field(default_factory=Counter)

    def submit_one(self) -> None:
        draw = self.random.random()
        number = self.counts["submitted"]
        self.counts["submitted"] += 1
        if draw < 0.002:
            self._expect(self.fresh.submit(tasks.add, number, 1), number + 1)
        elif draw < 0.004:
            array = np.full(20_000, float(number))  # 160 kB: travels beside the pickle
            self._expect(self.kept.submit(np.sum, array), number * 20_000.0)
        elif draw < 0.02:
            self._expect(self.kept.submit(sleep_and_say, 0.01, number), number)
        elif draw < 0.03:
            self._expect(self.kept.submit(tasks.fail, str(number)), ValueError)
        elif draw < 0.1 and self.open and not isinstance(self.open[-1][1], type):
            before, answer = self.open[-1]
            self._expect(self.kept.submit(tasks.add, before, 1), answer + 1)
        else:
            self._expect(self.kept.submit(tasks.add, number, 2), number + 2)

    def cancel_one(self) -> None:
        """Cancel a call that may or may not have begun, or one that runs for long, with its process."""
        self.counts["cancels"] += 1
        executor = self.fresh if self.random.random() < 0.1 else self.kept
        if self.random.random() < 0.5:
            future = executor.submit(tasks.add, 1, 2)
            if future.cancel():
                self.counts["cancelled before they ran"] += 1
                self._expect(future, CancelledError)
            else:
                self._expect(future, 3)
            return
        future = executor.submit(time.sleep, 60)
        deadline = time.monotonic() + 30
        while not future.running() and self.random.random() < 0.95 and time.monotonic() < deadline:
            time.sleep(0.002)
        assert executor.cancel(future)
        self.counts["cancelled with their process"] += 1
        # Somebody else may have killed the process just before.
        self._expect(future, CancelledError)

    def kill_one(self) -> None:
        """SIGKILL a worker. Those of the executors are children of their fork servers, which are ours."""
        workers = [worker for helper in psutil.Process().children() for worker in helper.children()]
        if workers:
            self.counts["workers killed"] += 1
            try:
                self.random.choice(workers).send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass

    def reap(self, everything: bool = False) -> None:
        """Look at the calls that are done."""
        for _ in range(len(self.open)):
            future, answer = self.open.popleft()
            if not future.done() and not everything:
                self.open.append((future, answer))
                continue
            self.counts["ended"] += 1
            self._check(future, answer)

    def _check(self, future: Future[Any], answer: Any) -> None:
        try:
            result = future.result(60)
        except CancelledError:
            assert answer is CancelledError
        except WorkerDiedError:  # only where it is not tried again, or where it is killed over and over
            self.counts["died"] += 1
        except ValueError:
            assert answer is ValueError
        else:
            self.counts["right results"] += 1
            assert result == answer, (result, answer)

    def _expect(self, future: Future[Any], answer: Any) -> None:
        self.open.append((future, answer))

    def settle(self) -> Figures:
        """Wait for all calls and for the workers that are always there, and measure."""
        self.kept.max_workers = WORKERS
        self.reap(everything=True)
        for executor in (self.kept, self.fresh):
            assert executor.submit(tasks.add, 1, 1).result(60) == 2
        wanted = 2 + WORKERS  # two fork servers
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            # A worker that was just replaced has come up only when it has answered.
            for future in [self.kept.submit(sleep_and_say, 0.05, i) for i in range(2 * WORKERS)]:
                future.result(60)
            time.sleep(0.2)
            if len(living_children()) == wanted:
                break
        return Figures.take()


def sleep_and_say(seconds: float, value: Any) -> Any:
    time.sleep(seconds)
    return value


def test_soak() -> None:
    faulthandler.cancel_dump_traceback_later()
    start = time.monotonic()
    warm_up = min(60.0, SECONDS / 3)
    first: Figures | None = None
    killed = resized = start
    with (
        SingleNodeExecutor(max_workers=WORKERS, block_allocation=True, restart_limit=5) as kept,
        SingleNodeExecutor(max_workers=1) as fresh,
    ):
        soak = Soak(kept, fresh)
        while (passed := time.monotonic() - start) < SECONDS or soak.counts["submitted"] < TASKS:
            if first is None and passed > warm_up:
                first = soak.settle()
            due = min(TASKS, TASKS * passed / SECONDS) - soak.counts["submitted"]
            for _ in range(min(2000, int(due) + 1)):
                soak.submit_one()
            if soak.counts["cancels"] < CANCELS * passed / SECONDS:
                soak.cancel_one()
            now = time.monotonic()
            if now - killed > KILL_EVERY:
                killed = now
                soak.kill_one()
            if now - resized > RESIZE_EVERY:
                resized = now
                soak.counts["resizes"] += 1
                kept.max_workers = soak.random.randint(1, 4)
            soak.reap()
            time.sleep(0.02)
        last = soak.settle()
        seconds = time.monotonic() - start
    assert first is not None
    print(f"\nsoak of {seconds:.0f} s")
    for name, count in sorted(soak.counts.items()):
        print(f"  {name:30} {count:>9}")
    print(f"  {'':30} {'first minute':>14} {'end':>14}")
    for name in Figures._fields:
        print(f"  {name:30} {getattr(first, name):>14,} {getattr(last, name):>14,}")
    assert soak.counts["submitted"] >= TASKS
    assert soak.counts["cancels"] >= 0.9 * CANCELS
    assert soak.counts["died"] <= soak.counts["workers killed"]
    assert last[:3] == first[:3], "processes, threads, descriptors"
    assert last.program_bytes - first.program_bytes < PROGRAM_BYTES
    assert last.helper_bytes - first.helper_bytes < HELPER_BYTES
