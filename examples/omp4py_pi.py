"""omp4py: a function with OpenMP threads of its own, as many as ``threads_per_core`` says."""

import random
import sys

from omp4py import omp, omp_get_num_threads

from executorlib import SingleNodeExecutor

THREADS, POINTS = 4, 200_000


@omp
def calc_pi(num_points: int) -> tuple[float, int]:
    """Pi from random points, and the number of threads that have counted them."""
    count = 0
    threads = 0
    with omp("parallel reduction(+:count)"):
        with omp("single"):
            threads = omp_get_num_threads()
        with omp("for"):
            for _i in range(num_points):
                x = random.random()
                y = random.random()
                if x * x + y * y <= 1.0:
                    count += 1
    return 4 * (count / num_points), threads


def main() -> int:
    with SingleNodeExecutor() as exe:
        future = exe.submit(calc_pi, POINTS, resource_dict={"threads_per_core": THREADS})
        pi, threads = future.result()
    print(f"pi = {pi:.3f}, counted by {threads} threads")
    return 0 if abs(pi - 3.14159) < 0.03 and threads == THREADS else 1


if __name__ == "__main__":
    sys.exit(main())
