"""SciPy: the population of differential_evolution, evaluated by an executor."""

import sys

import numpy as np
from scipy.optimize import OptimizeResult, differential_evolution, rosen

from executorlib import SingleNodeExecutor

BOUNDS = [(-2.0, 2.0)] * 3


def minimum() -> OptimizeResult:
    with SingleNodeExecutor(block_allocation=True) as exe:
        # Parallel workers need updating="deferred": a generation is evaluated as a whole.
        return differential_evolution(
            rosen, BOUNDS, workers=exe.map, updating="deferred", rng=np.random.default_rng(seed=7)
        )


def main() -> int:
    result = minimum()
    print(f"minimum {result.fun:.1e} at {np.round(result.x, 4)} after {result.nfev} evaluations")
    return 0 if np.allclose(result.x, 1.0, atol=1e-3) else 1


if __name__ == "__main__":
    sys.exit(main())
