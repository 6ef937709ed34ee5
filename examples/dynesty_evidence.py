"""dynesty: nested sampling with an executor as its pool.

The likelihood is a normal distribution, the prior is flat, so that the evidence is known.
"""

import sys

import dynesty
import numpy as np

from executorlib import SingleNodeExecutor

DIMENSIONS, WIDTH = 2, 10.0
EVIDENCE = -DIMENSIONS * float(np.log(WIDTH))
"""Logarithm of the evidence: the likelihood integrates to 1, the prior is 1 / volume."""


def log_likelihood(theta: np.ndarray) -> float:
    return -0.5 * float(np.sum(theta**2)) - 0.5 * DIMENSIONS * float(np.log(2.0 * np.pi))


def prior_transform(unit: np.ndarray) -> np.ndarray:
    """From the unit cube to the prior."""
    return WIDTH * (unit - 0.5)


def evidence(live_points: int = 150) -> tuple[float, float]:
    """The logarithm of the evidence and its standard error."""
    with SingleNodeExecutor(block_allocation=True) as exe:
        sampler = dynesty.NestedSampler(
            log_likelihood,
            prior_transform,
            DIMENSIONS,
            nlive=live_points,
            pool=exe,
            rstate=np.random.default_rng(seed=6),
        )
        sampler.run_nested(dlogz=0.1, print_progress=False)
    return float(sampler.results.logz[-1]), float(sampler.results.logzerr[-1])


def main() -> int:
    found, error = evidence()
    print(f"ln(evidence) = {found:.2f} +- {error:.2f}, should be {EVIDENCE:.2f}")
    return 0 if abs(found - EVIDENCE) < 4.0 * error else 1


if __name__ == "__main__":
    sys.exit(main())
