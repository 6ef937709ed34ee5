"""asyncio: futures and executors as the event loop expects them."""

from __future__ import annotations

import asyncio
import time

import asyncio_tasks
import pytest

from executorlib import SingleNodeExecutor

pytestmark = pytest.mark.integration


def test_the_loop_goes_on_while_calls_run() -> None:
    primes, beats = asyncio.run(asyncio_tasks.primes_below(20_000, parts=8))
    assert primes == 2262
    assert beats > 1


@pytest.mark.parametrize("block_allocation", [False, True])
def test_both_ways_to_wait(block_allocation: bool) -> None:
    async def run() -> list[int]:
        with SingleNodeExecutor(max_workers=2, block_allocation=block_allocation) as exe:
            loop = asyncio.get_running_loop()
            wrapped = asyncio.wrap_future(exe.submit(pow, 2, 5))
            return [await loop.run_in_executor(exe, pow, 3, 4), await wrapped]

    assert asyncio.run(run()) == [81, 32]


def test_an_error_arrives() -> None:
    async def run() -> None:
        with SingleNodeExecutor(max_workers=1) as exe:
            await asyncio.wrap_future(exe.submit(divmod, 1, 0))

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def test_a_cancelled_wait_cancels_a_call_that_has_not_begun() -> None:
    async def run() -> bool:
        with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
            running, waiting = exe.submit(time.sleep, 0.3), exe.submit(time.sleep, 30.0)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(waiting), timeout=0.1)
            await asyncio.wrap_future(running)
            return waiting.cancelled()

    assert asyncio.run(run())
