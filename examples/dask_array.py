"""dask: a graph of array chunks, computed by an executor as dask's scheduler."""

import sys

import dask.array as da

from executorlib import SingleNodeExecutor

SIDE = 600


def sum_of_squares() -> tuple[int, int]:
    """The sum of the squares of the numbers below SIDE**2, by chunks and by formula."""
    numbers = da.arange(SIDE**2, chunks=SIDE**2 // 8, dtype="int64").reshape(SIDE, SIDE)
    with SingleNodeExecutor(block_allocation=True) as exe:
        total = int((numbers**2).sum().compute(scheduler=exe))
    n = SIDE**2 - 1
    return total, n * (n + 1) * (2 * n + 1) // 6


def main() -> int:
    by_chunks, by_formula = sum_of_squares()
    print(f"sum of squares: {by_chunks}, should be {by_formula}")
    return 0 if by_chunks == by_formula else 1


if __name__ == "__main__":
    sys.exit(main())
