"""asyncio: an event loop that waits for calls in other processes, and does other things meanwhile."""

import asyncio
import itertools
import sys

from executorlib import SingleNodeExecutor


def count_primes(start: int, stop: int) -> int:
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), stop))


async def heartbeat(beats: list[float]) -> None:
    while True:
        beats.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.001)


async def primes_below(limit: int, parts: int) -> tuple[int, int]:
    """The number of primes, and how often the loop has done something else while it was found."""
    beats: list[float] = []
    beating = asyncio.create_task(heartbeat(beats))
    edges = [limit * i // parts for i in range(parts + 1)]
    with SingleNodeExecutor(block_allocation=True) as exe:
        # By a future of the executor, which takes resources too ...
        (start, stop), *others = itertools.pairwise(edges)
        first = asyncio.wrap_future(exe.submit(count_primes, start, stop, resource_dict={"priority": 1}))
        # ... or by the event loop, as with any executor.
        loop = asyncio.get_running_loop()
        rest = [loop.run_in_executor(exe, count_primes, start, stop) for start, stop in others]
        counts = await asyncio.gather(first, *rest)
    beating.cancel()
    return sum(counts), len(beats)


def main() -> int:
    primes, beats = asyncio.run(primes_below(100_000, parts=8))
    print(f"{primes} primes below 100000; the event loop came round {beats} times meanwhile")
    return 0 if primes == 9592 and beats > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
